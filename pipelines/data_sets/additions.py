"""``vqgan tokenize --append`` and ``vqgan retry``: more shards for a finished data set.

Either adds a part with a plan of its own (:mod:`transforms.tokenizing.parts`). Until the new manifest is
there the data set is the one that it was; the same command continues a part that was begun.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data_sets.finished_sets import FinishedSet, checked_config, config_of, open_finished, owned
from pipelines.runners.beam_runs import run_job
from pipelines.tokenize_images import PlannedTokenize, TokenizeConfig, make_task, plan_tokenize
from transforms.sharded import rejects
from transforms.sharded.plan import (
    Plan,
    check_plan_tables,
    differences,
    make_plan,
    plan_folder,
    read_plan,
    read_slices,
    settings_of,
    write_plan,
)
from transforms.sharded.rejects import RejectRow
from transforms.sharded.run import speaker
from transforms.sharded.slices import Slices, collect, cut, entries_of
from transforms.sharded.worker_reports import remove_reports
from transforms.sources import Entry, open_source
from transforms.tokenizing.parts import (
    AddPartJob,
    current_rejects,
    read_retried,
    retried_file,
    retried_sum,
    shared_settings,
)
from transforms.tokenizing.shard import read_and_decode
from vqgan import filesystems, publishing
from vqgan.errors import UserError, counted
from vqgan.manifest import (
    manifest_fields,
    parts_of,
    read_manifest,
)


@dataclasses.dataclass(frozen=True)
class NewPart:
    """A part that is planned; nothing is written.

    Attributes:
      finished: the data set.
      job: what workers do.
      plan, slices: of the part.
      retried: rejects that it tries again; none for images that are new.
    """

    finished: FinishedSet
    job: AddPartJob
    plan: Plan
    slices: Slices
    retried: Sequence[RejectRow] = ()

    @property
    def number(self) -> int:
        """Of the part."""
        return len(self.finished.parts)

    def write_plan(self) -> None:
        """Writes the plan, ``plan.json`` last."""
        output = self.finished.output
        publishing.make_folder(filesystems.join(output, plan_folder(self.number)))
        if self.retried:
            rejects.write_rejects(filesystems.join(output, retried_file(self.number)), list(self.retried))
        write_plan(output, self.plan, self.slices, self.number)


def append(config: TokenizeConfig, beam_args: Sequence[str]) -> dict[str, Any]:
    """Tokenizes what a source has and a finished data set of it does not, into additional shards.

    Args:
      config: all settings, the same that the data set was made with.
      beam_args: flags for Beam.

    Returns:
      The manifest, with the new part.

    Raises:
      UserError: other settings, a file that has changed, no finished data set, or a run's own.
    """
    return append_planned(plan_all(config), beam_args)


def append_planned(planned: PlannedTokenize, beam_args: Sequence[str]) -> dict[str, Any]:
    """Adds to the finished data set at a run's output what the run has and it does not.

    Args:
      planned: the tokenizing of all that the source has.
      beam_args: flags for Beam.

    Returns:
      The manifest, with the new part.

    Raises:
      UserError: as :func:`append`.
    """
    finished, new = only_new(planned)
    output, quiet, part = planned.output, planned.quiet, _appended(finished, new)
    if part.plan.entries and _is_begun_otherwise(part):
        # The input has grown since: what was begun comes first.
        earlier = _appended(finished, of_planned(new, output, part.number))
        if not _is_begun_otherwise(earlier):
            _carry_out(earlier, new.config, beam_args)
            return append_planned(planned, beam_args)
    if not part.plan.entries:
        return _nothing_to_do(finished, "the input has nothing that is not in it", quiet)
    speaker(quiet)(f"{counted(part.plan.entries, 'image')} that {output} does not have")
    return _carry_out(part, new.config, beam_args)


def plan_all(config: TokenizeConfig) -> PlannedTokenize:
    """Plans the tokenizing of all that a source has, of which a finished data set has a part; writes nothing.

    Raises:
      UserError: as :func:`pipelines.tokenize_images.plan_tokenize`, or no finished data set.
    """
    finished = open_finished(config.output)
    known = finished.entries(["key"]).column("key").to_pylist() if config.dedupe else []
    return plan_tokenize(config, frozenset(known))


def only_new(planned: PlannedTokenize) -> tuple[FinishedSet, PlannedTokenize]:
    """Returns the finished data set at a run's output, and the tokenizing of what it does not have.

    Raises:
      UserError: other settings, a file that has changed, or no finished data set.
    """
    finished = open_finished(planned.output)
    before, now = (
        {**shared_settings(identity), "dedupe": identity.get("dedupe", False)}
        for identity in (finished.identity, planned.plan.identity)
    )
    if changed := differences(before, now):
        raise UserError(f"{planned.output}: other settings than it was made with ({'; '.join(changed)})")
    return finished, _of_entries(planned, _new_entries(finished, planned.slices.entries))


def of_planned(planned: PlannedTokenize, output: str, part: int) -> PlannedTokenize:
    """Returns the tokenizing of those entries that a part's plan has, which was begun of fewer."""
    keys = pa.concat_tables(read_slices(output, ["key"], part)).column("key")
    entries = planned.slices.entries
    begun = pc.is_in(entries.column("key"), keys.combine_chunks().cast(pa.large_string()))
    return _of_entries(planned, entries.filter(begun))


def _of_entries(planned: PlannedTokenize, entries: pa.Table) -> PlannedTokenize:
    slices = cut(entries, planned.config.slice_size, planned.slices.order is not None)
    return dataclasses.replace(
        planned, slices=slices, plan=make_plan(slices, settings_of(planned.plan.identity))
    )


def _appended(finished: FinishedSet, planned: PlannedTokenize) -> NewPart:
    plan = make_plan(planned.slices, {**settings_of(planned.plan.identity), "parent": finished.parent})
    return _part(finished, planned.config, plan, planned.slices)


def _is_begun_otherwise(part: NewPart) -> bool:
    begun = read_plan(part.finished.output, part.number)
    return begun is not None and begun.hash != part.plan.hash


def retry_rejects(output: str, given: Mapping[str, Any], beam_args: Sequence[str] = ()) -> dict[str, Any]:
    """Tries the rejects of a finished data set again; images that can be read now go to additional shards.

    Those that fail again are listed with the newest reason. What listing found damaged, and duplicates, stay.

    Args:
      output: the data set.
      given: settings to use in place of those that it was made with; None leaves one as it is.
      beam_args: flags for Beam.

    Returns:
      The manifest.

    Raises:
      UserError: another codec, no finished data set, or a run's own.
    """
    finished = open_finished(output)
    config = config_of(output, given)
    rows = current_rejects(output, finished.manifest)
    if not rows:
        return _nothing_to_do(finished, "nothing was rejected", config.quiet)
    # Most of what failed once fails again; that says nothing of the input.
    config = dataclasses.replace(checked_config(finished, config), max_reject_rate=None)
    source = open_source(config.source)
    table = collect(_rejected_entries(finished, {row.key for row in rows}), source.fields())
    slices = cut(table, config.slice_size, source.shuffles)
    settings = {**settings_of(finished.identity), "parent": finished.parent, "retried": retried_sum(rows)}
    plan = make_plan(slices, settings)
    part = dataclasses.replace(_part(finished, config, plan, slices, len(finished.parts)), retried=rows)
    if not _comes_out_otherwise(part, entries_of(table)):
        return _nothing_to_do(finished, "its rejects are what they were", config.quiet)
    return _carry_out(part, config, beam_args)


def _rejected_entries(finished: FinishedSet, keys: Set[str]) -> Iterator[Entry]:
    """Yields the entries of these keys, as if their files had not been looked at: they may be mended."""
    wanted = pa.array(sorted(keys), pa.string())
    for table in finished.tables():
        chosen = table.filter(pc.is_in(table.column("key"), wanted))
        yield from (entry.unseen() for entry in entries_of(chosen))


def _comes_out_otherwise(part: NewPart, entries: list[Entry]) -> bool:
    """Tells whether a retry would change anything; stops at the first image that can be read."""
    known = {row.key: row for row in part.retried}
    outcomes = read_and_decode(part.job.task, open_source(part.job.task.source), entries)
    return any(not isinstance(found, RejectRow) or _is_news(found, known[found.key]) for found in outcomes)


def _is_news(found: RejectRow, known: RejectRow) -> bool:
    """Tells whether a reject tells anything new; that the bytes it was about are gone does not."""
    return found != known and not (rejects.may_pass(found) and not rejects.may_pass(known))


def _new_entries(finished: FinishedSet, listed: pa.Table) -> pa.Table:
    """Returns the entries whose keys the data set does not have.

    Raises:
      UserError: a file that it has been made of is another one now.
    """
    known = finished.entries(["key", "file_size"])
    keys = known.column("key").cast(pa.large_string())
    places = pc.index_in(listed.column("key"), keys)
    sizes = pc.take(known.column("file_size"), places)
    # An image that was rejected may have been mended since; that is what retrying is for.
    rejected = {row.key for row in current_rejects(finished.output, finished.manifest)}
    rejected |= read_retried(finished.output, finished.parts).keys()
    changed = listed.filter(
        pc.fill_null(
            pc.and_(
                pc.and_(pc.greater_equal(sizes, 0), pc.greater_equal(listed.column("file_size"), 0)),
                pc.not_equal(sizes, listed.column("file_size")),
            ),
            False,
        )
    )
    for entry in entries_of(changed):
        if entry.key not in rejected:
            raise UserError(
                f"{finished.output}: {entry.file} has changed since it was planned (now {entry.file_size:,} "
                "bytes); restore it, or choose another output"
            )
    return listed.filter(pc.is_null(places))


def _part(
    finished: FinishedSet, config: TokenizeConfig, plan: Plan, slices: Slices, retries: int = 0
) -> NewPart:
    task = make_task(config, plan, slices.sizes, finished.engine, len(finished.parts))
    made = "retry" if retries else "append"
    return NewPart(finished, AddPartJob(task, config.report, made, retries), plan, slices)


def _nothing_to_do(finished: FinishedSet, why: str, quiet: bool) -> dict[str, Any]:
    """Says why, and removes what a command has left that was killed after its manifest was there."""
    with owned(finished):
        remove_reports(finished.output)
    speaker(quiet)(f"{finished.output}: {why}; nothing to do")
    return dict(finished.manifest)


def _carry_out(part: NewPart, config: TokenizeConfig, beam_args: Sequence[str]) -> dict[str, Any]:
    """Makes the part, or goes on with it; returns the manifest of the whole.

    Raises:
      UserError: another part was begun, or whatever the slices raise.
    """
    output = part.finished.output
    with owned(part.finished):
        _begin(part)
        run_job(part.job, part.plan, beam_args, config.quiet, config.compilation_cache)
        remove_reports(output)
    manifest = read_manifest(output)
    if manifest is None or len(parts_of(manifest_fields(output, manifest))) <= part.number:
        raise UserError(f"{output}: the pipeline ended without a manifest; see its log")
    counts, before = manifest["counts"], part.finished.manifest["counts"]
    speaker(config.quiet)(
        f"{output}: {counted(counts['images'] - before['images'], 'image')} more in "
        f"{counted(part.plan.slices, 'shard')}; now {counted(counts['images'], 'image')}, "
        f"{counted(counts['rejects'], 'reject')}"
    )
    return manifest


def _begin(part: NewPart) -> None:
    """Writes the plan of a part, or finds it written.

    Raises:
      UserError: another part was begun.
    """
    output = part.finished.output
    existing = read_plan(output, part.number)
    if existing is None:
        part.write_plan()
    elif existing.hash == part.plan.hash:
        check_plan_tables(output, part.number)
    else:
        folder = plan_folder(part.number)
        files = f"{folder} and files whose names end in -{folder.split('/')[1]}.parquet"
        what = "; ".join(differences(existing.identity, part.plan.identity))
        command = "vqgan retry" if "retried" in existing.identity else "vqgan tokenize --append"
        raise UserError(
            f"{output}: {folder} was begun by another {command} and is not finished ({what}); "
            f"run that again, or give it up by removing {files}"
        )
