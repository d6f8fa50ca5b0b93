"""The order of examples: a fair shuffle that keeps blocks together, and streams mixed by weight:
exact shares, each stream complete and in its own order."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from vqgan.data.shuffle import (
    BLOCKS_MIXED,
    MIXTURE_BLOCK,
    EndlessOrder,
    Mixture,
    block_layout,
    epoch_order,
    groups_of,
    quotas,
)


def test_every_order_of_single_images_is_equally_likely() -> None:
    starts, sizes = np.arange(3), np.ones(3, int)
    found = Counter(tuple(epoch_order(starts, sizes, (0,), epoch)) for epoch in range(3000))
    assert len(found) == 6
    # Binomial(3000, 1/6): mean 500, standard deviation 20.4.
    assert all(abs(count - 500) < 5 * 20.4 for count in found.values())


def loads(order: np.ndarray, owner: np.ndarray, kept: int) -> int:
    """How often a reader that keeps the blocks used last has to read one."""
    recent: list[int] = []
    count = 0
    for block in owner[order].tolist():
        if block in recent:
            recent.remove(block)
        else:
            count += 1
        recent = [*recent, block][-kept:]
    return count


def test_blocks_stay_together_yet_mix() -> None:
    sizes = np.array([30, 50, 40, 7] * 15)
    starts = np.cumsum(sizes) - sizes
    owner = np.repeat(np.arange(60), sizes)
    order = epoch_order(starts, sizes, (1,), 4)
    assert sorted(order.tolist()) == list(range(sizes.sum()))
    # Each of 60 blocks once, and those that reach round the end once more; a plain shuffle: nearly each time.
    assert loads(order, owner, BLOCKS_MIXED + 4) <= 60 + BLOCKS_MIXED + 5
    assert loads(np.random.default_rng(0).permutation(len(owner)), owner, BLOCKS_MIXED + 4) > 1000
    windows = [len(set(owner[order[start : start + 32]].tolist())) for start in range(0, len(order) - 32, 32)]
    assert min(windows) >= 5  # blocks in a batch of 32


def test_few_blocks_are_shuffled_as_a_whole() -> None:
    starts, sizes = np.array([10, 0]), np.array([20, 10])
    firsts = [int(epoch_order(starts, sizes, (0,), epoch)[0]) for epoch in range(300)]
    assert set(firsts) == set(range(30))


def test_more_blocks_are_mixed_on_request() -> None:
    starts, sizes = np.arange(0, 600, 10), np.full(60, 10)
    for mixed in (2, 30):
        blocks = epoch_order(starts, sizes, (0,), 0, mixed) // 10
        # A block's rows lie within `mixed` blocks' lengths of each other, round the end.
        spans = [np.flatnonzero(blocks == block) for block in range(60)]
        gaps = [600 - np.diff([*span, span[0] + 600]).max() for span in spans]
        assert max(gaps) <= 10 * (mixed + 1)
        assert max(gaps) > 5 * mixed


def test_block_layout() -> None:
    starts, sizes = block_layout(3, None)
    assert (starts.tolist(), sizes.tolist()) == ([0, 1, 2], [1, 1, 1])
    starts, sizes = block_layout(7, [range(2, 7), range(2)])
    assert (starts.tolist(), sizes.tolist()) == ([2, 0], [5, 2])
    with pytest.raises(ValueError, match="do not cover 4"):
        block_layout(4, [range(3)])


def test_positions_lead_through_rounds() -> None:
    made: list[int] = []

    def make_round(epoch: int) -> np.ndarray:
        made.append(epoch)
        return 100 * epoch + np.array([2, 0, 1])

    order = EndlessOrder(3, make_round)
    assert order.numbers(np.array([5, 0, 3, 1, 2, 4])).tolist() == [101, 2, 102, 0, 1, 100]
    assert [order.number(position) for position in range(6)] == [2, 0, 1, 102, 100, 101]
    assert made == [0, 1]
    assert order.numbers(np.array([9])).tolist() == [302]


def test_groups() -> None:
    groups = {value: places.tolist() for value, places in groups_of(np.array([3, 1, 3, 7, 1]))}
    assert groups == {1: [1, 4], 3: [0, 2], 7: [3]}


# Mixtures


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
    numbers = mixture.numbers(np.arange(3 * MIXTURE_BLOCK))
    for stream, share in enumerate((5 / 8, 2 / 8, 1 / 8)):
        own = numbers[numbers // 10**6 == stream] % 10**6
        assert own.tolist() == list(range(round(3 * MIXTURE_BLOCK * share)))


def test_any_positions_in_any_order() -> None:
    mixture = Mixture([Counting(0), Counting(10**6)], [2, 1], (4,))
    whole = mixture.numbers(np.arange(4 * MIXTURE_BLOCK))
    positions = np.random.default_rng(0).integers(0, 4 * MIXTURE_BLOCK, 500)
    again = Mixture([Counting(0), Counting(10**6)], [2, 1], (4,))
    np.testing.assert_array_equal(again.numbers(positions), whole[positions])
    other = Mixture([Counting(0), Counting(10**6)], [2, 1], (5,))
    assert not np.array_equal(other.numbers(np.arange(100)), whole[:100])
    first, second = whole[: 2 * MIXTURE_BLOCK].reshape(2, -1) >= 10**6
    assert not np.array_equal(first, second)


def test_shares_hold_in_short_stretches() -> None:
    mixture = Mixture([Counting(0), Counting(10**6)], [3, 1], (0,))
    numbers = mixture.numbers(np.arange(MIXTURE_BLOCK)).reshape(-1, 256)
    counts = (numbers >= 10**6).sum(axis=1)
    # Hypergeometric, mean 64, standard deviation below sqrt(256 * 3 / 16) = 6.9.
    assert (abs(counts - 64) < 5 * 6.9).all()
    assert counts.std() > 1  # shuffled, not dealt out in turn


def test_a_weight_for_each(refused: Any) -> None:
    with refused("1 weights for 2 data sets"):
        Mixture([Counting(0), Counting(1)], [1], (0,))
