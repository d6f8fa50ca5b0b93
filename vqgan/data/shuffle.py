"""The order of examples in endless streams: a pure function of a seed and a position.

Every example comes once before any comes again, in an order of its own each round. Examples that are cheap
to read together form blocks, and few blocks are in use at a time. Several streams can be mixed by weight.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from vqgan.caching import LatestResults
from vqgan.errors import UserError

BLOCKS_MIXED = 10
"""Blocks whose examples are mixed at any one time."""
MIXTURE_BLOCK = 8192
"""Positions of a mixture within which every stream has exactly its share, to whole positions."""
# Two rounds, or two blocks of a mixture, are in use while a batch, or what is read ahead, reaches over the
# end of one.
_IN_USE = 2

# One stream


def block_layout(count: int, blocks: Sequence[range] | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns first example and size of each block; every example is a block of its own where there are none.

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
        raise ValueError(f"the blocks do not cover {count} images once each")
    starts = np.array([block.start for block in blocks], np.int64)
    return starts, np.array([len(block) for block in blocks], np.int64)


def epoch_order(
    starts: np.ndarray, sizes: np.ndarray, seed: Sequence[int], epoch: int, mixed: int = BLOCKS_MIXED
) -> np.ndarray:
    """Returns the order in which the examples of some blocks come in one round.

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
        """Starts with no round made.

        Args:
          count: numbers in a round, at least 1.
          make_round: int64 ``[count]``, the numbers of the round that is asked for.
        """
        self.count = count
        self._round = LatestResults(make_round, _IN_USE)

    def number(self, position: int) -> int:
        """Returns the number at a position."""
        epoch, place = divmod(position, self.count)
        return int(self._round(epoch)[place])

    def numbers(self, positions: np.ndarray) -> np.ndarray:
        """Returns the numbers at positions, both int64 ``[B]``."""
        epochs, places = np.divmod(positions, self.count)
        found = np.empty(len(positions), np.int64)
        for epoch, members in groups_of(epochs):
            found[members] = self._round(epoch)[places[members]]
        return found


def groups_of(owners: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields each value of int ``[B]`` owners in rising order, and the places where it stands, int64 ``[M]``.

    There must be at least one.
    """
    order = np.argsort(owners, kind="stable")
    values, firsts = np.unique(owners[order], return_index=True)
    return zip(values.tolist(), np.split(order, firsts[1:]), strict=True)


# Several streams


class IndexStream(Protocol):
    """An endless stream of numbers."""

    def numbers(self, positions: np.ndarray) -> np.ndarray:
        """Returns the numbers at positions, both int64 ``[B]``."""
        ...


class _Block(NamedTuple):
    """A block of positions of a mixture.

    Attributes:
      owners: int64 ``[MIXTURE_BLOCK]``, which stream each position shows.
      ranks: int64 ``[MIXTURE_BLOCK]``, its ordinal among that stream's positions in the block.
    """

    owners: np.ndarray
    ranks: np.ndarray


class Mixture:
    """Streams mixed by weight.

    Positions are cut into blocks of :data:`MIXTURE_BLOCK`. Each stream has the same number of places in
    every block, in an order that the seed and the block's number decide, so a position tells how many of
    each stream lie before it. Safe from many threads.
    """

    def __init__(self, streams: Sequence[IndexStream], weights: Sequence[float], seed: Sequence[int]) -> None:
        """Checks the weights.

        Args:
          streams: to mix.
          weights: share of each, positive; they need not add up to 1.
          seed: decides on the order in which streams follow each other.

        Raises:
          UserError: a weight for each stream is not given, not positive, or too small beside the others.
        """
        if len(weights) != len(streams):
            raise UserError(f"{len(weights)} weights for {len(streams)} data sets: give one for each")
        self._streams = streams
        self._quotas = quotas(weights, MIXTURE_BLOCK)
        self._seed = tuple(seed)
        self._block = LatestResults(self._make_block, _IN_USE)

    def numbers(self, positions: np.ndarray) -> np.ndarray:
        """Returns the numbers at positions, both int64 ``[B]``."""
        blocks, places = np.divmod(positions, MIXTURE_BLOCK)
        owners, indices = np.empty((2, len(positions)), np.int64)
        for number, members in groups_of(blocks):
            block = self._block(number)
            owners[members] = block.owners[places[members]]
            indices[members] = number * self._quotas[owners[members]] + block.ranks[places[members]]
        found = np.empty(len(positions), np.int64)
        for owner, members in groups_of(owners):
            found[members] = self._streams[owner].numbers(indices[members])
        return found

    def _make_block(self, number: int) -> _Block:
        rng = np.random.default_rng([*self._seed, number])
        owners = rng.permutation(np.repeat(np.arange(len(self._quotas)), self._quotas))
        ranks = np.empty(MIXTURE_BLOCK, np.int64)
        for _, members in groups_of(owners):
            ranks[members] = np.arange(len(members))
        return _Block(owners, ranks)


def quotas(weights: Sequence[float], total: int) -> np.ndarray:
    """Shares out ``total`` places by weight: the largest remainders are rounded up (Hare and Niemeyer).

    Returns:
      int64 ``[S]``, at least 1 each, whose sum is ``total``.

    Raises:
      UserError: a weight is not a positive number, or so small that it has no place.
    """
    shares = np.array(weights, np.float64)
    if not (np.isfinite(shares) & (shares > 0)).all():
        raise UserError(
            f"weights {list(weights)}: each must be a number above 0; leave out sets of no weight"
        )
    exact = shares / shares.sum() * total
    whole = np.floor(exact).astype(np.int64)
    rounded_up = np.argsort(whole - exact, kind="stable")[: total - whole.sum()]
    whole[rounded_up] += 1
    if not whole.all():
        raise UserError(
            f"weights {list(weights)}: the smallest is less than one in {total} of all; raise it or leave "
            "its data set out"
        )
    return whole
