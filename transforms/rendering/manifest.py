"""The manifest of decoded pictures; its parts bear the names that those of a token data set have."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from transforms.manifest import by_name, check_complete, now, reasons, throughput, versions
from transforms.plan import Plan
from transforms.rendering.plan import TokenInput
from transforms.rendering.summary import ImageTotals
from transforms.summary import FileSummary
from vqgan.manifest import FORMAT_VERSION, IMAGES_KIND


def build_image_manifest(
    plan: Plan,
    totals: ImageTotals,
    codec: Mapping[str, Any],
    tokens: TokenInput,
    metadata: FileSummary | None = None,
) -> dict[str, Any]:
    """The manifest as JSON data.

    Args:
      plan: the plan that was carried out.
      totals: of all its slices.
      codec: JSON data about the codec, for readers.
      tokens: what the pictures were made of.
      metadata: ``metadata.jsonl``, where the pictures are files.

    Raises:
      UserError: the slices do not add up to the plan.
    """
    check_complete(plan, totals)
    rejected = sum(entry["rows"] for entry in totals.rejects)
    described = [] if metadata is None else [dataclasses.asdict(metadata)]
    files = [*totals.shards, *totals.archives, *described]
    separate = totals.image_bytes if plan.identity["form"]["container"] == "files" else 0
    return {
        "version": FORMAT_VERSION,
        "kind": IMAGES_KIND,
        "plan_hash": plan.hash,
        "identity": plan.identity,
        "codec": dict(codec),
        "tokens": tokens._asdict(),
        "grid": list(tokens.grid),
        "codebook": {"size": codec["config"]["codebook_size"]},
        "counts": {
            "planned": totals.planned,
            "images": totals.images,
            "rejects": rejected,
            "rows": totals.rows,
        },
        "shards": by_name(totals.shards),
        "archives": by_name(totals.archives),
        "metadata": described,
        "rejects": by_name(totals.rejects),
        "reject_reasons": reasons(totals),
        "storage": {
            "bytes": sum(entry["bytes"] for entry in files) + separate,
            "image_bytes": totals.image_bytes,
            "bytes_per_image": totals.image_bytes / totals.images if totals.images else 0.0,
        },
        "throughput": throughput(totals),
        "versions": versions(),
        "finished": now(),
    }
