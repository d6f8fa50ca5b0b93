"""Endless batches of token rows for training a prior.

All hosts share one endless stream of rows, whose order is a pure function of the seed. A position in it is
all that has to be remembered: whatever the number of hosts or the size of their batches, now or on resume,
each row of the stream goes to one host, once.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vqgan.data import VIEW_CHOICES
from vqgan.data.row_groups import ROW_GROUPS_MIXED, gather
from vqgan.data.shuffle import EndlessOrder, IndexStream, Mixture, block_layout, epoch_order
from vqgan.data.token_shards import column_kind
from vqgan.data.tokens import TokenBatch, TokenSet, as_batch, called, shape
from vqgan.errors import UserError

_STATE_VERSION = 1


def token_batches(
    sets: TokenSet | Sequence[TokenSet],
    batch_size: int,
    seed: int,
    *,
    weights: Sequence[float] | None = None,
    views: str = "all",
    shard_index: int = 0,
    shard_count: int = 1,
) -> "TokenBatches":
    """Makes endless batches, fixed by data, seed, weights and views.

    Each row (or image) comes once before any comes again, in an order of its own each time; nothing is
    dropped where a round ends. Rows in memory are mixed as a whole; of a data set on disk some tens of row
    groups are mixed at a time.

    >>> from vqgan import open_tokens, token_batches
    >>> batches = token_batches(open_tokens("tokens/"), batch_size=4, seed=0)
    >>> batch = next(batches)
    >>> batch.tokens.shape, batch.labels.shape  # int32 both, a label is -1 where there is none
    ((4, 64), (4,))

    Args:
      sets: what to read: a data set, or several of one codec, grid and choice of columns.
      batch_size: rows in a batch of this host.
      seed: of the order, not negative.
      weights: share of each set in every stretch of some thousand rows. None: the sets are as one, so each
        has the share of its size.
      views: ``all`` takes every row in each round, ``one`` one view of each image, drawn anew each time.
      shard_index: of this host.
      shard_count: number of hosts, which all give the same batch size.

    Raises:
      UserError: no rows, sets that do not go together, weights that cannot be met.
    """
    sets = [sets] if isinstance(sets, TokenSet) else sets
    if batch_size < 1:
        raise UserError(f"a batch of {batch_size} rows: it must be at least 1")
    if views not in VIEW_CHOICES:
        raise UserError(f"views is {views!r}: it must be one of {', '.join(VIEW_CHOICES)}")
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"host {shard_index} of {shard_count}")
    if seed < 0:
        raise UserError(f"seed is {seed}: it must not be negative")
    check_mixable(sets)
    identity = {
        "version": _STATE_VERSION,
        "seed": seed,
        "views": views,
        "weights": None if weights is None else list(map(float, weights)),
        "sets": [
            {"plan": tokens.manifest["plan_hash"][:16], "rows": len(tokens), "in_memory": tokens.in_memory}
            for tokens in sets
        ],
    }
    stream = _stream(sets, seed, weights, views)
    return TokenBatches(sets, stream, batch_size, (shard_index, shard_count), identity)


class TokenBatches:
    """Endless iterator over :class:`TokenBatch`, whose position can be saved and set."""

    def __init__(
        self,
        sets: Sequence[TokenSet],
        stream: IndexStream,
        batch_size: int,
        shard: tuple[int, int],
        identity: Mapping[str, Any],
    ) -> None:
        """For :func:`token_batches`. ``stream`` numbers the rows of all sets, one set after the other."""
        self._sets, self._stream, self._identity = sets, stream, dict(identity)
        self._batch_size = batch_size
        self._index, self._count = shard
        self._starts = np.cumsum([0, *map(len, sets)])[:-1]
        self._position = 0

    def __iter__(self) -> Iterator[TokenBatch]:
        return self

    def __next__(self) -> TokenBatch:
        batch = self._at(self._position)
        self._position += self._batch_size * self._count
        return batch

    def batch(self, number: int) -> TokenBatch:
        """Returns this host's batch of a number from the start of the stream on. Safe from many threads."""
        return self._at(number * self._batch_size * self._count)

    @property
    def source(self) -> "BatchSource":
        """Returns the same batches by number, as Grain wants a source."""
        return BatchSource(self)

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last batch that was given, as JSON data. It is that of all hosts."""
        return {**self._identity, "position": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on after the batches before :meth:`get_state`, with any number of hosts and batch size.

        Raises:
          UserError: the state belongs to other data, or another seed, weights or views.
        """
        position = state.get("position")
        for name, now in self._identity.items():
            if state.get(name) != now:
                raise UserError(
                    f"the saved position is of other training data: {name} was {state.get(name)}, now {now}; "
                    "give the same data sets, seed, weights, views and memory, or start anew"
                )
        if not isinstance(position, int) or position < 0:
            raise UserError(
                f"the saved position is damaged: {position!r} is no place in the data; start anew"
            )
        self._position = position

    def _at(self, start: int) -> TokenBatch:
        """Reads this host's part of what all hosts take from a position on."""
        first = start + self._index * self._batch_size
        numbers = self._stream.numbers(np.arange(first, first + self._batch_size))
        owners = np.searchsorted(self._starts, numbers, side="right") - 1
        rows = gather(owners, numbers - self._starts[owners], lambda owner, own: self._sets[owner].read(own))
        return as_batch(rows, self._sets[0].groups.fields)


class BatchSource:
    """One host's batches by number: ``grain.MapDataset.source(batches.source)``."""

    def __init__(self, batches: TokenBatches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return sys.maxsize // (1 << 32)  # positions stay in 64 bits

    def __getitem__(self, number: int) -> TokenBatch:
        return self._batches.batch(number)


def check_mixable(sets: Sequence[TokenSet]) -> None:
    """Checks that data sets can be mixed.

    Raises:
      UserError: there are none, one is empty, or they differ in codec, grid or columns.
    """
    if not sets:
        raise UserError("no token data set is given; name at least one")
    first = sets[0]
    for other in sets:
        both = f"{first.path} and {other.path} cannot be mixed"
        if not len(other):
            raise UserError(f"{other.path}: nothing to train on: it has no rows; leave it out")
        if (other.fingerprint, other.codebook_size) != (first.fingerprint, first.codebook_size):
            raise UserError(
                f"{both}: their codecs are {_codec(first)} and {_codec(other)}; give data sets of one codec"
            )
        if other.grid != first.grid:
            raise UserError(
                f"{both}: their grids have {shape(first.grid)} and {shape(other.grid)} tokens; give data "
                "sets of images of one size"
            )
        if other.groups.fields != first.groups.fields:
            raise UserError(
                f"{both}: their columns are {_columns(first)} and {_columns(other)}; ask for columns that "
                "both have and that are of one type"
            )


def _columns(tokens: TokenSet) -> str:
    fields = tokens.groups.fields.values()
    return ", ".join(f"{field.name} ({column_kind(field)})" for field in fields) or "none"


def _codec(tokens: TokenSet) -> str:
    name = called(tokens.fingerprint, str(tokens.codec.get("name") or ""))
    return f"{name} with {tokens.codebook_size} codes"


def _stream(sets: Sequence[TokenSet], seed: int, weights: Sequence[float] | None, views: str) -> IndexStream:
    """Makes the stream of all hosts: numbers of rows, counted through all sets."""
    make = _rounds_of_rows if views == "all" else _rounds_of_images
    if weights is None:
        return make(sets, 0, (seed,))
    starts = np.cumsum([0, *map(len, sets)])
    streams = [make([tokens], int(starts[i]), (seed, i)) for i, tokens in enumerate(sets)]
    return Mixture(streams, weights, (seed, len(sets)))


def _rounds_of_rows(sets: Sequence[TokenSet], start: int, seed: tuple[int, ...]) -> EndlessOrder:
    """Shows every row of some sets in each round; their rows are numbered from ``start`` on."""
    starts, sizes = _blocks(sets, np.concatenate([tokens.groups.sizes for tokens in sets]))

    def make_round(epoch: int) -> np.ndarray:
        return start + epoch_order(starts, sizes, seed, epoch, ROW_GROUPS_MIXED)

    return EndlessOrder(int(sizes.sum()), make_round)


def _rounds_of_images(sets: Sequence[TokenSet], start: int, seed: tuple[int, ...]) -> EndlessOrder:
    """Shows one row of each image in each round, drawn anew; likewise."""
    offsets = start + np.cumsum([0, *map(len, sets)])
    rows = np.concatenate(
        [tokens.images.rows + offset for tokens, offset in zip(sets, offsets, strict=False)]
    )
    counts = np.concatenate([tokens.images.counts for tokens in sets])
    firsts = np.cumsum(counts) - counts  # (M,), places in rows
    starts, sizes = _blocks(sets, np.concatenate([_images_by_group(tokens) for tokens in sets]))

    def make_round(epoch: int) -> np.ndarray:
        drawn = np.random.default_rng([*seed, 1, epoch]).random(len(counts))
        chosen = rows[firsts + (drawn * counts).astype(np.int64)]
        return chosen[epoch_order(starts, sizes, seed, epoch, ROW_GROUPS_MIXED)]

    return EndlessOrder(len(counts), make_round)


def _images_by_group(tokens: TokenSet) -> np.ndarray:
    """Counts the images that begin in each row group, int64 ``[R]``."""
    images, groups = tokens.images, tokens.groups
    first_rows = images.rows[np.cumsum(images.counts) - images.counts]
    owners = np.searchsorted(groups.starts, first_rows, side="right") - 1
    return np.bincount(owners, minlength=len(groups.sizes))


def _blocks(sets: Sequence[TokenSet], by_group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and sizes of the blocks to mix: row groups if some are read from disk, else single examples."""
    total = int(by_group.sum())
    if all(tokens.in_memory for tokens in sets):
        return block_layout(total, None)
    sizes = by_group[by_group > 0]
    return np.cumsum(sizes) - sizes, sizes
