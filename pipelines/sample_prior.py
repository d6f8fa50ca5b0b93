"""``vqgan sample``: token shards drawn from a prior, their pictures, and a contact sheet."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.planned_runs import check_same_plan, finished_manifest, make_folders, missing_files, speaker
from pipelines.sampling_plan import Prepared, SampleConfig, class_numbers, prepare
from transforms import progress
from transforms.inference import load_codec
from transforms.manifest import build_manifest, finish_tokens, total
from transforms.plan import read_plan, write_plan
from transforms.sampling import (
    PICTURES_FOLDER,
    Draw,
    first_tokens,
    make_sampled_shard,
    missing_pictures,
    write_png,
)
from vqgan import filesystems
from vqgan.config import to_dict
from vqgan.shards import DATA_FOLDER

if TYPE_CHECKING:
    from vqgan.codec import Codec

SHEET_FILE = "sheet.png"
SHEET_SAMPLES = 64
SHEET_COLUMNS = 8


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
        manifest = finished_manifest(config.output, lambda found: _missing(prepared, found), _counts, say)
        if manifest is not None:
            return manifest
    if existing is None:
        write_plan(config.output, prepared.plan, prepared.slices)
    make_folders(config.output, DATA_FOLDER, *([PICTURES_FOLDER] if config.pictures else []))
    manifest = _sample_slices(prepared)
    say(f"{config.output}: {_counts(manifest)}")
    return manifest


def _missing(prepared: Prepared, manifest: Mapping[str, Any]) -> list[str]:
    """Files of a finished run that are gone."""
    output = prepared.config.output
    missing = missing_files(output, manifest)
    if prepared.config.pictures:
        missing += missing_pictures(output, prepared.keys)
        missing += [name for name in (SHEET_FILE,) if name not in filesystems.list_names(output)]
    return missing


def _sample_slices(prepared: Prepared) -> dict[str, Any]:
    """Makes every shard, then the sheet, the card and, last, the manifest."""
    config, job = prepared.config, prepared.job
    codec = load_codec(_codec_name(prepared), config.batch_size, "float32") if config.pictures else None
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
    if codec is not None:
        _write_sheet(prepared, codec)
    finish_tokens(config.output, manifest)
    return manifest


def _codec_name(prepared: Prepared) -> str:
    return prepared.config.codec or prepared.prior.codec.name


def _drawing(prepared: Prepared) -> Draw:
    """What draws tokens: the prior at its own grid, or windows of it over a larger one."""
    import jax.numpy as jnp

    from vqgan.prior.sampling.sampler import load_sampler

    config = prepared.config
    sampler = load_sampler(prepared.prior, batch_size=config.batch_size, dtype=jnp.dtype(config.dtype))
    return lambda request, settings: sampler.sample(request, settings, grid=config.grid)


def _write_sheet(prepared: Prepared, codec: "Codec") -> None:
    """``sheet.png``: the first samples; a column for each class where there are a few."""
    from vqgan.image_grid import tile_images

    config = prepared.config
    classes = len(class_numbers(prepared.prior, config.classes))
    columns = classes if 2 <= classes <= 2 * SHEET_COLUMNS else SHEET_COLUMNS
    columns = min(columns, config.count)
    shown = min(config.count, max(SHEET_SAMPLES // columns, 1) * columns)
    sheet = tile_images(codec.decode(first_tokens(prepared.job, shown)), columns)
    write_png(filesystems.join(config.output, SHEET_FILE), sheet)


def _counts(manifest: Mapping[str, Any]) -> str:
    codebook = manifest["codebook"]
    return (
        f"{manifest['counts']['rows']} samples, {len(manifest['shards'])} shards, "
        f"{codebook['used']} of {codebook['size']} codes used"
    )
