"""``vqgan tokenize --dry-run``: what a run would cost, from its plan and a few encoded batches."""

import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.data_sets.additions import only_new, plan_all
from pipelines.data_sets.bucket_plans import new_in_bucket, plan_buckets
from pipelines.runners.beam_runs import measure_graph
from pipelines.tokenize_images import PlannedTokenize, TokenizeConfig, plan_tokenize
from transforms.images.crops import count_views
from transforms.sharded.batching import load_codec
from transforms.sharded.rejects import RejectRow
from transforms.sharded.slices import entries_of
from transforms.sources import Entry, open_source
from transforms.tokenizing.shard import Item, batches, encode, read_and_decode
from vqgan.compilation_cache import enable_compilation_cache
from vqgan.image_sizes import ImageSize, describe_bucket

if TYPE_CHECKING:
    from vqgan.codec import Codec

SAMPLE_BATCHES = 3
OTHER_BYTES_PER_ROW = 64  # key, crop and the rest
NOTHING = {"images": 0}
MEGABYTES, SECONDS = "megabytes on disk, at most about", "seconds to expect"
SUMMED = ("images", "slices", "rows", MEGABYTES, SECONDS)


def estimate(config: TokenizeConfig, beam_args: Sequence[str] = (), append: bool = False) -> dict[str, Any]:
    """Plans and encodes the first few batches; writes and submits nothing.

    Args:
      config: all settings.
      beam_args: flags for Beam, known to be good; where there are some, the job graph is measured as well.
      append: only what the output does not have.

    Returns:
      Estimates as JSON data, in the order in which to print them.

    Raises:
      UserError: as a real run would.
    """
    return _estimate(only_new(plan_all(config))[1] if append else plan_tokenize(config), beam_args)


def estimate_buckets(
    config: TokenizeConfig, buckets: Sequence[ImageSize], beam_args: Sequence[str] = (), append: bool = False
) -> dict[str, dict[str, Any]]:
    """Returns the estimates for each bucket by its name, and what can be summed of them as ``all``.

    Arguments and errors are those of :func:`estimate` and of
    :func:`pipelines.data_sets.bucket_plans.plan_buckets`.
    """
    planned = plan_buckets(config, buckets, append)
    found = {
        name: _estimate(new_in_bucket(planned[name]), beam_args) if name in planned else NOTHING
        for name in map(describe_bucket, buckets)
    }
    sums = {name: round(sum(each.get(name, 0) for each in found.values()), 2) for name in SUMMED}
    return {**found, "all": sums}


def _estimate(planned: PlannedTokenize, beam_args: Sequence[str]) -> dict[str, Any]:
    config = planned.config
    if not planned.plan.entries:
        return dict(NOTHING)
    if config.compilation_cache:
        enable_compilation_cache()
    codec = load_codec(config.codec, planned.task.batch_size, config.dtype, planned.engine)
    views = count_views(config.geometry)
    sample = planned.slices[0].slice(0, max(1, SAMPLE_BATCHES * codec.batch_size // views))
    entries = entries_of(sample)
    rate, share = _sampled(planned, codec, entries)
    latents = planned.task.with_latents
    grid = codec.config.grid(*config.geometry.shape)
    rows = round(planned.plan.entries * (1 - share)) * views
    return {
        "images": planned.plan.entries,
        "slices": planned.plan.slices,
        "rows": rows,
        "tokens per row": math.prod(grid),
        MEGABYTES: round(rows * _row_bytes(codec, grid, latents) / 1e6, 2),
        "images per second": round(rate, 2),
        SECONDS: round(planned.plan.entries / rate, 1),
        "images sampled": len(entries),
        "share of rejects in the sample": round(share, 4),
        **({"kilobytes of the job graph": _graph_kilobytes(planned)} if beam_args else {}),
    }


def _sampled(planned: PlannedTokenize, codec: "Codec", entries: list[Entry]) -> tuple[float, float]:
    """Encodes some images; returns images per second and the share of rejects."""
    source = open_source(planned.config.source)
    rejected = 0

    def items() -> Iterator[Item]:
        nonlocal rejected
        for item in read_and_decode(planned.task, source, entries):
            if isinstance(item, RejectRow):
                rejected += 1
            else:
                yield item

    latents = planned.task.with_latents
    _compile(next(items(), None), codec, latents)
    rejected = 0
    started = time.monotonic()
    for _ in encode(batches(items(), codec.batch_size), codec, latents):
        pass
    rate = len(entries) / (time.monotonic() - started)
    return rate, rejected / len(entries)


def _row_bytes(codec: "Codec", grid: tuple[int, int], latents: bool) -> float:
    """Returns what a row takes at most: tokens of log2(K) bits, which encodings come close to, and more."""
    token_bytes = math.prod(grid) * math.log2(codec.config.codebook_size) / 8
    latent_bytes = 2 * math.prod(codec.latent_shape(grid)) if latents else 0
    return token_bytes + latent_bytes + OTHER_BYTES_PER_ROW


def _graph_kilobytes(planned: PlannedTokenize) -> float:
    return round(measure_graph(planned.job, planned.plan) / 1000, 1)


def _compile(item: Item | None, codec: "Codec", latents: bool) -> None:
    """Compiles the encoder outside of the measured time."""
    if item is not None:
        for _ in encode(batches(iter([item]), codec.batch_size), codec, latents):
            pass
