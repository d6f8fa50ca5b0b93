"""``vqgan sample``: token shards drawn from a prior, their pictures, and an image grid."""

from typing import TYPE_CHECKING, Any

from pipelines.sampling_plan import GRID_FILE, PlannedSample, SampleConfig, class_numbers, plan_sample
from transforms.sampling.job import SampleJob
from transforms.sampling.shard import Draw, SamplingModel, first_tokens, write_png
from transforms.sharded import progress
from transforms.sharded.codec_cache import load_codec
from transforms.sharded.job import make_all
from transforms.sharded.run import run_planned
from vqgan import filesystems
from vqgan.config import to_dict

if TYPE_CHECKING:
    from vqgan.codec import Codec

GRID_SAMPLES = 64
GRID_COLUMNS = 8


def run_sample(config: SampleConfig) -> dict[str, Any]:
    """Samples a data set, or continues one that was interrupted; returns its manifest.

    Raises:
      UserError: whatever the user can put right.
    """
    planned = plan_sample(config)
    return run_planned(planned, lambda: _sample_slices(planned))


def _sample_slices(planned: PlannedSample) -> None:
    config, name = planned.config, _codec_name(planned)
    codec = load_codec(name, config.batch_size, "float32") if config.pictures else None
    described = {
        "name": name,
        "fingerprint": planned.codec.fingerprint,
        "config": to_dict(planned.codec.config),
        "card": dict(planned.codec.card),
    }
    job = SampleJob(
        task=planned.task,
        load=lambda: SamplingModel(_drawing(planned), codec),
        codec=described,
        write_grid=None if codec is None else lambda: _write_grid(planned, codec),
    )
    shown = progress.Progress(config.count, quiet=config.quiet)
    try:
        make_all(job, planned.plan, shown)
    finally:
        shown.close()


def _codec_name(planned: PlannedSample) -> str:
    return planned.config.codec or planned.prior.codec.name


def _drawing(planned: PlannedSample) -> Draw:
    """What draws tokens: the prior at its own grid, or windows of it over a larger one."""
    import jax.numpy as jnp

    from vqgan.prior.sampling.sampler import load_sampler

    config = planned.config
    sampler = load_sampler(planned.prior, batch_size=config.batch_size, dtype=jnp.dtype(config.dtype))
    return lambda request, settings: sampler.sample(request, settings, grid=config.grid)


def _write_grid(planned: PlannedSample, codec: "Codec") -> None:
    """``sheet.png``: the first samples; a column for each class where there are a few."""
    from vqgan.image_grid import tile_images

    config = planned.config
    classes = len(class_numbers(planned.prior, config.classes))
    columns = classes if 2 <= classes <= 2 * GRID_COLUMNS else GRID_COLUMNS
    columns = min(columns, config.count)
    shown = min(config.count, max(GRID_SAMPLES // columns, 1) * columns)
    sheet = tile_images(codec.decode(first_tokens(planned.task, shown)), columns)
    write_png(filesystems.join(config.output, GRID_FILE), sheet)
