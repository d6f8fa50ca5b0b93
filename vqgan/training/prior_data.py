"""Token sets as :class:`vqgan.training.prior_rows.PriorRows`: batches to train on, and rows held back.

No JAX is imported here.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vqgan.data.rows import TokenBatch
from vqgan.data.token_batches import TokenBatches
from vqgan.data.tokens import TokenSet, all_batches
from vqgan.errors import UserError
from vqgan.training.prior_rows import NO_CLASS, PriorRows

PARTNER_COLUMNS = ("key", "view")
"""Columns by which rows of a condition are found."""

_READ_ROWS = 4096  # at a time, where all keys are read


class Partners:
    """A token set whose rows are conditions, found by key and view.

    Args:
      tokens: opened with :data:`PARTNER_COLUMNS`.
    """

    def __init__(self, tokens: TokenSet):
        self.tokens = tokens
        self._numbers: dict[tuple[str, int], int] = {}
        for batch in all_batches(tokens, _READ_ROWS):
            for name in _names(batch):
                self._numbers[name] = len(self._numbers)

    def check(self, sets: Sequence[TokenSet]) -> None:
        """That every row of some token sets has a condition.

        Raises:
          UserError: with how many have none.
        """
        for tokens in sets:
            missing = [
                name
                for batch in all_batches(tokens, _READ_ROWS)
                for name in _names(batch)
                if name not in self._numbers
            ]
            if missing:
                key, view = missing[0]
                raise UserError(
                    f"{self.tokens.path}: {len(missing)} of the {len(tokens)} rows of {tokens.path} have no "
                    f"partner of the same key and view here (such as key {key!r}, view {view}); tokenize the "
                    "conditions of the same pictures with the same views"
                )

    def of(self, batch: TokenBatch) -> np.ndarray:
        """Condition tokens of a batch, int32 ``[B, Lc]``."""
        numbers = np.array([self._numbers[name] for name in _names(batch)], np.int64)
        return self.tokens.take(numbers).tokens


class RowBatches:
    """Endless batches for a prior; see :class:`vqgan.training.loop.Batches`.

    Args:
      batches: of the token sets.
      labelled: whether classes are learned; if not, every row is without.
      partners: conditions, for a prior with a condition grid.
    """

    def __init__(self, batches: TokenBatches, labelled: bool, partners: Partners | None = None):
        self._batches, self._labelled, self._partners = batches, labelled, partners

    def __iter__(self) -> Iterator[PriorRows]:
        return self

    def __next__(self) -> PriorRows:
        return as_rows(next(self._batches), self._labelled, self._partners)

    def get_state(self) -> dict[str, Any]:
        """The position."""
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position.

        Raises:
          UserError: it is of other data.
        """
        self._batches.set_state(state)


def as_rows(batch: TokenBatch, labelled: bool, partners: Partners | None) -> PriorRows:
    """A batch of token sets as a prior takes it."""
    labels = batch.labels if labelled else np.full_like(batch.labels, NO_CLASS)
    return PriorRows(batch.tokens, labels, None if partners is None else partners.of(batch))


def spaced_rows(
    tokens: TokenSet, limit: int, labelled: bool, partners: Partners | None = None
) -> PriorRows | None:
    """At most ``limit`` rows of a token set, evenly spaced over it; None where it has none."""
    if not len(tokens):
        return None
    count = min(limit, len(tokens))
    numbers = np.arange(count) * len(tokens) // count
    return as_rows(tokens.take(numbers), labelled, partners)


def joined(parts: Sequence[PriorRows], length: int) -> PriorRows:
    """Rows of several sets as one; without any, 0 rows of ``length`` tokens."""
    if not parts:
        return PriorRows(np.zeros((0, length), np.int32), np.zeros(0, np.int32))
    conditions = [part.condition for part in parts if part.condition is not None]
    return PriorRows(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate(conditions) if conditions else None,
    )


def mixed_histogram(sets: Sequence[TokenSet], weights: Sequence[float] | None) -> np.ndarray:
    """How often each code is met in training, ``[K]``; shares of one where sets are weighted."""
    if weights is None:
        return np.sum([tokens.histogram for tokens in sets], axis=0)
    shares = [tokens.histogram / tokens.histogram.sum() for tokens in sets]
    return np.average(shares, axis=0, weights=weights)


def _names(batch: TokenBatch) -> list[tuple[str, int]]:
    keys, views = (batch.columns[name] for name in PARTNER_COLUMNS)
    return [(str(key), int(view)) for key, view in zip(keys, views, strict=True)]
