"""Figures of a prior over held-back rows, against sums by hand; rows of data sets put together."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from vqgan.functional import take_apart
from vqgan.prior.config import PriorConfig
from vqgan.prior.transformer import Prior
from vqgan.training.devices import data_mesh
from vqgan.training.prior_data import joined
from vqgan.training.prior_rows import PriorRows
from vqgan.training.prior_validating import make_evaluate

CODES = 8
MODEL = PriorConfig(codebook_size=CODES, grid=(2, 2), classes=2, layers=1, heads=1, width=8, hidden=8)


def test_every_row_counts_once_whatever_the_batch() -> None:
    """A head of random weights on the prior's own features: the loss of each row, summed in NumPy."""
    prior = take_apart(lambda: Prior(MODEL, rngs=nnx.Rngs(0)))
    params, _ = prior.initial()
    rng = np.random.default_rng(0)
    params["head.kernel"] = jax.numpy.asarray(rng.standard_normal((8, CODES)), "float32")
    rows = PriorRows(rng.integers(0, CODES, (5, 4)).astype(np.int32), np.array([0, 1, -1, 1, 0], np.int32))
    classes = np.where(rows.labels < 0, MODEL.classes, rows.labels)
    logits = np.asarray(jax.jit(prior.bind(params, {}))(rows.tokens, classes), np.float64)  # (5, 4, K)
    chosen = np.take_along_axis(logits, rows.tokens[..., None], axis=-1)[..., 0]
    expected = float(np.mean(np.log(np.exp(logits).sum(axis=-1)) - chosen))

    found = make_evaluate(prior, data_mesh(), rows, 4, 1.5)(params)  # the second batch is mostly filling
    assert found.figures["loss"] == pytest.approx(expected, rel=1e-5)
    assert found.figures["bits"] == pytest.approx(expected / math.log(2), rel=1e-5)
    assert (found.figures["unigram"], found.figures["unigram_bits"]) == (
        1.5,
        pytest.approx(2.16404, rel=1e-5),
    )
    assert (found.sheet, found.sheet_name) == (None, "samples")
    assert make_evaluate(prior, data_mesh(), rows.take(np.arange(0)), 4, 1.5)(params).figures == {}


def test_rows_of_several_sets() -> None:
    def rows(first: int, count: int) -> PriorRows:
        numbers = np.arange(first, first + count)
        return PriorRows(numbers[:, None].repeat(4, axis=1), numbers, numbers[:, None])

    found = joined([rows(0, 2), rows(2, 3)], 4)
    np.testing.assert_array_equal(found.labels, np.arange(5))
    np.testing.assert_array_equal(found.tokens[:, 0], found.condition[:, 0])
    none = joined([], 4)
    assert (none.tokens.shape, none.labels.shape, none.condition) == ((0, 4), (0,), None)
