"""``vqgan sample``: token shards drawn from a prior, their pictures, and a contact sheet."""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipelines.planned_runs import check_same_plan, finished_manifest, make_folders, missing_files, speaker
from transforms import progress
from transforms.inference import load_codec
from transforms.manifest import build_manifest, total
from transforms.plan import Plan, cut, make_plan, read_plan, write_plan
from transforms.sampling import (
    PICTURES_FOLDER,
    Draw,
    Guides,
    SampleJob,
    make_sampled_shard,
    read_pictures,
    sample_entries,
    write_png,
)
from vqgan import filesystems
from vqgan.checkpoint import CodecInfo, read_info
from vqgan.config import to_dict
from vqgan.errors import UserError
from vqgan.manifest import write_manifest
from vqgan.prior.checkpoint import PriorInfo, read_prior, require_codec
from vqgan.prior.request import UNKNOWN
from vqgan.prior.sampling_config import SamplingConfig
from vqgan.shards import ShardMetadata

if TYPE_CHECKING:
    from vqgan.data.tokens import TokenSet

SHEET_FILE = "sheet.png"
SHEET_SAMPLES = 64
SHEET_COLUMNS = 8
NO_CLASS = "none"
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class GivenTokens:
    """Tokens that samples start from.

    Attributes:
      tokens: a token data set; sample i takes its row i.
      keep_rows: rows of the grid, from the top, that are given; None where ``inpaint`` says what is not.
      inpaint: top, left, bottom and right of the region of the grid that is sampled, the rest being given.
    """

    tokens: str
    keep_rows: int | None = None
    inpaint: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        if (self.keep_rows is None) == (self.inpaint is None):
            raise UserError("--given: say what of it is given, by --keep-rows or by --inpaint")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """All settings of a run.

    Attributes:
      prior: folder of a prior, or of the run that has trained it.
      output: folder or URI of the data set.
      count: number of samples.
      codec: renders the pictures; None for the one that the prior names.
      classes: names or numbers, taken in turn; ``none`` for no class; empty for all of the prior's.
      seed: of the first sample; the others follow.
      settings: how tokens are drawn.
      grid: ``(h, w)`` in tokens, where larger than the prior's.
      given: tokens that samples start from.
      condition: token data set with the condition grids.
      batch_size: samples drawn together.
      slice_size: samples per shard, at most.
      dtype: type of activations.
      pictures: render pictures and the sheet.
      quiet: no progress.
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
    batch_size: int = 16
    slice_size: int = 256
    dtype: str = "float32"
    pictures: bool = True
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.output == "":
            raise UserError("--output is empty: give a folder")
        for name in ("count", "batch_size", "slice_size"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} {getattr(self, name)}: it must be at least 1")
        if not 0 <= self.seed <= 2**32 - self.count:
            raise UserError(f"--seed {self.seed}: seeds of all samples must lie in [0, 2^32)")
        if self.dtype not in DTYPES:
            raise UserError(f"--dtype {self.dtype}: known are {', '.join(DTYPES)}")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run, planned but not yet begun: nothing has been written."""

    config: SampleConfig
    prior: PriorInfo
    codec: CodecInfo
    plan: Plan
    slices: list[pa.Table]
    guides: Guides

    @property
    def grid(self) -> tuple[int, int]:
        """``(h, w)`` of every sample."""
        return self.config.grid or self.prior.config.grid

    @property
    def job(self) -> SampleJob:
        """What is needed to make a shard."""
        factor = self.codec.config.downsampling
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
        )
        config = self.config
        size = (self.grid[0] * factor, self.grid[1] * factor)
        return SampleJob(
            config.output, metadata, config.settings, config.seed, self.guides, size, config.batch_size
        )


def run(config: SampleConfig) -> dict[str, Any]:
    """Samples a data set, or continues one that was interrupted; gives its manifest.

    Raises:
      UserError: whatever the user can put right.
    """
    say = speaker(config.quiet)
    prepared = prepare(config)
    existing = read_plan(config.output)
    check_same_plan(config.output, existing, prepared.plan)
    if existing is not None:
        manifest = finished_manifest(
            config.output, lambda manifest: missing_files(config.output, manifest), _counts, say
        )
        if manifest is not None:
            return manifest
    make_folders(config.output)
    if config.pictures:
        _prepare_pictures(config.output)
    if existing is None:
        write_plan(config.output, prepared.plan, prepared.slices)
    manifest = _sample_slices(prepared)
    say(f"{config.output}: {_counts(manifest)}")
    return manifest


def prepare(config: SampleConfig) -> Prepared:
    """Reads the prior's and the codec's descriptions and plans; writes nothing.

    Raises:
      UserError: no prior or codec, a codec that the prior does not belong to, unknown classes, tokens or
        a condition that do not fit.
    """
    prior = read_prior(config.prior)
    codec = _codec(config, prior)
    _check_grid(config, prior)
    _check_settings(config, prior)
    given, condition = _open_given(config, prior), _open_condition(config, prior)
    guides = Guides(
        _known(config, given), None if condition is None else _first_rows(condition, config.count)
    )
    labels = class_numbers(prior, config.classes)
    entries = sample_entries(config.count, config.seed, labels)
    slices = cut(entries, config.slice_size, shuffles=False)
    settings = {
        "codec": {"fingerprint": codec.fingerprint, "config": to_dict(codec.config)},
        "preprocessing": {},
        "source": {"kind": "prior", "class_names": list(prior.class_names)},
        "sampling": _sampling(config, prior, given, condition),
        "slice_size": config.slice_size,
        "pictures": {"decoder_sha256": codec.decoder_sha256} if config.pictures else {},
    }
    return Prepared(config, prior, codec, make_plan(slices, settings), slices, guides)


def _codec(config: SampleConfig, prior: PriorInfo) -> CodecInfo:
    """The codec that renders a prior's tokens."""
    name = config.codec or prior.codec.name
    try:
        codec = read_info(name)
    except UserError as error:
        if config.codec:
            raise
        raise UserError(
            f"{config.prior} names a codec that is not to be had ({error}); give --codec"
        ) from error
    require_codec(prior, codec.fingerprint, name)
    return codec


def class_numbers(prior: PriorInfo, classes: Sequence[str]) -> list[int | None]:
    """Numbers of classes given by name or number; None is no class.

    Raises:
      UserError: the prior has no classes, or none of that name.
    """
    count = prior.config.classes
    if not classes:
        return list(range(count)) if count else [None]
    return [_class_number(prior, name) for name in classes]


def _class_number(prior: PriorInfo, name: str) -> int | None:
    count = prior.config.classes
    if name == NO_CLASS:
        return None
    if not count:
        raise UserError(f"--class {name}: this prior was trained without classes; leave it out")
    if name in prior.class_names:
        return prior.class_names.index(name)
    if name.isdecimal() and int(name) < count:
        return int(name)
    near = difflib.get_close_matches(name, prior.class_names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give a number from 0 to {count - 1}, or {NO_CLASS}"
    raise UserError(f"--class {name}: there is no such class; {hint}")


def _sampling(
    config: SampleConfig, prior: PriorInfo, given: "TokenSet | None", condition: "TokenSet | None"
) -> dict[str, Any]:
    """What samples depend on beside their seeds and classes, as JSON data; data sets by their plans."""
    start = None
    if config.given is not None and given is not None:
        plan_hash = given.manifest["plan_hash"]
        region = config.given.inpaint
        start = {
            "plan_hash": plan_hash,
            "keep_rows": config.given.keep_rows,
            "inpaint": None if region is None else list(region),
        }
    return {
        "prior": {"fingerprint": prior.fingerprint, "config": to_dict(prior.config)},
        "settings": to_dict(config.settings),
        "first_seed": config.seed,
        "grid": list(config.grid or prior.config.grid),
        "given": start,
        "condition": None if condition is None else condition.manifest["plan_hash"],
        "dtype": config.dtype,
    }


def _check_grid(config: SampleConfig, prior: PriorInfo) -> None:
    if config.grid is None:
        return
    h, w = prior.config.grid
    if config.grid[0] < h or config.grid[1] < w:
        raise UserError(
            f"--grid {config.grid[0]}x{config.grid[1]}: the prior was trained on {h}x{w}; give at least that"
        )
    if prior.config.kind == "masked" or config.given is not None or config.condition is not None:
        raise UserError(
            "--grid: larger pictures are sampled by an autoregressive prior, without --given and --condition"
        )


def _check_settings(config: SampleConfig, prior: PriorInfo) -> None:
    from vqgan.prior.request import check_settings

    check_settings(prior.config, config.settings)
    if config.given is not None and config.given.inpaint is not None and prior.config.kind != "masked":
        raise UserError(
            "--inpaint: an autoregressive prior only continues from the top; use --keep-rows, or train a "
            "masked prior"
        )


def _open_given(config: SampleConfig, prior: PriorInfo) -> "TokenSet | None":
    if config.given is None:
        return None
    from vqgan.data.tokens import open_tokens

    return open_tokens(config.given.tokens, fingerprint=prior.codec.fingerprint, grid=prior.config.grid)


def _known(config: SampleConfig, tokens: "TokenSet | None") -> np.ndarray | None:
    """Given tokens ``[N, L]``, -1 where they are to be sampled."""
    given = config.given
    if given is None or tokens is None:
        return None
    h, w = tokens.grid
    known = _first_rows(tokens, config.count).reshape(-1, h, w)
    if given.keep_rows is not None:
        if not 0 < given.keep_rows < h:
            raise UserError(f"--keep-rows {given.keep_rows}: the grid has {h} rows; give 1 to {h - 1}")
        known[:, given.keep_rows :] = UNKNOWN
    else:
        assert given.inpaint is not None  # one of the two is there
        top, left, bottom, right = given.inpaint
        if not (0 <= top < bottom <= h and 0 <= left < right <= w):
            raise UserError(
                f"--inpaint {top},{left},{bottom},{right}: top, left, bottom and right must lie in the "
                f"{h}x{w} grid"
            )
        known[:, top:bottom, left:right] = UNKNOWN
    return known.reshape(len(known), -1)


def _open_condition(config: SampleConfig, prior: PriorInfo) -> "TokenSet | None":
    if (config.condition is None) != (prior.config.condition_length == 0):
        needed = "needs" if prior.config.condition_length else "was trained without"
        raise UserError(f"--condition: this prior {needed} a condition grid")
    if config.condition is None:
        return None
    from vqgan.data.tokens import called, open_tokens

    tokens = open_tokens(config.condition, grid=prior.config.condition_grid)
    if tokens.codebook_size != prior.config.condition_codebook_size:
        raise UserError(
            f"{config.condition}: its codebook has {tokens.codebook_size} codes, the prior's condition "
            f"{prior.config.condition_codebook_size}"
        )
    trained = prior.card.get("data", {}).get("condition_codec", {})
    if trained.get("fingerprint", tokens.fingerprint) != tokens.fingerprint:
        raise UserError(
            f"{config.condition}: its tokens were made by codec "
            f"{called(tokens.fingerprint, str(tokens.codec.get('name') or ''))}, the prior's condition by "
            f"{called(trained['fingerprint'], str(trained.get('name') or ''))}; give tokens of that codec"
        )
    return tokens


def _first_rows(tokens: "TokenSet", count: int) -> np.ndarray:
    """The first rows of a token data set, int32 ``[N, L]`` with N at most ``count``."""
    from vqgan.data.tokens import all_batches

    found: list[np.ndarray] = []
    for batch in all_batches(tokens, min(count, 1024)):
        found.append(batch.tokens)
        if sum(map(len, found)) >= count:
            break
    return np.concatenate(found)[:count].astype(np.int32)


def _sample_slices(prepared: Prepared) -> dict[str, Any]:
    """Makes every shard, then the sheet and, last, the manifest."""
    config, job = prepared.config, prepared.job
    codec = load_codec(str(_codec_name(prepared)), config.batch_size, "float32") if config.pictures else None
    shown = progress.Progress(config.count, quiet=config.quiet)
    draw = _drawing(prepared)
    try:
        summaries = [
            make_sampled_shard(job, number, draw, codec, shown) for number in range(prepared.plan.slices)
        ]
    finally:
        shown.close()
    described = {
        "name": _codec_name(prepared),
        "fingerprint": prepared.codec.fingerprint,
        "config": to_dict(prepared.codec.config),
        "card": dict(prepared.codec.card),
    }
    manifest = build_manifest(prepared.plan, total(summaries), described, prepared.grid)
    if config.pictures:
        _write_sheet(prepared)
    write_manifest(config.output, manifest)
    return manifest


def _codec_name(prepared: Prepared) -> str:
    return prepared.config.codec or prepared.prior.codec.name


def _drawing(prepared: Prepared) -> Draw:
    """What draws tokens: the prior at its own grid, or windows of it over a larger one."""
    import jax.numpy as jnp

    from vqgan.prior.loading import load_sampler
    from vqgan.prior.sampling import Sampler
    from vqgan.prior.windows import sample_large

    config = prepared.config
    sampler = load_sampler(prepared.prior, batch_size=config.batch_size, dtype=jnp.dtype(config.dtype))
    grid = config.grid
    if grid is None or grid == prepared.prior.config.grid:
        return sampler.sample
    assert isinstance(sampler, Sampler)  # checked before any work
    return lambda request, settings: sample_large(sampler, grid, request, settings)


def _write_sheet(prepared: Prepared) -> None:
    """``sheet.png``: the first samples; a column for each class where there are a few."""
    from vqgan.sheets import contact_sheet

    config = prepared.config
    classes = len(class_numbers(prepared.prior, config.classes))
    columns = classes if 2 <= classes <= 2 * SHEET_COLUMNS else SHEET_COLUMNS
    columns = min(columns, max(1, math.ceil(config.count)))
    shown = min(config.count, max(SHEET_SAMPLES // columns, 1) * columns)
    keys = [key for table in prepared.slices for key in table.column("key").to_pylist()][:shown]
    sheet = contact_sheet(read_pictures(config.output, keys), columns)
    write_png(filesystems.join(config.output, SHEET_FILE), sheet)


def _prepare_pictures(output: str) -> None:
    folder = filesystems.join(output, PICTURES_FOLDER)
    filesystems.make_folder(folder)
    filesystems.delete_temporaries(folder)


def _counts(manifest: Mapping[str, Any]) -> str:
    codebook = manifest["codebook"]
    return (
        f"{manifest['counts']['rows']} samples, {len(manifest['shards'])} shards, "
        f"{codebook['used']} of {codebook['size']} codes used"
    )
