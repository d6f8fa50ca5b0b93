"""Data sets of several parts: what ``--append`` and ``vqgan retry`` add, and what ``vqgan merge`` joins.

Each part has a plan of its own and shards that bear its hash; the first is number 0. Its plan names the plans
before it, so that they form a chain. Finished shards are never touched, and the manifest, which is replaced
at the end, lists the files of all parts: until then the data set is the one that it was.
"""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from transforms.sharded import rejects
from transforms.sharded.manifest import by_count, describe_throughput
from transforms.sharded.plan import Plan, plan_folder
from transforms.sharded.rejects import RejectRow
from transforms.tokenizing.job import TokenizeJob
from transforms.tokenizing.manifest import (
    TokenTotals,
    build_token_manifest,
    publish_token_manifest,
    token_statistics,
)
from vqgan import filesystems, publishing
from vqgan.errors import UserError
from vqgan.manifest import (
    DataSetPart,
    chain_hash,
    damaged_manifest,
    manifest_fields,
    parts_of,
    read_manifest,
    superseded_parts,
)
from vqgan.shard_columns import LATENTS
from vqgan.shards import REJECTS_FOLDER

_REJECTS = re.compile(rf"{REJECTS_FOLDER}/rejects-\d+-of-\d+(?:-part-(\d+))?\.parquet")


def part_number(name: str) -> int:
    """Returns the number of the part that a file of rejects or a shard belongs to, which its name tells."""
    found = re.search(r"-part-(\d+)\.parquet$", name)
    return 0 if found is None else int(found[1])


def retried_file(part: int) -> str:
    """Returns the path, below the output, of the rejects that a part has tried again."""
    return f"{plan_folder(part)}/retried.parquet"


def retried_sum(rows: Iterable[RejectRow]) -> str:
    """Returns the sha256 of rejects that are tried again, which the plan of the retry covers."""
    return hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()


def read_retried(output: str, parts: Sequence[DataSetPart], first: int = 0) -> dict[str, RejectRow]:
    """Returns all rejects that some part has tried again, by key: each as it was before the first retry.

    Args:
      output: the data set.
      parts: of it.
      first: number of the first of them.

    Raises:
      UserError: a table of them is gone or damaged.
    """
    found: dict[str, RejectRow] = {}
    for number, part in enumerate(parts, first):
        if part.retries:
            for row in read_rejects_file(output, retried_file(number)):
                found.setdefault(row.key, row)
    return found


def current_rejects(output: str, manifest: Mapping[str, Any]) -> list[RejectRow]:
    """Returns the rejects of a data set as they stand.

    Raises:
      UserError: a file of them is gone or damaged.
    """
    return [row for entry in manifest["rejects"] for row in read_rejects_file(output, entry["name"])]


def read_rejects_file(output: str, name: str) -> list[RejectRow]:
    """Returns the rows of a file of rejects of a data set.

    Raises:
      UserError: it is gone or damaged.
    """
    path = filesystems.join(output, name)
    try:
        return rejects.read_rejects(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read; restore it, or run vqgan verify --repair") from error


def join_manifests(
    manifests: Sequence[Mapping[str, Any]],
    parts: Sequence[DataSetPart],
    superseded: Collection[int] = (),
    again: Collection[int] = (),
) -> dict[str, Any]:
    """Returns the manifest of all that some manifests list.

    Args:
      manifests: of data sets of one codec, or of parts of them; what they do not say alike is the first's.
      parts: of the whole.
      superseded: positions of manifests whose rejects do not count any more.
      again: positions of those whose entries others have planned, too.
    """
    kept = [manifest for place, manifest in enumerate(manifests) if place not in superseded]
    shards = [entry for manifest in manifests for entry in manifest["shards"]]
    histogram = np.array([manifest["codebook"]["histogram"] for manifest in manifests], np.int64).sum(axis=0)
    reasons: Counter[str] = Counter()
    for manifest in kept:
        reasons.update(manifest["reject_reasons"])
    counts = {
        name: sum(manifest["counts"][name] for manifest in manifests) for name in ("images", "rows", "tokens")
    }
    planned = (m["counts"]["planned"] for place, m in enumerate(manifests) if place not in again)
    token_bytes = sum(manifest["storage"]["token_bytes"] for manifest in manifests)
    return {
        **manifests[0],
        "plan_hash": chain_hash([part.plan_hash for part in parts]),
        "parts": [dataclasses.asdict(part) for part in parts],
        "counts": {
            "planned": sum(planned),
            "images": counts["images"],
            "rejects": sum(manifest["counts"]["rejects"] for manifest in kept),
            "rows": counts["rows"],
            "tokens": counts["tokens"],
        },
        "shards": shards,
        "rejects": [entry for manifest in kept for entry in manifest["rejects"]],
        "reject_reasons": by_count(reasons),
        **token_statistics(histogram, shards, token_bytes),
        "throughput": describe_throughput(
            sum(manifest["throughput"]["images"] for manifest in manifests),
            sum(manifest["throughput"]["worker_seconds"] for manifest in manifests),
        ),
        **{name: manifests[-1][name] for name in ("versions", "finished")},
    }


@dataclasses.dataclass(frozen=True)
class AddPartJob(TokenizeJob):
    """The slices of a further part; the manifest at the end is that of the whole data set.

    Attributes:
      made: the command, for the manifest.
      retries: how many parts before it have had their rejects tried again.
    """

    made: str = "append"
    retries: int = 0

    def finish(self, totals: TokenTotals, plan: Plan) -> dict[str, Any]:
        """Publishes report, card and, last, the manifest; then rejects go that have been tried again."""
        task, base = self.task, read_manifest(self.task.output)
        if base is None:
            raise damaged_manifest(task.output, "it is gone")
        parts = parts_of(manifest_fields(task.output, base))
        if plan.hash in {part.plan_hash for part in parts}:
            return base  # a retry of this step, whose first try got so far
        added = build_token_manifest(plan, totals, base["codec"], base["grid"])
        parts.append(DataSetPart(plan.hash, plan.slices, self.made, self.retries))
        again = {"superseded": {0}, "again": {1}} if self.retries else {}
        manifest = join_manifests([base, added], parts, **again)
        self.report(manifest)
        publish_token_manifest(task.output, manifest)
        delete_superseded(task.output, manifest)
        return manifest


def delete_superseded(output: str, manifest: Mapping[str, Any]) -> None:
    """Removes the files of rejects that have been tried again, which the manifest lists no more."""
    superseded = superseded_parts(parts_of(manifest_fields(output, manifest)))
    listed = {entry["name"] for entry in manifest["rejects"]}
    for name in filesystems.file_sizes(output, [REJECTS_FOLDER]):
        if _REJECTS.fullmatch(name) and part_number(name) in superseded and name not in listed:
            publishing.delete(filesystems.join(output, name))


def shared_settings(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what has to be the same in all parts of a data set, of what identifies a plan."""
    source = identity.get("source", {})
    return {
        **{
            name: identity.get(name)
            for name in ("codec", "preprocessing", "dtype", "sampling", LATENTS, "buckets")
        },
        "engine": identity.get("engine", "jax"),
        "source": {name: source.get(name) for name in ("columns", "class_names")},
    }
