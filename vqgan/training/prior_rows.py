"""Rows of token sets as a prior takes them. No JAX is imported here."""

from typing import Any, NamedTuple

import numpy as np

NO_CLASS = -1


class PriorRows(NamedTuple):
    """Rows of token sets.

    Attributes:
      tokens: int32 ``[B, L]``.
      labels: int32 ``[B]``; -1 is no class.
      condition: int32 ``[B, Lc]`` tokens of the condition grid; None for a prior without one.
    """

    tokens: Any
    labels: Any
    condition: Any = None

    def take(self, at: np.ndarray) -> "PriorRows":
        """Some of them, by number or by a mask."""
        condition = None if self.condition is None else self.condition[at]
        return PriorRows(self.tokens[at], self.labels[at], condition)
