"""Metrics of a prior over validation rows, against sums by hand; rows of data sets put together."""

import dataclasses
import math
from typing import Any, cast

import jax
import numpy as np
import pytest
from flax import nnx

from vqgan.codec import Codec
from vqgan.functional import take_apart
from vqgan.prior.config import PriorConfig
from vqgan.prior.transformer import PriorTransformer
from vqgan.training.prior.prior_rows import PriorRows, join_rows
from vqgan.training.prior.run import make_prior_evaluation, make_sample_grid
from vqgan.training.sharding import data_mesh

CODES = 8
MODEL = PriorConfig(codebook_size=CODES, grid=(2, 2), classes=2, layers=1, heads=1, width=8, hidden=8)


def test_every_row_counts_once_whatever_the_batch() -> None:
    """A head of random weights on the prior's own features: the loss of each row, summed in NumPy."""
    prior = take_apart(lambda: PriorTransformer(MODEL, rngs=nnx.Rngs(0)))
    params, _ = prior.initial()
    rng = np.random.default_rng(0)
    params["head.kernel"] = jax.numpy.asarray(rng.standard_normal((8, CODES)), "float32")
    rows = PriorRows(rng.integers(0, CODES, (5, 4)).astype(np.int32), np.array([0, 1, -1, 1, 0], np.int32))
    classes = np.where(rows.labels < 0, MODEL.classes, rows.labels)
    logits = np.asarray(jax.jit(prior.bind(params, {}))(rows.tokens, classes), np.float64)  # (5, 4, K)
    chosen = np.take_along_axis(logits, rows.tokens[..., None], axis=-1)[..., 0]
    expected = float(np.mean(np.log(np.exp(logits).sum(axis=-1)) - chosen))

    found = make_prior_evaluation(prior, data_mesh(), rows, 4, 1.5)(
        params
    )  # the second batch is mostly filling
    assert found.metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert found.metrics["bits"] == pytest.approx(expected / math.log(2), rel=1e-5)
    assert (found.metrics["unigram"], found.metrics["unigram_bits"]) == (
        1.5,
        pytest.approx(2.16404, rel=1e-5),
    )
    assert (found.image_grid, found.grid_name) == (None, "samples")
    assert make_prior_evaluation(prior, data_mesh(), rows.take(np.arange(0)), 4, 1.5)(params).metrics == {}


class StandInCodec:
    """Images of one pixel a token; counts the heads of priors that are in memory while it makes them."""

    def __init__(self) -> None:
        self.heads: list[int] = []

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        self.heads.append(heads())
        return np.repeat(tokens[..., None], 3, axis=-1).astype(np.uint8)


WIDE = PriorConfig(codebook_size=CODES, grid=(2, 2), block="gpt", layers=1, heads=1, width=14, hidden=12)


def heads() -> int:
    """Arrays on any device that can only be the last layer of a prior of :data:`WIDE`."""
    return sum(x.shape == (14, CODES) for x in jax.live_arrays())


@pytest.mark.parametrize("kind", ["autoregressive", "masked"])
def test_sample_grids_keep_no_weights(kind: str) -> None:
    model, codec = dataclasses.replace(WIDE, kind=kind), StandInCodec()
    rows = PriorRows(np.zeros((0, 4), np.int32), np.zeros(0, np.int32))
    sampled = make_sample_grid(model, cast(Codec, codec), rows, 3, 5)
    # In NumPy: JAX's arrays remember what they were copied to, which would be counted.
    params: dict[str, Any] = {
        name: np.array(value)
        for name, value in take_apart(lambda: PriorTransformer(model, rngs=nnx.Rngs(0))).initial()[0].items()
    }
    assert heads() == 0
    first = sampled(params)
    np.testing.assert_array_equal(sampled(params), first)  # always the same seeds
    assert (codec.heads, heads()) == ([0, 0], 0)
    # Other weights count: with these, every token is 7.
    width = model.width
    params |= {
        "norm.scale": np.zeros(width, np.float32),
        "norm.bias": np.ones(width, np.float32),
        "head.kernel": np.tile(9 * np.eye(CODES, dtype=np.float32)[7], (width, 1)),
    }
    assert (first != sampled(params)).any()
    assert set(np.unique(sampled(params))) == {7, 128}  # 128 between the images


def test_rows_of_several_sets() -> None:
    def rows(first: int, count: int) -> PriorRows:
        numbers = np.arange(first, first + count)
        return PriorRows(numbers[:, None].repeat(4, axis=1), numbers, numbers[:, None])

    found = join_rows([rows(0, 2), rows(2, 3)], 4)
    np.testing.assert_array_equal(found.labels, np.arange(5))
    np.testing.assert_array_equal(found.tokens[:, 0], found.condition[:, 0])
    none = join_rows([], 4)
    assert (none.tokens.shape, none.labels.shape, none.condition) == ((0, 4), (0,), None)
