"""``vqgan sample``: token shards drawn from a prior, their images, and an image grid."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.options.settings import DTYPES, check_at_least_one
from pipelines.runners.beam_runs import write_record
from pipelines.sampling.given_tokens import (
    GivenText,
    GivenTokens,
    check_drawing,
    first_rows,
    known_tokens,
    open_condition,
    open_given,
    open_text,
)
from transforms.decoding.image_format import ImageFormat
from transforms.sampling.job import SampleJob
from transforms.sampling.shard import (
    GRID_FILE,
    IMAGE_LIST,
    IMAGES_FOLDER,
    Draw,
    Guides,
    SampleTask,
    SamplingModel,
    first_tokens,
    missing_images,
    sample_entries,
    write_png,
)
from transforms.sharded import progress
from transforms.sharded.batching import load_codec
from transforms.sharded.input_changes import InputChanges
from transforms.sharded.job import make_all
from transforms.sharded.plan import Plan, make_plan, write_plan
from transforms.sharded.run import missing_files, run_planned, speaker
from transforms.sharded.slices import Slices, cut
from vqgan import filesystems
from vqgan.codec_checkpoint import CodecInfo, read_info
from vqgan.config_json import to_dict
from vqgan.data.tokens import TokenSet
from vqgan.engines.choice import EngineChoice, resolve_engine
from vqgan.errors import UserError, counted
from vqgan.prior.checkpoint import PriorInfo, class_numbers, read_prior, require_codec
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.request import Request
from vqgan.shards import DATA_FOLDER, ShardMetadata
from vqgan.token_layouts import GRID, layout_of

if TYPE_CHECKING:
    from vqgan.codec import Codec


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """All settings of a run.

    Attributes:
      prior: folder of a prior, or of the run that has trained it.
      output: folder or URI of the data set.
      count: number of samples.
      codec: renders the images; None for the one that the prior names.
      classes: names or numbers, taken in turn; ``none`` for no class; empty for all of the prior's.
      seed: of the first sample; the others follow.
      settings: how tokens are drawn.
      grid: ``(h, w)`` in tokens, where larger than the prior's.
      given: tokens that samples start from.
      condition: token data set with the condition grids.
      text: prompts or vectors.
      batch_size: samples drawn together.
      slice_size: samples per shard, at most.
      dtype: type of activations.
      images: render an image of each sample, and a grid of the first ones.
      quiet: no progress.
      engine: what runs the codec's networks.
    """

    prior: str
    output: str
    count: int
    codec: str | None = None
    classes: tuple[str, ...] = ()
    seed: int = 0
    settings: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    grid: tuple[int, int] | None = None
    given: GivenTokens | None = None
    condition: str | None = None
    text: GivenText = dataclasses.field(default_factory=GivenText)
    batch_size: int = 16
    slice_size: int = 256
    dtype: str = "float32"
    images: bool = True
    quiet: bool = False
    engine: str = "jax"

    def __post_init__(self) -> None:
        if self.output == "":
            raise UserError("--output is empty: give a folder")
        check_at_least_one(self, ("count", "batch_size", "slice_size"))
        last = self.seed + self.count - 1
        if not 0 <= self.seed <= last < 2**32:
            raise UserError(
                f"--seed {self.seed} --count {self.count}: seeds follow one another and must lie in [0, 2^32)"
            )
        if self.dtype not in DTYPES:
            raise UserError(f"--dtype {self.dtype}: known are {', '.join(DTYPES)}")


@dataclasses.dataclass(frozen=True)
class PlannedSample:
    """A run, planned but not yet begun; see :class:`transforms.sharded.run.PlannedRun`."""

    config: SampleConfig
    prior: PriorInfo
    codec: CodecInfo
    plan: Plan
    slices: Slices
    guides: Guides
    engine: EngineChoice

    @property
    def output(self) -> str:
        return self.config.output

    @property
    def quiet(self) -> bool:
        return self.config.quiet

    @property
    def folders(self) -> tuple[str, ...]:
        return (DATA_FOLDER, IMAGES_FOLDER) if self.config.images else (DATA_FOLDER,)

    @property
    def grid(self) -> tuple[int, int]:
        """``(h, w)`` of every sample."""
        return self.config.grid or self.prior.config.grid

    @property
    def keys(self) -> list[str]:
        """Of all samples, in order."""
        return [key for table in self.slices for key in table.column("key").to_pylist()]

    @property
    def task(self) -> SampleTask:
        """What is needed to make a shard."""
        metadata = ShardMetadata(
            fingerprint=self.codec.fingerprint,
            codec_config=to_dict(self.codec.config),
            codec_origin=dict(self.codec.card.get("origin", {})),
            grid=self.grid,
            codebook_size=self.codec.config.codebook_size,
            preprocessing={},
            plan_hash=self.plan.hash,
            slice_number=0,
            slices=self.plan.slices,
            planned=0,
            sampling=self.plan.identity["sampling"],
            layout=self.codec.config.layout,
        )
        config = self.config
        size = self.codec.config.image_shape(self.grid)
        return SampleTask(
            config.output, metadata, config.settings, config.seed, self.guides, size, config.batch_size
        )

    def write_plan(self) -> None:
        write_plan(self.output, self.plan, self.slices)

    def missing(self, manifest: Mapping[str, Any]) -> list[str]:
        missing = missing_files(self.output, manifest)
        if self.config.images:
            missing += missing_images(self.output, self.keys)
            beside = (GRID_FILE, IMAGE_LIST)
            sizes = filesystems.sizes_of(self.output, beside)
            missing += [name for name, size in zip(beside, sizes, strict=True) if size is None]
        return missing

    def changes(self) -> InputChanges:
        """Returns nothing: there is no input."""
        return InputChanges([], False)

    def outdated(self, manifest: Mapping[str, Any]) -> list[str]:
        """Returns nothing: samples are never rejected."""
        return []

    def counts(self, manifest: Mapping[str, Any]) -> str:
        codebook = manifest["codebook"]
        return (
            f"{counted(manifest['counts']['rows'], 'sample')}, {counted(len(manifest['shards']), 'shard')}, "
            f"{codebook['used']} of {codebook['size']} codes used"
        )


def plan_sample(config: SampleConfig) -> PlannedSample:
    """Reads the prior's and the codec's descriptions and plans; writes nothing.

    Raises:
      UserError: no prior or codec, a codec that the prior does not belong to, unknown classes, tokens or
        a condition that do not fit.
    """
    prior = read_prior(config.prior)
    codec = _codec(config, prior)
    engine = resolve_engine(config.engine, codec.config)
    _check_grid(config, prior)
    check_drawing(prior, config.settings, config.classes, config.text)
    given = None if config.given is None else open_given(config.given, prior)
    condition = open_condition(config.condition, prior)
    known = None
    if config.given is not None and given is not None:
        known = known_tokens(config.given, given, config.count)
    text = open_text(config.text, prior)
    guides = Guides(known, None if condition is None else first_rows(condition, config.count), text)
    labels = class_numbers(prior, config.classes)
    entries = sample_entries(config.count, config.seed, labels)
    slices = cut(entries, config.slice_size, shuffles=False)
    settings = {
        "codec": {"fingerprint": codec.fingerprint, "config": to_dict(codec.config)},
        "preprocessing": {},
        "source": {"kind": "prior", "class_names": list(prior.class_names)},
        "sampling": _sampling(config, prior, given, condition)
        | ({} if text is None else {"text": text.sha256}),
        "slice_size": config.slice_size,
        "pictures": _pictures(codec, engine) if config.images else {},
    }
    return PlannedSample(config, prior, codec, make_plan(slices, settings), slices, guides, engine)


def _pictures(codec: CodecInfo, engine: EngineChoice) -> dict[str, Any]:
    """Gives what images depend on beside their tokens, as JSON data."""
    return {"decoder_sha256": codec.decoder_sha256, **engine.identity()}


def _codec(config: SampleConfig, prior: PriorInfo) -> CodecInfo:
    """Returns the codec that renders a prior's tokens."""
    name = config.codec or prior.codec.name
    try:
        codec = read_info(name)
    except UserError as error:
        if config.codec:
            raise
        unavailable = f"{config.prior} names a codec that is unavailable ({error}); give --codec"
        raise UserError(unavailable) from error
    require_codec(prior, codec.fingerprint, name)
    if config.images:
        codec.require_decoder("give --no-images, or one of the same tokens that has one with --codec")
        ImageFormat().check_channels(codec.config.channels)
    return codec


def _sampling(
    config: SampleConfig, prior: PriorInfo, given: TokenSet | None, condition: TokenSet | None
) -> dict[str, Any]:
    """Gives what samples depend on beside their seeds and classes, as JSON data; data sets by their plans."""
    start = None
    if config.given is not None and given is not None:
        start = config.given.identity(given.manifest["plan_hash"])
    return {
        "prior": {"fingerprint": prior.fingerprint, "config": to_dict(prior.config)},
        "settings": _settings(config, prior),
        "first_seed": config.seed,
        "grid": list(config.grid or prior.config.grid),
        "given": start,
        "condition": None if condition is None else condition.manifest["plan_hash"],
        "dtype": config.dtype,
    }


def _settings(config: SampleConfig, prior: PriorInfo) -> dict[str, Any]:
    """Returns the settings that this kind of prior looks at."""
    settings = to_dict(config.settings)
    if prior.config.kind != "masked":
        del settings["masked"]
    return settings


def _check_grid(config: SampleConfig, prior: PriorInfo) -> None:
    if config.grid is None or config.grid == prior.config.grid:
        return
    h, w = prior.config.grid
    if (layout := layout_of(prior.codec.config)) != GRID:
        raise UserError(f"--grid: the prior's tokens are no grid (layout {layout}); leave it out")
    if config.grid[0] < h or config.grid[1] < w:
        raise UserError(
            f"--grid {config.grid[0]}x{config.grid[1]}: the prior was trained on {h}x{w}; give at least that"
        )
    if prior.config.kind == "masked" or config.given is not None or config.condition is not None:
        raise UserError(
            f"--grid {config.grid[0]}x{config.grid[1]}: larger images are for autoregressive priors, "
            "without --given and --condition; leave those out, or the grid"
        )


GRID_SAMPLES = 64
GRID_COLUMNS = 8


def run_sample(config: SampleConfig, record: bytes = b"") -> dict[str, Any]:
    """Samples a data set, or continues one that was interrupted; returns its manifest.

    Args:
      config: all settings.
      record: the settings as a file, for the output.

    Raises:
      UserError: whatever the user can put right.
    """
    planned = plan_sample(config)

    def execute() -> None:
        write_record(config.output, record)
        _sample_slices(planned)

    return run_planned(planned, execute)


def _sample_slices(planned: PlannedSample) -> None:
    config, name = planned.config, _codec_name(planned)
    codec = load_codec(name, config.batch_size, "float32", planned.engine) if config.images else None
    described = {
        "name": name,
        "fingerprint": planned.codec.fingerprint,
        "config": to_dict(planned.codec.config),
        "card": dict(planned.codec.card),
    }
    shown = progress.Progress(config.count, quiet=config.quiet)
    job = SampleJob(
        task=planned.task,
        load=lambda: SamplingModel(_drawing(planned, shown), codec),
        codec=described,
        write_grid=None if codec is None else lambda: _write_grid(planned, codec),
        engine=planned.engine,
    )
    try:
        make_all(job, planned.plan, shown)
    finally:
        shown.close()


def _codec_name(planned: PlannedSample) -> str:
    return planned.config.codec or planned.prior.codec.name


def _drawing(planned: PlannedSample, shown: progress.Progress) -> Draw:
    """Returns what draws tokens: the prior at its own grid, or windows of it over a larger one."""
    import jax.numpy as jnp

    from vqgan.prior.sampling.sampler import load_sampler
    from vqgan.prior.sampling.sliding_window import describe_windows

    config, grid, window = planned.config, planned.grid, planned.prior.config.grid
    batch_size = config.batch_size
    if grid != window:
        # By windows, samples that only fill a batch up cost as much as the others: nearly all is arithmetic.
        batch_size = min(batch_size, config.count, config.slice_size)
        speaker(config.quiet)(f"{config.output}: {describe_windows(grid, window)}")
    sampler = load_sampler(planned.prior, batch_size=batch_size, dtype=jnp.dtype(config.dtype))

    def draw(request: Request, settings: SamplingConfig) -> np.ndarray:
        tell = functools.partial(shown.under_way, len(request.seeds), "tokens")
        return sampler.sample(request, settings, grid=grid, progress=None if grid == window else tell)

    return draw


def _write_grid(planned: PlannedSample, codec: "Codec") -> None:
    """Writes ``grid.png``: the first samples; a column for each class where there are a few."""
    from vqgan.image_grid import tile_images

    config = planned.config
    classes = config.text.count or len(class_numbers(planned.prior, config.classes))
    columns = classes if 2 <= classes <= 2 * GRID_COLUMNS else GRID_COLUMNS
    columns = min(columns, config.count)
    shown = min(config.count, max(GRID_SAMPLES // columns, 1) * columns)
    sheet = tile_images(codec.decode(first_tokens(planned.task, shown)), columns)
    write_png(filesystems.join(config.output, GRID_FILE), sheet)
