"""``vqgan verify --repair``: what is gone or damaged is made again by the plan, to the same bytes."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.data_sets.finished_sets import FinishedSet, checked_config, config_of, owned
from pipelines.tokenize_images import TokenizeConfig, make_task
from transforms.images.crops import count_views
from transforms.sharded.job import make_slice
from transforms.sharded.plan import check_plan_tables, read_plan, read_slice, read_slices
from transforms.sharded.rejects import RejectRow, publish_rejects
from transforms.sharded.run import speaker
from transforms.sharded.summary import describe_file
from transforms.sharded.verify import require_manifest
from transforms.sources import open_source
from transforms.tokenizing.job import TokenizeJob
from transforms.tokenizing.parts import delete_superseded, read_rejects_file, read_retried
from transforms.tokenizing.shard import TokenizeTask, read_and_decode, read_planned
from vqgan import filesystems
from vqgan.errors import UserError, counted
from vqgan.manifest import check_tokens, manifest_fields, parts_of
from vqgan.shards import open_shard, rejects_name, shard_name


@dataclasses.dataclass(frozen=True)
class BrokenSlice:
    """A slice whose shard or rejects are not as the manifest has them.

    Attributes:
      part: of the data set.
      number: of the slice in it.
      names: of its files that the manifest lists, the shard first.
      broken: those that are gone or damaged.
    """

    part: int
    number: int
    names: tuple[str, ...]
    broken: frozenset[str]


def repair(output: str, given: Mapping[str, Any]) -> list[str]:
    """Makes slices again whose shards or rejects are gone or damaged; nothing else is touched.

    Args:
      output: a data set that was finished; its plan and manifest have to be whole.
      given: settings to use in place of those that it was made with, such as where the input lies now.

    Returns:
      A line for each file that came out otherwise than it was.

    Raises:
      UserError: plan or manifest are damaged, the input or codec is another one, or a slice cannot be made.
    """
    manifest, plan = require_manifest(output), read_plan(output)
    check_tokens(output, manifest)
    if plan is None:
        raise UserError(f"{output}: plan/plan.json is missing; nothing can be made again without it")
    if "sampling" in plan.identity:
        raise UserError(
            f"{output}: its tokens were drawn from a prior; run vqgan sample again, which mends it"
        )
    parts = parts_of(manifest_fields(output, manifest))
    for number in range(len(parts)):
        check_plan_tables(output, number)
    finished = FinishedSet(output, manifest, parts, plan.identity)
    with owned(finished):
        broken = list(find_broken(finished))
        if not broken:
            return []
        config = checked_config(finished, config_of(output, given))
        first = min(broken[0].broken)
        speaker(False)(f"{output}: {counted(len(broken), 'slice')} to be made again, such as of {first}")
        for each in broken:
            _make_again(finished, config, each)
        delete_superseded(output, manifest)  # which some of those slices have brought back
        return [line for each in broken for line in _changes(finished, each)]


def find_broken(finished: FinishedSet) -> Iterator[BrokenSlice]:
    """Yields the slices of all parts that have lost a file, or have one that has changed."""
    listed = _listed(finished)
    for number, part in enumerate(finished.parts):
        for slice_number in range(part.slices):
            shard = shard_name(slice_number, part.slices, number)
            if shard not in listed:
                raise UserError(f"{finished.output}: manifest.json does not list {shard}; restore it")
            names = (shard, rejects_name(slice_number, part.slices, number))
            there = tuple(name for name in names if name in listed)
            broken = frozenset(name for name in there if not _is_intact(finished.output, listed[name]))
            if broken:
                yield BrokenSlice(number, slice_number, there, broken)


def _listed(finished: FinishedSet) -> dict[str, Mapping[str, Any]]:
    entries = (*finished.manifest["shards"], *finished.manifest["rejects"])
    return {entry["name"]: entry for entry in entries}


def _is_intact(output: str, entry: Mapping[str, Any]) -> bool:
    try:
        return describe_file(output, entry["name"], 0).sha256 == entry["sha256"]
    except OSError:
        return False


class _RepairJob(TokenizeJob):
    """A slice is made, whatever is there; a file gives way by a rename, when the new one is complete."""

    def is_whole(self, number: int) -> bool:
        return False


def _make_again(finished: FinishedSet, config: TokenizeConfig, broken: BrokenSlice) -> None:
    """Makes what a slice has lost; a file that is as it was stays.

    Raises:
      UserError: the input has other images than it had.
    """
    output = finished.output
    plan = read_plan(output, broken.part)
    if plan is None:
        raise UserError(f"{output}: the plan of part {broken.part} is missing; restore it")
    task = make_task(config, plan, _sizes(output, broken.part), finished.engine, broken.part)
    # Bytes are compared in the end, so the input's times do not matter.
    task = dataclasses.replace(
        task,
        copied=True,
        settled=_settled(finished, broken),
        max_reject_rate=None,
        rejects_expected=_reject_count(finished, broken, count_views(config.geometry)),
    )
    if broken.names[0] not in broken.broken:
        _reject_again(task, broken)
        return
    job = _RepairJob(task, with_report=False)
    make_slice(job, broken.number, job.load_model(), lambda images, rejects: None)


def _reject_again(task: TokenizeTask, broken: BrokenSlice) -> None:
    """Makes the rejects of a slice whose shard has lost nothing.

    Raises:
      UserError: an image can be read now.
    """
    with open_shard(filesystems.join(task.output, broken.names[0])) as shard:
        made = {key for batch in shard.batches(["key"]) for key in batch.column("key").to_pylist()}
    entries = [entry for entry in read_planned(task, broken.number) if entry.key not in made]
    rows = []
    for found in read_and_decode(task, open_source(task.source), entries):
        if not isinstance(found, RejectRow):
            key = found.rows[0].key
            raise UserError(
                f"{broken.names[1]}: {key!r} was rejected, and can be read now; put the file back that it was"
            )
        rows.append(found)
    publish_rejects(task.output, broken.number, task.slices, rows, task.part)


def _sizes(output: str, part: int) -> list[int]:
    return [table.num_rows for table in read_slices(output, ["offset"], part)]


def _reject_count(finished: FinishedSet, broken: BrokenSlice, views: int) -> int:
    entry = _listed(finished)[broken.names[0]]
    return len(read_slice(finished.output, broken.number, broken.part)) - int(entry["rows"]) // views


def _settled(finished: FinishedSet, broken: BrokenSlice) -> dict[str, RejectRow]:
    """Returns rejects of a slice that stay as they are: what is known of them, whatever has passed since."""
    kept = [name for name in broken.names[1:] if name not in broken.broken]
    if kept:
        return {row.key: row for row in read_rejects_file(finished.output, kept[0])}
    if len(broken.names) > 1:
        return {}  # their file is lost: they are tried again, and should fail as they did
    retried = read_retried(finished.output, finished.parts[broken.part + 1 :], broken.part + 1)
    keys = {entry.key for entry in read_slice(finished.output, broken.number, broken.part)}
    return {key: row for key, row in retried.items() if key in keys}


def _changes(finished: FinishedSet, broken: BrokenSlice) -> Sequence[str]:
    listed = _listed(finished)
    return [
        f"{name}: made again, but not to the same bytes; another batch size or release, or another input"
        for name in broken.names
        if not _is_intact(finished.output, listed[name])
    ]
