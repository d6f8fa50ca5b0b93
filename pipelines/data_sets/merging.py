"""``vqgan merge``: several token data sets of one codec become one, whose shards are theirs, byte for byte.

Their plans become the plans of its parts, so that ``vqgan verify`` checks it as it checks them.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data_sets.finished_sets import FinishedSet, open_finished
from transforms.sharded.ownership import owning
from transforms.sharded.plan import (
    HASHED,
    PLAN_FOLDER,
    differences,
    plan_folder,
    read_plan,
    read_slices,
    write_plan,
)
from transforms.sharded.run import LEFTOVER_SECONDS, missing_files, speaker
from transforms.sharded.summary import describe_file
from transforms.tokenizing.manifest import publish_token_manifest
from transforms.tokenizing.parts import join_manifests, part_number, retried_file, shared_settings
from vqgan import filesystems, publishing
from vqgan.errors import UserError, counted, first_line
from vqgan.manifest import AGAIN, DataSetPart, chain_hash, read_manifest
from vqgan.shards import DATA_FOLDER, REJECTS_FOLDER, part_suffix

CHUNK = 1 << 20


class PartSource(NamedTuple):
    """Where a part of the joined data set comes from.

    Attributes:
      finished: the data set.
      number: of the part in it.
      part: what its manifest says of it.
    """

    finished: FinishedSet
    number: int
    part: DataSetPart


def merge(paths: Sequence[str], output: str, quiet: bool = False) -> dict[str, Any]:
    """Joins finished token data sets.

    The same command continues a merge that was interrupted, and brings back files that the output has lost.

    Args:
      paths: folders or URIs of at least two.
      output: folder or URI of the new one.
      quiet: print errors only.

    Returns:
      The manifest.

    Raises:
      UserError: other codecs or preprocessing, a key that is in two of them, files that are lost, or
        an output that holds something else.
    """
    if len(paths) < 2:
        raise UserError("give two data sets at least, as in vqgan merge A/ B/ --output C/")
    say = speaker(quiet)
    found = list(_distinct([open_finished(path) for path in paths], quiet))
    _check_settings(found)
    _check_keys(found)
    sources = [PartSource(each, n, part) for each in found for n, part in enumerate(each.parts)]
    expected = chain_hash([source.part.plan_hash for source in sources])
    existing = _check_output(output, sources, expected)
    if existing is not None and not missing_files(output, existing):
        say(f"{output} is complete; nothing to do")
        return existing
    publishing.make_folder(output)
    with owning(output) as alone:
        existing = _check_output(output, sources, expected)  # once more: another merge may have been here
        if existing is not None and not missing_files(output, existing):
            return existing
        publishing.delete_temporaries(output, 0.0 if alone else LEFTOVER_SECONDS, below=True)
        manifest = _copy_all(found, sources, output)
    counts = manifest["counts"]
    say(f"{output}: {counted(counts['rows'], 'row')} in {counted(len(manifest['shards']), 'shard')}")
    return manifest


def _distinct(found: Sequence[FinishedSet], quiet: bool) -> Iterator[FinishedSet]:
    """Yields data sets but those that are wholly in another one, which is said.

    Raises:
      UserError: two share some of their parts only.
    """
    hashes = [{part.plan_hash for part in each.parts} for each in found]
    for number, (each, mine) in enumerate(zip(found, hashes, strict=True)):
        for other, theirs in enumerate(hashes):
            if other == number or not mine & theirs:
                continue
            if mine == theirs and number < other:
                continue  # the later of two copies is left out
            if mine <= theirs:
                speaker(quiet)(f"{each.output} is in {found[other].output} already; taken once")
                break
            if not theirs <= mine:
                raise UserError(
                    f"{each.output} and {found[other].output} share images; merge one of them only"
                )
        else:
            yield each


def _check_settings(found: Sequence[FinishedSet]) -> None:
    """Refuses tokens that do not mean the same. Raises UserError."""
    first = found[0]
    for each in found[1:]:
        if changed := differences(shared_settings(first.identity), shared_settings(each.identity)):
            raise UserError(
                f"{first.output} and {each.output}: made with other settings ({'; '.join(changed)}); "
                "only data sets of one codec and preprocessing can be merged"
            )


def _check_keys(found: Sequence[FinishedSet]) -> None:
    """Refuses keys that are in two data sets. Raises UserError."""
    tables = [each.entries(HASHED) for each in found]
    keys = pa.concat_tables(tables).column("key").cast(pa.large_string()).combine_chunks()
    if pc.count_distinct(keys).as_py() == len(keys):
        return
    counts = pc.value_counts(keys)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").cast(pa.string())
    rows = [table.filter(pc.is_in(table.column("key"), repeated)) for table in tables]
    same = {tuple(row.values()) for table in rows for row in table.to_pylist()}
    what = "of the same image" if len(same) == len(repeated) else "of different images"
    raise UserError(
        f"{', '.join(each.output for each in found)}: {counted(len(repeated), 'key')} in more than one of "
        f"them, such as {min(repeated.to_pylist())!r}, {what}; keys have to be unique: tokenize with "
        "--key-column, or from a folder above"
    )


def _check_output(output: str, sources: Sequence[PartSource], expected: str) -> dict[str, Any] | None:
    """Returns the manifest of a merge that is complete; None for one to be made or continued.

    Raises:
      UserError: the output holds something else.
    """
    strangers = [name for name in filesystems.list_entries(output) if name != PLAN_FOLDER]
    manifest, plan = read_manifest(output), read_plan(output)
    if manifest is not None and manifest["plan_hash"] == expected:
        return manifest
    if manifest is not None or (plan is None and strangers):
        raise UserError(f"{output}: there is something else in it; choose an empty or new folder")
    for number, source in enumerate(sources):
        plan = read_plan(output, number)
        if plan is not None and plan.hash != source.part.plan_hash:
            raise UserError(f"{output}: belongs to another run; choose another output")
    return None


def _copy_all(found: Sequence[FinishedSet], sources: Sequence[PartSource], output: str) -> dict[str, Any]:
    """Writes plans, shards and rejects, and the manifest last."""
    for number, source in enumerate(sources):
        _copy_plan(source, output, number)
    publishing.make_folder(filesystems.join(output, DATA_FOLDER))
    if any(each.manifest["rejects"] for each in found):
        publishing.make_folder(filesystems.join(output, REJECTS_FOLDER))
    manifests, first = [], 0
    for each in found:
        files = {name: _copy_files(each, name, output, first) for name in ("shards", "rejects")}
        manifests.append({**each.manifest, **files})
        first += len(each.parts)
    manifest = join_manifests(manifests, [source.part for source in sources])
    publish_token_manifest(output, manifest)
    return manifest


def _copy_plan(source: PartSource, output: str, number: int) -> None:
    """Writes the plan of a part under its new number, in the layout of this release."""
    path = source.finished.output
    plan = read_plan(path, source.number)
    if plan is None:
        raise UserError(f"{path}: the plan of part {source.number} is missing; restore it")
    if read_plan(output, number) is not None:
        return
    publishing.make_folder(filesystems.join(output, plan_folder(number)))
    if source.part.retries:
        data = filesystems.read_bytes(filesystems.join(path, retried_file(source.number)))
        publishing.write_bytes(filesystems.join(output, retried_file(number)), data)
    write_plan(output, plan, read_slices(path, part=source.number), number)


def _copy_files(source: FinishedSet, kind: str, output: str, first: int) -> list[Mapping[str, Any]]:
    """Copies the files of a list of a manifest, and returns what the new one says of them."""
    copied: list[Mapping[str, Any]] = []
    for entry in source.manifest[kind]:
        old = part_number(entry["name"])
        name = (
            entry["name"].removesuffix(f"{part_suffix(old)}.parquet") + f"{part_suffix(first + old)}.parquet"
        )
        _copy(source.output, entry, output, name)
        copied.append({**entry, "name": name})
    return copied


def _copy(source: str, entry: Mapping[str, Any], output: str, name: str) -> None:
    """Copies a file that is as its manifest has it, unless it is there already.

    Raises:
      UserError: it has changed, or cannot be read.
    """
    with contextlib.suppress(OSError):  # not there yet
        if describe_file(output, name, 0).sha256 == entry["sha256"]:
            return
    where, digest = filesystems.join(source, entry["name"]), hashlib.sha256()
    filesystem, inner = filesystems.resolve(where)
    try:
        stream = filesystem.open_input_stream(inner)
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({first_line(error)}); {AGAIN}") from error
    with stream, publishing.publish(filesystems.join(output, name)) as copy:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            copy.write(chunk)
        if digest.hexdigest() != entry["sha256"]:
            raise UserError(f"{where}: has changed since it was written; run vqgan verify --repair")
