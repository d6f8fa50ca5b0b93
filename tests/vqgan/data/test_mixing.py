"""Streams mixed by weight: exact shares, each stream complete and in its own order."""

from typing import Any

import numpy as np
import pytest

from vqgan.data.mixing import BLOCK, Mixture, quotas


class Counting:
    """A stream whose numbers are its positions beyond a start."""

    def __init__(self, start: int) -> None:
        self.start = start

    def numbers(self, positions: np.ndarray) -> np.ndarray:
        return self.start + positions


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [
        ([1, 1], 10, [5, 5]),
        ([47, 16, 15.8, 12, 6.1, 3.1], 100, [47, 16, 16, 12, 6, 3]),  # one place is left, for 15.8
        ([0.5, 0.25, 0.25], 7, [3, 2, 2]),  # 3.5 1.75 1.75
        ([3], 8, [8]),
        ([1, 1, 1], 8, [3, 3, 2]),
    ],
)
def test_quotas(weights: list[float], total: int, expected: list[int]) -> None:
    assert quotas(weights, total).tolist() == expected


def test_weights_too_small_for_a_place(refused: Any) -> None:
    with refused("less than one in 10 of all"):
        quotas([30, 1], 10)


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, float("nan")], [float("inf"), 1]])
def test_weights_are_positive_numbers(weights: list[float], refused: Any) -> None:
    with refused("must be a number above 0"):
        quotas(weights, 10)


def test_each_stream_is_complete_and_in_order() -> None:
    mixture = Mixture([Counting(0), Counting(10**6), Counting(2 * 10**6)], [5, 2, 1], (0,))
    numbers = mixture.numbers(np.arange(3 * BLOCK))
    for stream, share in enumerate((5 / 8, 2 / 8, 1 / 8)):
        own = numbers[numbers // 10**6 == stream] % 10**6
        assert own.tolist() == list(range(round(3 * BLOCK * share)))


def test_any_positions_in_any_order() -> None:
    mixture = Mixture([Counting(0), Counting(10**6)], [2, 1], (4,))
    whole = mixture.numbers(np.arange(4 * BLOCK))
    positions = np.random.default_rng(0).integers(0, 4 * BLOCK, 500)
    again = Mixture([Counting(0), Counting(10**6)], [2, 1], (4,))
    np.testing.assert_array_equal(again.numbers(positions), whole[positions])
    other = Mixture([Counting(0), Counting(10**6)], [2, 1], (5,))
    assert not np.array_equal(other.numbers(np.arange(100)), whole[:100])
    assert not np.array_equal(whole[:BLOCK] >= 10**6, whole[BLOCK : 2 * BLOCK] >= 10**6)


def test_shares_hold_in_short_stretches() -> None:
    mixture = Mixture([Counting(0), Counting(10**6)], [3, 1], (0,))
    numbers = mixture.numbers(np.arange(BLOCK)).reshape(-1, 256)
    counts = (numbers >= 10**6).sum(axis=1)
    # Hypergeometric, mean 64, standard deviation below sqrt(256 * 3 / 16) = 6.9.
    assert (abs(counts - 64) < 5 * 6.9).all()
    assert counts.std() > 1  # shuffled, not dealt out in turn


def test_a_weight_for_each(refused: Any) -> None:
    with refused("1 weights for 2 data sets"):
        Mixture([Counting(0), Counting(1)], [1], (0,))
