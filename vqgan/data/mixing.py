"""Several endless streams as one: where a position leads is a pure function of it, of weights and a seed."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from vqgan.data.order import groups_of, remember_two
from vqgan.errors import UserError

BLOCK = 8192
"""Positions within which every stream has exactly its share, to whole positions."""


class Stream(Protocol):
    """An endless stream of numbers."""

    def numbers(self, positions: np.ndarray) -> np.ndarray:
        """The numbers at positions, both int64 ``[B]``."""
        ...


class _Block(NamedTuple):
    """A block of positions: int64 ``[BLOCK]`` which stream, and the how-manieth of it in the block."""

    owners: np.ndarray
    ranks: np.ndarray


class Mixture:
    """Streams mixed by weight.

    Positions are cut into blocks of :data:`BLOCK`. Each stream has the same number of places in every block,
    in an order that the seed and the block's number decide, so a position tells how many of each stream lie
    before it. Safe from many threads.
    """

    def __init__(self, streams: Sequence[Stream], weights: Sequence[float], seed: Sequence[int]) -> None:
        """Args:
          streams: to mix.
          weights: share of each, positive; they need not add up to 1.
          seed: decides on the order in which streams follow each other.

        Raises:
          UserError: a weight for each stream is not given, not positive, or too small beside the others.
        """
        if len(weights) != len(streams):
            raise UserError(f"{len(weights)} weights for {len(streams)} data sets: give one for each")
        self._streams = streams
        self._quotas = quotas(weights, BLOCK)
        self._seed = tuple(seed)
        self._block = remember_two(self._make_block)

    def numbers(self, positions: np.ndarray) -> np.ndarray:
        """The numbers at positions, both int64 ``[B]``."""
        blocks, places = np.divmod(positions, BLOCK)
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
        ranks = np.empty(BLOCK, np.int64)
        for _, members in groups_of(owners):
            ranks[members] = np.arange(len(members))
        return _Block(owners, ranks)


def quotas(weights: Sequence[float], total: int) -> np.ndarray:
    """``total`` places shared out by weight: the largest remainders are rounded up (Hare and Niemeyer).

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
