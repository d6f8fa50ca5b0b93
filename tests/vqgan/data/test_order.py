"""The order of examples: a fair shuffle that keeps blocks together."""

from collections import Counter

import numpy as np
import pytest

from vqgan.data.order import BLOCKS_MIXED, EndlessOrder, epoch_order, groups_of, layout


def test_every_order_of_single_pictures_is_equally_likely() -> None:
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


def test_layout() -> None:
    starts, sizes = layout(3, None)
    assert (starts.tolist(), sizes.tolist()) == ([0, 1, 2], [1, 1, 1])
    starts, sizes = layout(7, [range(2, 7), range(2)])
    assert (starts.tolist(), sizes.tolist()) == ([2, 0], [5, 2])
    with pytest.raises(ValueError, match="do not cover 4"):
        layout(4, [range(3)])


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
