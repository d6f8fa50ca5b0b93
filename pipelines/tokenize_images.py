"""``vqgan tokenize``: an image corpus becomes Parquet token shards."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from pipelines.options.settings import COLUMNS_OUT, DTYPES, check_at_least_one
from pipelines.runners.beam_runs import codec_everywhere, everywhere, run_job, write_record
from transforms.images.crops import Geometry, count_views
from transforms.images.decode import DecodeConfig
from transforms.sharded.batching import fitted_batch_size, threads_here
from transforms.sharded.input_changes import InputChanges, input_changes
from transforms.sharded.plan import Plan, keys_file, make_plan, read_plan, write_plan
from transforms.sharded.run import missing_files, run_planned, speaker
from transforms.sharded.slices import Slices, check_keys, collect, cut
from transforms.sources import Source, SourceConfig, open_source
from transforms.sources.globs import EVERYTHING
from transforms.sources.locations import Location, locate
from transforms.sources.registry import left_out, recognise
from transforms.tokenizing.job import TokenizeJob, mark_duplicates
from transforms.tokenizing.shard import TokenizeTask, is_outdated
from vqgan import filesystems
from vqgan.codec_checkpoint import CodecInfo, read_info
from vqgan.config_json import to_dict
from vqgan.engines.choice import EngineChoice, resolve_engine
from vqgan.errors import UserError, counted
from vqgan.manifest import MANIFEST_FILE
from vqgan.shard_columns import LATENTS
from vqgan.shards import DATA_FOLDER, rejects_name, shard_name
from vqgan.token_layouts import latent_shape


@dataclasses.dataclass(frozen=True)
class TokenizeConfig:
    """All settings of a tokenize run.

    Attributes:
      source: where images come from.
      output: folder or URI of the data set.
      codec: path or name.
      geometry: size, crop and views.
      decode: limits and filters.
      slice_size: images per shard, at most.
      batch_size: images per device call.
      dtype: type that convolutions compute in.
      threads: readers and decoders per worker; None: one per core of it.
      dedupe: reject images whose bytes occur under another key.
      max_reject_rate: stop when a slice has a larger share of rejects; None: no limit.
      report: write ``report.html``.
      compilation_cache: workers keep what XLA compiles, see :mod:`vqgan.compilation_cache`.
      quiet: no progress.
      engine: what runs the codec's networks.
      columns_out: what rows have beside tokens, of :data:`pipelines.options.settings.COLUMNS_OUT`.
    """

    source: SourceConfig
    output: str
    codec: str
    geometry: Geometry
    decode: DecodeConfig
    slice_size: int = 4096
    batch_size: int = 32
    dtype: str = "float32"
    threads: int | None = None
    dedupe: bool = False
    max_reject_rate: float | None = None
    report: bool = True
    compilation_cache: bool = True
    quiet: bool = False
    engine: str = "jax"
    columns_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_at_least_one(self, ("slice_size", "batch_size", "threads"))
        if self.dtype not in DTYPES:
            raise UserError(f"--dtype {self.dtype}: known are {', '.join(DTYPES)}")
        if unknown := [name for name in self.columns_out if name not in COLUMNS_OUT]:
            raise UserError(f"--columns-out {unknown[0]}: known are {', '.join(COLUMNS_OUT)}")
        if self.max_reject_rate is not None and not 0 <= self.max_reject_rate <= 1:
            raise UserError(f"--max-reject-rate {self.max_reject_rate}: it must lie in [0, 1]")

    def for_codec(self, codec: CodecInfo) -> "TokenizeConfig":
        """Returns the settings with images of the codec's channels."""
        channels = codec.config.channels.of_files()
        return dataclasses.replace(
            self,
            source=dataclasses.replace(self.source, arrays=not channels.is_rgb),
            decode=dataclasses.replace(self.decode, channels=channels),
        )


@dataclasses.dataclass(frozen=True)
class PlannedTokenize:
    """A run, planned but not yet begun; see :class:`transforms.sharded.run.PlannedRun`."""

    config: TokenizeConfig
    codec: CodecInfo
    plan: Plan
    slices: Slices
    engine: EngineChoice

    folders = (DATA_FOLDER,)

    @property
    def output(self) -> str:
        return self.config.output

    @property
    def quiet(self) -> bool:
        return self.config.quiet

    @property
    def job(self) -> TokenizeJob:
        """What the mechanism drives."""
        return TokenizeJob(self.task, self.config.report)

    @property
    def task(self) -> TokenizeTask:
        """What workers need to know."""
        task = make_task(self.config, self.plan, self.slices.sizes, self.engine)
        return dataclasses.replace(task, copied=self._is_copied)

    @functools.cached_property
    def _is_copied(self) -> bool:
        # Asked for with every task, and each answer compares all entries of the plan.
        return self.changes().copied

    def write_plan(self) -> None:
        write_plan(self.output, self.plan, self.slices)

    def missing(self, manifest: Mapping[str, Any]) -> list[str]:
        return missing_files(self.output, manifest)

    def changes(self) -> InputChanges:
        if read_plan(self.output) is None:
            return InputChanges([], False)
        return input_changes(self.output, self.slices)

    def outdated(self, manifest: Mapping[str, Any]) -> list[str]:
        task, names = self.task, {entry["name"] for entry in manifest["rejects"]}
        numbers = (n for n in range(task.slices) if rejects_name(n, task.slices) in names)
        found = (shard_name(n, task.slices) for n in numbers if is_outdated(task, n))
        return list(itertools.islice(found, 1))

    def counts(self, manifest: Mapping[str, Any]) -> str:
        counts, codebook = manifest["counts"], manifest["codebook"]
        return (
            f"{counted(counts['images'], 'image')}, {counted(counts['rows'], 'row')}, "
            f"{counted(counts['rejects'], 'reject')}, {counted(len(manifest['shards']), 'shard')}, "
            f"{codebook['used']} of {codebook['size']} codes used"
        )


def make_task(
    config: TokenizeConfig, plan: Plan, sizes: Sequence[int] | np.ndarray, engine: EngineChoice, part: int = 0
) -> TokenizeTask:
    """Returns what workers need to know.

    Args:
      config: all settings.
      plan: of the part.
      sizes: how many entries each of its slices has.
      engine: what runs the codec's networks.
      part: of the data set.
    """
    return TokenizeTask(
        output=everywhere(config.output),
        source=dataclasses.replace(config.source, input=everywhere(config.source.input)),
        decode=config.decode,
        geometry=config.geometry,
        codec=codec_everywhere(config.codec),
        batch_size=fitted_batch_size(config.batch_size, np.asarray(sizes) * count_views(config.geometry)),
        dtype=config.dtype,
        threads=config.threads,
        plan_hash=plan.hash,
        slices=plan.slices,
        max_reject_rate=config.max_reject_rate,
        codec_name=config.codec,
        engine=engine,
        part=part,
        with_latents=LATENTS in config.columns_out,
    )


@dataclasses.dataclass(frozen=True)
class ListedInput:
    """What a run is planned from.

    Attributes:
      config: all settings, the kind of the source among them.
      source: opened.
      codec: its description.
      engine: what runs the codec's networks.
      entries: of the source, of :data:`transforms.sharded.slices.ENTRY_SCHEMA`.
    """

    config: TokenizeConfig
    source: Source
    codec: CodecInfo
    engine: EngineChoice
    entries: pa.Table


def plan_tokenize(config: TokenizeConfig, known: Collection[str] = ()) -> PlannedTokenize:
    """Reads the codec's description, lists the source and plans; writes nothing.

    Args:
      config: all settings.
      known: keys of images that are tokenized already: others are duplicates of them, not they of others.

    Raises:
      UserError: no codec, no input, no images in it, duplicate keys.
    """
    return plan_listed(list_input(config, known))


def list_input(config: TokenizeConfig, known: Collection[str] = ()) -> ListedInput:
    """Reads the codec's description, lists the source; arguments and errors are :func:`plan_tokenize`'s."""
    codec = read_info(config.codec)
    config = config.for_codec(codec)
    codec.config.grid(*config.geometry.shape)
    engine = resolve_engine(config.engine, codec.config)
    _check_apart(config.source.input, config.output)
    kind = config.source.kind or recognise(config.source.input, config.source.arrays)
    config = dataclasses.replace(config, source=dataclasses.replace(config.source, kind=kind))
    source = open_source(config.source)
    if note := left_out(config.source.input, kind):
        speaker(config.quiet)(note)
    entries = collect(source.list(), source.fields())
    if not entries.num_rows:
        raise UserError(_without_images(config.source))
    check_keys(entries, config.source.kind)
    if config.dedupe:
        entries = mark_duplicates(source, entries, threads_here(config.threads), known)
    return ListedInput(config, source, codec, engine, entries)


def plan_listed(listed: ListedInput, identity: Mapping[str, Any] | None = None) -> PlannedTokenize:
    """Plans the tokenizing of listed entries; writes nothing.

    Args:
      listed: what is tokenized.
      identity: what else identifies the plan, as JSON data.
    """
    config, source, codec, engine = listed.config, listed.source, listed.codec, listed.engine
    slices = cut(listed.entries, config.slice_size, source.shuffles)
    settings = {
        "codec": {"fingerprint": codec.fingerprint, "config": to_dict(codec.config)},
        "preprocessing": {"decode": to_dict(config.decode), "geometry": to_dict(config.geometry)},
        "source": {
            "kind": config.source.kind,
            "image_column": config.source.image_column,
            "label_column": config.source.label_column,
            "columns": [f"{field.name}: {field.type}" for field in source.fields()],
            "class_names": source.class_names(),
        },
        "slice_size": config.slice_size,
        "dtype": config.dtype,
        "dedupe": config.dedupe,
        **engine.identity(),
        **_latents_identity(config, codec, engine),
        **(identity or {}),
    }
    return PlannedTokenize(config, codec, make_plan(slices, settings), slices, engine)


def _latents_identity(config: TokenizeConfig, codec: CodecInfo, engine: EngineChoice) -> dict[str, Any]:
    """Returns the part of the latents in a plan's identity; none where there are no latents, as ever."""
    if LATENTS not in config.columns_out:
        return {}
    engine.require_latents()
    model = codec.config
    grid = model.grid(*config.geometry.shape)
    return {LATENTS: list(latent_shape(model.layout, grid, model.embed_dim, model.scales))}


def run_tokenize(config: TokenizeConfig, beam_args: Sequence[str], record: bytes = b"") -> dict[str, Any]:
    """Makes a data set, or continues one that was interrupted.

    Args:
      config: all settings.
      beam_args: flags for Beam.
      record: the settings as a file, for the output.

    Returns:
      The manifest.

    Raises:
      UserError: whatever the user can put right.
    """
    if config.output == "":
        raise UserError("--output is empty: give a folder")
    return carry_out(plan_tokenize(config), beam_args, record)


def carry_out(planned: PlannedTokenize, beam_args: Sequence[str], record: bytes) -> dict[str, Any]:
    """Carries out a planned run, or continues it; arguments, result and errors are :func:`run_tokenize`'s."""
    config = planned.config

    def execute() -> None:
        write_record(config.output, record)
        _run_pipeline(planned, beam_args)

    manifest = run_planned(planned, execute)
    if agreement := manifest.get("agreement_with_float32"):
        speaker(config.quiet)(
            f"{config.dtype}: {agreement['share']:.2%} of the tokens of "
            f"{counted(agreement['images'], 'image')} are those of float32"
        )
    return manifest


def _without_images(source: SourceConfig) -> str:
    """Returns what to say of an input in which there is nothing."""
    if source.kind == "folder":
        hint = "no files but hidden ones, if any; give the folder that they lie in or below"
    else:
        hint = f"it was taken for one of kind {source.kind}; --input-kind takes it for another"
    return f"{source.input}: there are no images in it ({hint})"


def _run_pipeline(planned: PlannedTokenize, beam_args: Sequence[str]) -> None:
    plan, fingerprint = planned.plan, planned.codec.fingerprint[:12]
    what = f"{counted(plan.entries, 'image')} in {counted(plan.slices, 'slice')}"
    assumed = planned.codec.card.get("origin", {}).get("assumed")
    told = f", assumed: {assumed}" if assumed else ""
    speaker(planned.quiet)(f"{what}, codec {fingerprint}{told}{planned.engine.told(planned.config.engine)}")
    run_job(planned.job, plan, beam_args, planned.quiet, planned.config.compilation_cache)


def _check_apart(source: str, output: str) -> None:
    """Refuses an output inside the input: the next run would take its files for images."""
    if source.startswith("tfds:"):
        return
    location = locate(source)
    filesystem, inner = filesystems.resolve(output)
    if filesystem != location.filesystem:
        return
    local = isinstance(filesystem, fs.LocalFileSystem)
    inner, root = (os.path.realpath(path) if local else path for path in (inner, location.root))
    folders = os.path.relpath(inner, root).split("/")
    written = (MANIFEST_FILE, keys_file(0), shard_name(0, 1))
    if folders[0] != ".." and any(_takes(location, [*folders, *name.split("/")]) for name in written):
        raise UserError(f"{output}: lies inside the input {source}; choose an output beside it")


def _takes(location: Location, parts: Sequence[str]) -> bool:
    """Tells whether an input takes in the file of this path below its root."""
    state = location.globs.start()
    for part in parts:
        state = location.globs.step(state, part)
    named = any(tuple(parts[: len(name)]) == name for name in location.names)
    return named or state is EVERYTHING
