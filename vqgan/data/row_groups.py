"""The row groups of a token data set: which of their rows count, and rows by number from disk."""

import collections
import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from vqgan.data.contract import Contract
from vqgan.data.rows import Rows, gather
from vqgan.data.splitting import is_held_back
from vqgan.data.token_shards import ShardInfo, read_group, read_keys

BLOCKS_MIXED = 32
"""Row groups of a data set on disk whose rows are mixed at any one time."""
BLOCKS_KEPT = BLOCKS_MIXED + 4
"""Decoded row groups that stay in memory: those that are mixed, and some to spare."""


@dataclasses.dataclass(frozen=True)
class Half:
    """One side of the split by key; everything where ``holdout`` is 0 and nothing is asked to be held back.

    Attributes:
      holdout: one image in so many is held back.
      held_back: whether those are meant, or the others.
    """

    holdout: int = 0
    held_back: bool = False

    @property
    def is_all(self) -> bool:
        """Whether every row counts."""
        return not self.holdout and not self.held_back

    def accepts(self, keys: pa.Array) -> np.ndarray:
        """Which rows count, bool ``[N]``. Each key is looked at once, however many views it has."""
        encoded = keys.dictionary_encode()
        wanted = [is_held_back(key, self.holdout) == self.held_back for key in encoded.dictionary.to_pylist()]
        return np.array(wanted, bool)[encoded.indices.to_numpy()]


class Images(NamedTuple):
    """Which rows show the same image.

    Attributes:
      rows: int64 ``[N]``, numbers of rows, image by image, in the order of the images' first rows.
      counts: int64 ``[M]``, how many views each image has.
    """

    rows: np.ndarray
    counts: np.ndarray


class Group(NamedTuple):
    """A row group.

    Attributes:
      shard: which shard.
      number: which of its row groups.
      kept: int64 numbers of its rows that count, or None for all.
      rows: how many count.
    """

    shard: ShardInfo
    number: int
    kept: np.ndarray | None
    rows: int


class Decoded:
    """The row groups that were asked for last, for many threads.

    One thread reads a row group and others that want the same one wait for it; those that want another do
    not. What could not be read is tried again when it is asked for again.
    """

    def __init__(self, read: Callable[[int], Rows], kept: int) -> None:
        """``read`` decodes a row group; ``kept`` of them stay in memory."""
        self._read, self._kept = read, kept
        self._groups: collections.OrderedDict[int, Future[Rows]] = collections.OrderedDict()
        self._lock = threading.Lock()  # of the dictionary; never held while something is read

    def __call__(self, number: int) -> Rows:
        """The rows of a row group. Raises what reading it raises."""
        with self._lock:
            group = self._groups.get(number)
            is_new = group is None
            if group is None:
                group = self._groups[number] = Future()
            self._groups.move_to_end(number)
            if len(self._groups) > self._kept:
                self._groups.popitem(last=False)
        if is_new:
            self._fill(number, group)
        return group.result()

    def _fill(self, number: int, group: "Future[Rows]") -> None:
        try:
            group.set_result(self._read(number))
        except BaseException as error:  # an interrupt, too: nobody may wait for ever
            with self._lock:
                if self._groups.get(number) is group:
                    del self._groups[number]
            group.set_exception(error)


class RowGroups:
    """Rows of a half of a data set, numbered from 0 through all shards. Safe from many threads.

    Attributes:
      sizes: int64 ``[R]``, rows of each row group that has some.
      starts: int64 ``[R]``, the number of each one's first row.
      fields: Arrow fields of the columns besides tokens and label.
    """

    def __init__(self, contract: Contract, shards: Sequence[ShardInfo], half: Half) -> None:
        self._contract, self._shards, self._half = contract, shards, half
        self.fields = dict(shards[0].fields) if shards else {}
        self._groups = [group for shard in shards for group in self._groups_of(shard) if group.rows]
        self.sizes = np.array([group.rows for group in self._groups], np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self._decoded = Decoded(self.group, BLOCKS_KEPT)

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def group(self, number: int) -> Rows:
        """All rows of a row group, from disk.

        Raises:
          UserError: a shard is gone or damaged, or has tokens outside of the codebook.
        """
        group = self._groups[number]
        return read_group(self._contract, group.shard, group.number, group.kept, self.fields)

    def read(self, numbers: np.ndarray) -> Rows:
        """Rows by number, int64 ``[B]``, at least one. Raises like :meth:`group`."""
        owners = np.searchsorted(self.starts, numbers, side="right") - 1
        return gather(
            owners, numbers - self.starts[owners], lambda number, rows: self._decoded(number).take(rows)
        )

    def images(self) -> Images:
        """Which rows are views of the same image. Reads all keys.

        Raises:
          UserError: a shard is gone or damaged.
        """
        rows, counts, start = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
        for shard in self._shards:  # no image has rows in two shards
            keys = read_keys(self._contract, shard)
            if not self._half.is_all:
                keys = keys.filter(pa.array(self._half.accepts(keys)))
            owners = keys.dictionary_encode().indices.to_numpy()
            rows.append(start + np.argsort(owners, kind="stable"))
            counts.append(np.bincount(owners))
            start += len(keys)
        return Images(np.concatenate(rows), np.concatenate(counts))

    def _groups_of(self, shard: ShardInfo) -> list[Group]:
        if self._half.is_all:
            return [Group(shard, number, None, rows) for number, rows in enumerate(shard.group_rows)]
        accepted = self._half.accepts(read_keys(self._contract, shard))
        parts = np.split(accepted, np.cumsum(shard.group_rows)[:-1])
        kept = [np.flatnonzero(part) for part in parts]
        return [Group(shard, number, rows, len(rows)) for number, rows in enumerate(kept)]


def load(groups: RowGroups, length: int, dtype: np.dtype) -> Rows:
    """All rows, in memory.

    Args:
      groups: where they lie.
      length: ``L``, tokens of a row.
      dtype: of the tokens.

    Raises:
      UserError: a shard is gone or damaged, or has tokens outside of the codebook.
    """
    tokens = np.empty((len(groups), length), dtype)
    labels = np.empty(len(groups), np.int32)
    columns: dict[str, list[pa.Array]] = {name: [] for name in groups.fields}
    for number, (start, size) in enumerate(zip(groups.starts, groups.sizes, strict=True)):
        part = groups.group(number)
        tokens[start : start + size] = part.tokens
        labels[start : start + size] = part.labels
        for name, values in part.columns.items():
            columns[name].append(values)
    return Rows(tokens, labels, {name: pa.concat_arrays(parts) for name, parts in columns.items() if parts})
