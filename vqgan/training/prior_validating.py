"""Figures of a prior on held-back rows while it is trained, and a sheet of its samples."""

import math
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from vqgan.codec import Codec
from vqgan.functional import Arrays, Functional
from vqgan.prior.config import PriorConfig
from vqgan.prior.losses import validation_loss
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.request import Request
from vqgan.prior.sampling.sampler import PriorSampler
from vqgan.prior.transformer import Prior
from vqgan.sheets import contact_sheet
from vqgan.training import devices
from vqgan.training.loop import Evaluation
from vqgan.training.prior import gathered
from vqgan.training.prior_rows import PriorRows

Sheet = Callable[[Arrays], np.ndarray]
"""Parameters to a picture of samples, uint8 ``[H, W, 3]``."""


def make_evaluate(
    prior: Functional[Prior],
    mesh: Mesh,
    rows: PriorRows,
    batch_size: int,
    unigram: float,
    sheet: Sheet | None = None,
) -> Callable[[Arrays], Evaluation]:
    """A function from parameters to figures over all of ``rows``, and a sheet.

    Args:
      prior: structure of the model.
      mesh: devices, which share each batch.
      rows: held back, in host memory; none give no figures.
      batch_size: rows per device call; a multiple of the number of devices.
      unigram: entropy of the data set's codes in nats, which stands beside the loss.
      sheet: of samples, if pictures can be made of them.

    Returns:
      A function whose figures are ``loss`` (nats per token), ``bits`` and the entropy in both units.
    """

    @jax.jit
    def measure(params: Arrays, part: PriorRows, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        bound = prior.bind(gathered(params, mesh), {})
        return validation_loss(bound, part.tokens, part.labels, part.condition, valid)

    def evaluate(params: Arrays) -> Evaluation:
        nats = tokens = 0.0
        for part, valid in _full_batches(rows, batch_size):
            given = jax.tree.map(lambda leaf: devices.shard(leaf, mesh), (part, valid))
            found = measure(params, *given)
            nats, tokens = nats + float(found[0]), tokens + float(found[1])
        picture = None if sheet is None else sheet(params)
        figures = _figures(nats / tokens, unigram) if tokens else {}
        return Evaluation(figures, picture, "samples")

    return evaluate


def make_sheet(model: PriorConfig, codec: Codec, rows: PriorRows, count: int, seed: int) -> Sheet:
    """A function from parameters to a sheet of samples: always the same seeds, classes and conditions.

    Args:
      model: the prior's configuration.
      codec: that made the tokens.
      rows: where conditions are taken from, at least one row of a prior with a condition grid.
      count: pictures.
      seed: of the first; the others follow.
    """
    numbers = np.arange(count)
    seeds = ((seed + numbers) % (1 << 32)).astype(np.uint32)
    labels = (numbers * model.classes // count).astype(np.int32) if model.classes else None
    condition = None if rows.condition is None else rows.condition[numbers % len(rows.condition)]
    request = Request(seeds, labels, condition, None)
    sampler = PriorSampler(model, {}, batch_size=count)  # one: it compiles once

    def sheet(params: Arrays) -> np.ndarray:
        sampler.replace_params(jax.device_get(params))
        tokens = sampler.sample(request, SamplingConfig())
        sampler.release()  # training goes on without a second copy of the weights
        return contact_sheet(codec.decode(tokens))

    return sheet


def _figures(nats: float, unigram: float) -> dict[str, float]:
    bit = math.log(2)
    return {"loss": nats, "bits": nats / bit, "unigram": unigram, "unigram_bits": unigram / bit}


def _full_batches(rows: PriorRows, size: int) -> Iterator[tuple[PriorRows, np.ndarray]]:
    """All rows in batches of one size, and which rows of each count; the last is filled up by repetition."""
    for start in range(0, len(rows.tokens), size):
        at = np.minimum(np.arange(start, start + size), len(rows.tokens) - 1)
        valid = np.arange(start, start + size) < len(rows.tokens)
        yield rows.take(at), valid.astype(np.float32)
