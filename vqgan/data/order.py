"""The order of examples in endless streams: a pure function of a seed and a position.

Every example comes once before any comes again, in an order of its own each round. Examples that are cheap
to read together form blocks, and few blocks are in use at a time.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

BLOCKS_MIXED = 10
"""Blocks whose examples are mixed at any one time."""


def layout(count: int, blocks: Sequence[range] | None) -> tuple[np.ndarray, np.ndarray]:
    """First example and size of each block; every example is a block of its own where there are none.

    Args:
      count: number of examples.
      blocks: ranges of examples which cover all once, or None.

    Returns:
      int64 ``[R]`` starts and int64 ``[R]`` sizes.

    Raises:
      ValueError: the blocks do not add up to the examples.
    """
    if blocks is None:
        return np.arange(count), np.ones(count, np.int64)
    if sum(map(len, blocks)) != count:
        raise ValueError(f"the blocks do not cover {count} pictures once each")
    starts = np.array([block.start for block in blocks], np.int64)
    return starts, np.array([len(block) for block in blocks], np.int64)


def epoch_order(
    starts: np.ndarray, sizes: np.ndarray, seed: Sequence[int], epoch: int, mixed: int = BLOCKS_MIXED
) -> np.ndarray:
    """The order in which the examples of some blocks come in one round.

    Blocks are shuffled; each example then moves from its block's place by a random distance of up to
    ``mixed`` blocks, round the end. So no more than that many blocks, and one, are in use at a time, and a
    new one is needed now and then rather than all at once. Where all blocks are of one example, every order
    is equally likely.

    Args:
      starts: int ``[R]``, the first example of each block.
      sizes: int ``[R]``, the number of its examples.
      seed: with ``epoch`` decides on the order.
      epoch: number of the round.
      mixed: blocks that are mixed at a time.

    Returns:
      int64 ``[N]``, the number of each example once.
    """
    rng = np.random.default_rng([*seed, 0, epoch])
    places = np.repeat(rng.permutation(len(sizes)), sizes)  # (N,)
    distances = rng.random(len(places)) * min(mixed, len(sizes))
    numbers = np.arange(len(places)) + np.repeat(starts - np.cumsum(sizes) + sizes, sizes)
    return numbers[np.argsort((places + distances) % len(sizes), kind="stable")]


class EndlessOrder:
    """Which number each position of an endless stream shows: one round after another. Safe from many threads.

    Attributes:
      count: numbers in a round.
    """

    def __init__(self, count: int, make_round: Callable[[int], np.ndarray]) -> None:
        """Args:
        count: numbers in a round, at least 1.
        make_round: int64 ``[count]``, the numbers of the round that is asked for.
        """
        self.count = count
        self._round = remember_two(make_round)

    def number(self, position: int) -> int:
        """The number at a position."""
        epoch, place = divmod(position, self.count)
        return int(self._round(epoch)[place])

    def numbers(self, positions: np.ndarray) -> np.ndarray:
        """The numbers at positions, both int64 ``[B]``."""
        epochs, places = np.divmod(positions, self.count)
        found = np.empty(len(positions), np.int64)
        for epoch, members in groups_of(epochs):
            found[members] = self._round(epoch)[places[members]]
        return found


def groups_of(owners: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each value of int ``[B]`` owners in rising order, with the places where it stands (int64 ``[M]``).

    There must be at least one.
    """
    order = np.argsort(owners, kind="stable")
    values, firsts = np.unique(owners[order], return_index=True)
    return zip(values.tolist(), np.split(order, firsts[1:]), strict=True)


def remember_two(make: Callable[[int], T]) -> Callable[[int], T]:
    """A function that keeps its last two results. One thread makes a result, others wait for it.

    Two rounds are in use while a batch, or what is read ahead, reaches over the end of one.
    """
    kept = functools.lru_cache(2)(make)
    lock = threading.Lock()

    def get(number: int) -> T:
        with lock:
            return kept(number)

    return get
