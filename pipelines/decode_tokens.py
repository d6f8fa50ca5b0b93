"""``vqgan decode``: a token data set, tokenized or sampled, becomes images."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pyarrow import fs

from pipelines.options.settings import DTYPES, check_at_least_one
from pipelines.runners.beam_runs import codec_everywhere, everywhere, run_job, write_record
from transforms.decoding.image_format import FORMATS, VIEWS, ImageFormat
from transforms.decoding.index import folders, open_index
from transforms.decoding.job import DecodeJob
from transforms.decoding.manifest import lost_images
from transforms.decoding.plan import (
    Part,
    TokenInput,
    make_decode_plan,
    plan_parts,
    read_token_manifest,
    token_input,
    write_decode_plan,
)
from transforms.decoding.shard import DecodeTask
from transforms.sharded.batching import fitted_batch_size
from transforms.sharded.input_changes import InputChanges
from transforms.sharded.plan import Plan
from transforms.sharded.run import missing_files, run_planned, speaker
from vqgan import filesystems
from vqgan.codec_checkpoint import CodecInfo, read_info
from vqgan.engines.choice import EngineChoice, resolve_engine
from vqgan.errors import UserError, counted
from vqgan.manifest import IMAGES_KIND

__all__ = ["FORMATS", "DecodeTokensConfig", "PlannedDecode", "form_of", "plan_decode", "run_decode"]


@dataclasses.dataclass(frozen=True)
class DecodeTokensConfig:
    """All settings of a decode run.

    Attributes:
      tokens: folder or URI of a finished token data set, or ``hf://datasets/owner/name[@revision]``.
      output: folder or URI of the images.
      codec: path or name; None for the one that the data set names.
      form: how and where images are written.
      views: ``all``, or the ``first`` of each image.
      limit: decode no more rows than this; None for all.
      batch_size: grids per device call.
      dtype: type that convolutions compute in.
      threads: encoders of images per worker; None: one per core of it.
      report: write ``report.html``.
      compilation_cache: workers keep what XLA compiles, see :mod:`vqgan.compilation_cache`.
      quiet: no progress.
      engine: what runs the codec's networks.
    """

    tokens: str
    output: str
    codec: str | None = None
    form: ImageFormat = dataclasses.field(default_factory=ImageFormat)
    views: str = "all"
    limit: int | None = None
    batch_size: int = 32
    dtype: str = "float32"
    threads: int | None = None
    report: bool = True
    compilation_cache: bool = True
    quiet: bool = False
    engine: str = "jax"

    def __post_init__(self) -> None:
        check_at_least_one(self, ("batch_size", "threads", "limit"))
        for name, known in (("dtype", DTYPES), ("views", VIEWS)):
            if getattr(self, name) not in known:
                raise UserError(f"--{name} {getattr(self, name)}: known are {', '.join(known)}")
        for name in ("tokens", "output"):
            if not getattr(self, name):
                raise UserError(f"--{name} is empty: give a folder")


@dataclasses.dataclass(frozen=True)
class PlannedDecode:
    """A run, planned but not yet begun; see :class:`transforms.sharded.run.PlannedRun`."""

    config: DecodeTokensConfig
    codec: CodecInfo
    tokens: TokenInput
    plan: Plan
    parts: list[Part]
    engine: EngineChoice

    @property
    def output(self) -> str:
        return self.config.output

    @property
    def quiet(self) -> bool:
        return self.config.quiet

    @property
    def folders(self) -> tuple[str, ...]:
        return folders(self.config.form.container)

    @property
    def job(self) -> DecodeJob:
        """What the mechanism drives."""
        return DecodeJob(self.task, self.config.report)

    @property
    def task(self) -> DecodeTask:
        """What workers need to know."""
        config = self.config
        return DecodeTask(
            tokens=self.tokens._replace(path=everywhere(self.tokens.path)),
            output=everywhere(config.output),
            form=config.form,
            views=config.views,
            codec=codec_everywhere(config.codec or self.tokens.codec),
            batch_size=fitted_batch_size(config.batch_size, [part.planned for part in self.parts]),
            dtype=config.dtype,
            threads=config.threads,
            plan_hash=self.plan.hash,
            slices=self.plan.slices,
            codec_name=config.codec or self.tokens.codec,
            engine=self.engine,
        )

    def write_plan(self) -> None:
        write_decode_plan(self.output, self.plan, self.parts)

    def missing(self, manifest: Mapping[str, Any]) -> list[str]:
        """Finds files that are gone; of images in files of their own also those of another size."""
        missing = missing_files(self.output, manifest, ("shards", "archives", "metadata", "rejects"))
        if self.config.form.container == "files":
            for entry in manifest["shards"]:
                if entry["name"] not in missing:
                    with open_index(self.output, entry["name"]) as index:
                        missing += lost_images(self.output, index)
        return missing

    def changes(self) -> InputChanges:
        """Returns nothing: shards are compared with their sums when they are read."""
        return InputChanges([], False)

    def outdated(self, manifest: Mapping[str, Any]) -> list[str]:
        """Returns nothing: whatever is rejected here stays so."""
        return []

    def counts(self, manifest: Mapping[str, Any]) -> str:
        counts, storage = manifest["counts"], manifest["storage"]
        return (
            f"{counted(counts['images'], 'image')}, {counted(counts['rejects'], 'reject')}, "
            f"{counted(len(manifest['shards']), 'slice')}, "
            f"{storage['image_bytes'] / 1e6:.1f} MB"
        )


def form_of(chosen: str, image_format: str | None, quality: int | None) -> ImageFormat:
    """Returns the form that ``--format``, ``--image-format`` and ``--quality`` describe.

    Raises:
      UserError: they contradict each other.
    """
    if chosen in ("tar", "parquet"):
        return ImageFormat(chosen, image_format or "png", quality)
    if image_format not in (None, chosen):
        raise UserError(
            f"--image-format {image_format}: is for tar and parquet; give --format {image_format}"
        )
    return ImageFormat("files", chosen, quality)


def plan_decode(config: DecodeTokensConfig) -> PlannedDecode:
    """Opens the token data set and its codec, checks both, and plans; writes nothing.

    Raises:
      UserError: no finished data set, a shard that is not the manifest's, no codec or another one, or one
        without a decoder.
    """
    manifest = read_token_manifest(config.tokens)
    tokens = token_input(config.tokens, manifest)
    _check_apart(tokens.folder, config.output)
    codec = _open_codec(config, tokens)
    codec.require_decoder("give one of the same tokens that has one with --codec")
    engine = resolve_engine(config.engine, codec.config)
    config.form.check_size(*codec.config.image_shape(tokens.grid))
    config.form.check_channels(codec.config.channels)
    parts = plan_parts(tokens, manifest["shards"], config.views, config.limit)
    settings = {
        "kind": IMAGES_KIND,
        "codec": {
            "fingerprint": codec.fingerprint,
            "decoder_sha256": codec.decoder_sha256,
            "quantizer_sha256": codec.quantizer_sha256,
        },
        "form": dataclasses.asdict(config.form),
        "views": config.views,
        "limit": config.limit,
        "dtype": config.dtype,
        **engine.identity(),
        # Of the images behind the tokens, for people: their plan's hash stands for it already.
        "preprocessing": manifest.get("identity", {}).get("preprocessing", {}),
    }
    plan = make_decode_plan(parts, settings, tokens.plan_hash)
    return PlannedDecode(config, codec, tokens, plan, parts, engine)


def run_decode(config: DecodeTokensConfig, beam_args: Sequence[str], record: bytes = b"") -> dict[str, Any]:
    """Makes the images of a token data set, or continues a run that was interrupted.

    Args:
      config: all settings.
      beam_args: flags for Beam.
      record: the settings as a file, for the output.

    Returns:
      The manifest.

    Raises:
      UserError: whatever the user can put right.
    """
    planned = plan_decode(config)

    def execute() -> None:
        write_record(config.output, record)
        _run_pipeline(planned, beam_args)

    return run_planned(planned, execute)


def _run_pipeline(planned: PlannedDecode, beam_args: Sequence[str]) -> None:
    plan, fingerprint = planned.plan, planned.codec.fingerprint[:12]
    what = f"{counted(plan.entries, 'row')} of tokens in {counted(plan.slices, 'slice')}"
    speaker(planned.quiet)(f"{what}, codec {fingerprint}{planned.engine.told(planned.config.engine)}")
    run_job(planned.job, plan, beam_args, planned.quiet, planned.config.compilation_cache)


def _open_codec(config: DecodeTokensConfig, tokens: TokenInput) -> CodecInfo:
    """Returns the codec that was given, or the one that the data set names."""
    name, made = config.codec or tokens.codec, f"{tokens.codec} ({tokens.fingerprint[:12]})"
    try:
        codec = read_info(name)
    except UserError as error:
        if config.codec is not None:
            raise
        raise UserError(
            f"{config.tokens}: its codec {made} cannot be opened from here; give it with --codec"
        ) from error
    if codec.fingerprint != tokens.fingerprint:
        raise UserError(
            f"{config.tokens}: its tokens were made by codec {made}, not by {name} "
            f"({codec.fingerprint[:12]}); give the codec that made them with --codec"
        )
    return codec


def _check_apart(tokens: str, output: str) -> None:
    """Refuses to write into the folder of the tokens: both have a plan and a manifest."""
    places = []
    for path in (tokens, output):
        filesystem, inner = filesystems.resolve(path)
        local = isinstance(filesystem, fs.LocalFileSystem)
        places.append((filesystem.type_name, os.path.realpath(inner) if local else inner.rstrip("/")))
    if places[0] == places[1]:
        raise UserError(f"{output}: is the folder of the tokens themselves; choose another output")
