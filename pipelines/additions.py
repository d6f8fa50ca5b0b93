"""``vqgan tokenize --append`` and ``vqgan retry``: more shards for a finished data set.

Either adds a part with a plan of its own (:mod:`transforms.tokenizing.parts`). Until the new manifest is
there the data set is the one that it was; the same command continues a part that was begun.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.beam_runs import run_job
from pipelines.options import read_settings
from pipelines.run_options import TokenizeOptions
from pipelines.tokenize_images import TokenizeConfig, make_task, plan_tokenize
from transforms.sharded import rejects
from transforms.sharded.ownership import owning
from transforms.sharded.plan import (
    PLAN_FOLDER,
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
from transforms.sharded.run import LEFTOVER_SECONDS, missing_files, speaker
from transforms.sharded.slices import Slices, collect, cut, entries_of
from transforms.sharded.worker_reports import remove_reports
from transforms.sources import Entry, open_source
from transforms.tokenizing.parts import (
    AddPartJob,
    current_rejects,
    delete_superseded,
    read_retried,
    retried_file,
    retried_sum,
    shared_settings,
)
from transforms.tokenizing.shard import read_and_decode
from vqgan import filesystems
from vqgan.codec_checkpoint import read_info
from vqgan.config import RUN_FILE, to_dict
from vqgan.engines.choice import EngineChoice, recorded_engine
from vqgan.errors import UserError, counted
from vqgan.manifest import (
    DataSetPart,
    chain_hash,
    check_parts,
    check_tokens,
    manifest_fields,
    parts_of,
    read_manifest,
)


@dataclasses.dataclass(frozen=True)
class FinishedSet:
    """A finished data set of tokens that were made of images.

    Attributes:
      output: its folder or URI.
      manifest: of it.
      parts: of it.
      identity: of its first plan.
    """

    output: str
    manifest: Mapping[str, Any]
    parts: list[DataSetPart]
    identity: Mapping[str, Any]

    @property
    def engine(self) -> EngineChoice:
        """What runs the codec's networks."""
        engine = self.identity.get("engine")
        return recorded_engine(engine if isinstance(engine, str) else None)

    @property
    def parent(self) -> str:
        """What the plan of the next part names as the plans before it."""
        return chain_hash([part.plan_hash for part in self.parts])

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yields the entries of all images, each once, slice by slice."""
        for number, part in enumerate(self.parts):
            if not part.retries:
                yield from read_slices(self.output, columns, number)

    def entries(self, columns: Sequence[str]) -> pa.Table:
        """Returns columns of the entries of all images, each once."""
        return pa.concat_tables(self.tables(columns))


def open_finished(output: str) -> FinishedSet:
    """Opens a finished data set that may get further parts.

    Raises:
      UserError: there is none, it is not finished, files of it are lost, or it was not made of images.
    """
    manifest, plan = read_manifest(output), read_plan(output)
    if manifest is None or plan is None:
        raise UserError(f"{output}: no finished data set there (no manifest.json); finish it first")
    check_tokens(output, manifest)
    check_parts(output, manifest)
    if "sampling" in plan.identity:
        raise UserError(f"{output}: its tokens were drawn from a prior; give one that vqgan tokenize made")
    if missing := missing_files(output, manifest):
        raise UserError(
            f"{output}: {counted(len(missing), 'file')} missing or damaged, such as {missing[0]}; "
            "run vqgan verify --repair first"
        )
    parts = parts_of(manifest_fields(output, manifest))
    for number in range(len(parts)):
        check_plan_tables(output, number)
    return FinishedSet(output, manifest, parts, plan.identity)


def config_of(output: str, given: Mapping[str, Any]) -> TokenizeConfig:
    """Returns the settings that a data set was made with, as its ``plan/run.yaml`` has them.

    Args:
      output: a local data set.
      given: settings that win over those; None leaves one as it is.

    Raises:
      UserError: there is no such file, or a codec or input is not there any more.
    """
    if not filesystems.exists(filesystems.join(output, f"{PLAN_FOLDER}/{RUN_FILE}")):
        raise UserError(
            f"{output}: there is no {PLAN_FOLDER}/{RUN_FILE} that tells how it was made; merged data sets "
            "have none: do this with those that were merged"
        )
    settings = read_settings(TokenizeOptions, output)
    settings |= {name: value for name, value in given.items() if value is not None}
    return TokenizeOptions(**{**settings, "output": output}).config()


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
        filesystems.make_folder(filesystems.join(output, plan_folder(self.number)))
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
    finished = open_finished(config.output)
    known = finished.entries(["key"]).column("key").to_pylist() if config.dedupe else []
    planned = plan_tokenize(config, frozenset(known))
    before, now = (
        {**shared_settings(identity), "dedupe": identity.get("dedupe", False)}
        for identity in (finished.identity, planned.plan.identity)
    )
    if changed := differences(before, now):
        raise UserError(f"{config.output}: other settings than it was made with ({'; '.join(changed)})")
    fresh = _new_entries(finished, planned.slices.entries)
    if not fresh.num_rows:
        return _nothing_to_do(finished, "the input has nothing that is not in it", config.quiet)
    speaker(config.quiet)(f"{counted(fresh.num_rows, 'image')} that {config.output} does not have")
    slices = cut(fresh, config.slice_size, planned.slices.order is not None)
    plan = make_plan(slices, {**settings_of(planned.plan.identity), "parent": finished.parent})
    return _carry_out(_part(finished, planned.config, plan, slices), planned.config, beam_args)


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
    return any(not isinstance(found, RejectRow) or found != known[found.key] for found in outcomes)


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


def checked_config(finished: FinishedSet, config: TokenizeConfig) -> TokenizeConfig:
    """Returns the settings with the kind of the source, which the data set tells.

    Raises:
      UserError: other settings than the data set was made with.
    """
    info, identity = read_info(config.codec), finished.identity
    finished.engine.check_installed()
    mine = {
        "codec": {"fingerprint": info.fingerprint, "config": to_dict(info.config)},
        "preprocessing": {"decode": to_dict(config.decode), "geometry": to_dict(config.geometry)},
        "dtype": config.dtype,
    }
    if changed := differences({name: identity[name] for name in mine}, mine):
        raise UserError(f"{finished.output}: other settings than it was made with ({'; '.join(changed)})")
    source = dataclasses.replace(config.source, kind=identity["source"]["kind"])
    return dataclasses.replace(config, source=source)


def _part(
    finished: FinishedSet, config: TokenizeConfig, plan: Plan, slices: Slices, retries: int = 0
) -> NewPart:
    task = make_task(config, plan, slices.sizes, finished.engine, len(finished.parts))
    made = "retry" if retries else "append"
    return NewPart(finished, AddPartJob(task, config.report, made, retries), plan, slices)


@contextlib.contextmanager
def owned(finished: FinishedSet) -> Iterator[None]:
    """Holds a data set while the block lasts, without what killed commands have left in it.

    Raises:
      UserError: another command is at work, or has been since the data set was opened.
    """
    with owning(finished.output) as alone:
        if read_manifest(finished.output) != finished.manifest:
            raise UserError(
                f"{finished.output}: another command has changed it meanwhile; run this one again"
            )
        filesystems.delete_temporaries(finished.output, 0.0 if alone else LEFTOVER_SECONDS, below=True)
        delete_superseded(finished.output, finished.manifest)
        yield


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
        what = "; ".join(differences(existing.identity, part.plan.identity))
        raise UserError(
            f"{output}: {folder} was begun by another command and is not finished ({what}); run that again, "
            f"or give it up by removing {folder} and files whose names end in -{folder.split('/')[1]}.parquet"
        )
