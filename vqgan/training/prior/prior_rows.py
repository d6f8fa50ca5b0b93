"""Token sets as a prior takes them: rows with their conditions, batches to train on, rows to validate on.

No JAX is imported here.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from vqgan import filesystems
from vqgan.data.token_batches import TokenBatches
from vqgan.data.tokens import TokenBatch, TokenSet
from vqgan.errors import UserError
from vqgan.prior.text import Text
from vqgan.shards import open_shard

NO_CLASS = -1
CONDITION_COLUMNS = ("key", "view")
"""Columns by which rows of a condition are found."""

_NAMES_READ = 1 << 16  # at a time


class PriorRows(NamedTuple):
    """Rows of token sets.

    Attributes:
      tokens: int32 ``[B, L]``.
      labels: int32 ``[B]``; -1 is no class.
      condition: int32 ``[B, Lc]`` tokens of the condition grid; None for a prior without one.
      text: of a prior with texts, a row without for an image without a caption; None for others.
    """

    tokens: Any
    labels: Any
    condition: Any = None
    text: Text | None = None

    def take(self, at: np.ndarray) -> "PriorRows":
        """Returns some of them, by number or by a mask."""
        condition = None if self.condition is None else self.condition[at]
        text = None if self.text is None else self.text.take(at)
        return PriorRows(self.tokens[at], self.labels[at], condition, text)


class TextLookup(Protocol):
    """Finds the captions of rows; see :class:`vqgan.training.prior.caption_rows.CaptionRows`."""

    def of(self, batch: TokenBatch, seed: tuple[int, ...] | None = None) -> Text:
        """Returns the texts of a batch; of several captions of an image a seed draws one."""
        ...


class ConditionLookup:
    """A token set whose rows are conditions, found by key and view.

    Args:
      tokens: no split of a data set, but all of it.

    Raises:
      UserError: a key and view occur more than once, or a shard cannot be read.
    """

    def __init__(self, tokens: TokenSet):
        self.tokens = tokens
        self._numbers: dict[tuple[str, int], int] = {}
        for number, name in enumerate(all_names(tokens)):
            if self._numbers.setdefault(name, number) != number:
                raise UserError(
                    f"{tokens.path}: more than one row has {_called(name)}, so it is not clear which is the "
                    "condition; run vqgan verify on it, or make it anew"
                )

    def check(self, sets: Sequence[TokenSet]) -> None:
        """Checks that every row of some token sets has a condition, and no two images share one.

        Args:
          sets: splits stand for their whole data set.

        Raises:
          UserError: with how many rows have none, or which two data sets have a row of the same name.
        """
        owners = np.full(len(self._numbers), -1)  # (N,), which set has the row of that name
        whole = list({tokens.manifest["plan_hash"]: tokens for tokens in sets}.values())
        for owner, tokens in enumerate(whole):
            found = self._numbers_of(tokens)
            shared = found[(owners[found] >= 0) & (owners[found] != owner)]
            if len(shared):
                other, name = whole[owners[shared[0]]], list(self._numbers)[shared[0]]
                raise UserError(
                    f"{other.path} and {tokens.path} both have {_called(name)}, and would share a condition; "
                    "tokenize all images from one folder above theirs, so that keys differ"
                )
            owners[found] = owner

    def _numbers_of(self, tokens: TokenSet) -> np.ndarray:
        """Returns the condition of each row of a whole data set, int64 ``[N]``."""
        names = list(all_names(tokens))
        missing = [name for name in names if name not in self._numbers]
        if missing:
            raise UserError(
                f"{self.tokens.path}: {len(missing)} of the {len(names)} rows of {tokens.path} have no "
                f"partner of the same key and view here (such as {_called(missing[0])}); tokenize the "
                "conditions of the same images with the same views"
            )
        return np.array([self._numbers[name] for name in names], np.int64)

    def of(self, batch: TokenBatch) -> np.ndarray:
        """Returns the condition tokens of a batch, int32 ``[B, Lc]``."""
        numbers = np.array([self._numbers[name] for name in _names(batch)], np.int64)
        return self.tokens.take(numbers).tokens


class PriorBatches:
    """Endless batches for a prior; see :class:`vqgan.training.loop.ResumableBatches`.

    Args:
      batches: of the token sets.
      labelled: whether classes are learned; if not, every row is without.
      conditions: conditions, for a prior with a condition grid.
      captions: texts, for a prior with texts.
      seed: decides, with the position, on one of several captions.
    """

    def __init__(
        self,
        batches: TokenBatches,
        labelled: bool,
        conditions: ConditionLookup | None = None,
        captions: TextLookup | None = None,
        seed: int = 0,
    ):
        self._batches, self._labelled, self._conditions = batches, labelled, conditions
        self._captions, self._seed = captions, seed

    def __iter__(self) -> Iterator[PriorRows]:
        return self

    def __next__(self) -> PriorRows:
        position = int(self._batches.get_state()["position"])
        batch = next(self._batches)
        rows = as_rows(batch, self._labelled, self._conditions)
        if self._captions is None:
            return rows
        return rows._replace(text=self._captions.of(batch, (self._seed, position)))

    def get_state(self) -> dict[str, Any]:
        """Returns the position."""
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position.

        Raises:
          UserError: it is of other data.
        """
        self._batches.set_state(state)


def as_rows(
    batch: TokenBatch,
    labelled: bool,
    conditions: ConditionLookup | None,
    captions: TextLookup | None = None,
) -> PriorRows:
    """Makes a batch of token sets one that a prior takes; of several captions with the first one."""
    labels = batch.labels if labelled else np.full_like(batch.labels, NO_CLASS)
    condition = None if conditions is None else conditions.of(batch)
    return PriorRows(batch.tokens, labels, condition, None if captions is None else captions.of(batch))


def spread_rows(
    sets: Sequence[TokenSet],
    limit: int,
    length: int,
    labelled: bool,
    conditions: ConditionLookup | None = None,
    captions: TextLookup | None = None,
) -> PriorRows:
    """Reads at most ``limit`` rows of several token sets, from each by its size; else 0 of ``length``."""
    parts = zip(sets, share_out([len(tokens) for tokens in sets], limit), strict=True)
    found = [spaced_rows(tokens, share, labelled, conditions, captions) for tokens, share in parts if share]
    return join_rows(found, length)


def share_out(sizes: Sequence[int], limit: int) -> list[int]:
    """Shares out ``limit``, or all there is, by size: each share is within one of the exact quotient."""
    ends = np.cumsum([0, *sizes])
    return np.diff(ends * min(limit, int(ends[-1])) // max(int(ends[-1]), 1)).tolist()


def spaced_rows(
    tokens: TokenSet,
    count: int,
    labelled: bool,
    conditions: ConditionLookup | None = None,
    captions: TextLookup | None = None,
) -> PriorRows:
    """Reads ``count`` rows of a token set, evenly spaced over it; at least one, and no more than it has."""
    return as_rows(tokens.take(np.arange(count) * len(tokens) // count), labelled, conditions, captions)


def join_rows(parts: Sequence[PriorRows], length: int) -> PriorRows:
    """Joins rows of several sets; without any, 0 rows of ``length`` tokens."""
    if not parts:
        return PriorRows(np.zeros((0, length), np.int32), np.zeros(0, np.int32))
    conditions = [part.condition for part in parts if part.condition is not None]
    texts = [part.text for part in parts if part.text is not None]
    return PriorRows(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate(conditions) if conditions else None,
        Text(*map(np.concatenate, zip(*texts, strict=True))) if texts else None,
    )


def mixed_histogram(sets: Sequence[TokenSet], weights: Sequence[float] | None) -> np.ndarray:
    """Counts how often each code is met in training, ``[K]``; shares of one where sets are weighted."""
    if weights is None:
        return np.sum([tokens.histogram for tokens in sets], axis=0)
    shares = [tokens.histogram / tokens.histogram.sum() for tokens in sets]
    return np.average(shares, axis=0, weights=weights)


def _names(batch: TokenBatch) -> list[tuple[str, int]]:
    keys, views = (batch.columns[name] for name in CONDITION_COLUMNS)
    return [(str(key), int(view)) for key, view in zip(keys, views, strict=True)]


def all_names(tokens: TokenSet) -> Iterator[tuple[str, int]]:
    """Yields key and view of each row of a whole data set, in the order of its rows; no token is read."""
    for entry in tokens.manifest["shards"]:
        with open_shard(filesystems.join(tokens.folder, entry["name"])) as shard:
            for batch in shard.batches(list(CONDITION_COLUMNS), _NAMES_READ):
                yield from zip(*(batch.column(name).to_pylist() for name in CONDITION_COLUMNS), strict=True)


def _called(name: tuple[str, int]) -> str:
    return f"key {name[0]!r}, view {name[1]}"
