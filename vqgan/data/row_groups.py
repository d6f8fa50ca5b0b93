"""The row groups of a token data set: which of their rows count, and rows by number from disk."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from vqgan import filesystems
from vqgan.caching import LatestResults
from vqgan.data.shuffle import groups_of
from vqgan.data.splits import Split
from vqgan.data.token_shards import ShardInfo, labels_of, one_array, read_keys
from vqgan.errors import UserError
from vqgan.manifest import TokenManifest
from vqgan.shards import Shard, open_shard

ROW_GROUPS_MIXED = 32
"""Row groups of a data set on disk whose rows are mixed at any one time."""
ROW_GROUPS_KEPT = ROW_GROUPS_MIXED + 4
"""Decoded row groups that stay in memory: those that are mixed, and some to spare."""


class Rows(NamedTuple):
    """Rows as they are kept in memory.

    Attributes:
      tokens: uint16 or uint32 ``[N, L]``.
      labels: int32 ``[N]``, -1 for none.
      columns: one Arrow array of ``N`` values each.
    """

    tokens: np.ndarray
    labels: np.ndarray
    columns: Mapping[str, pa.Array]

    def take(self, numbers: np.ndarray) -> "Rows":
        """Returns some rows, in the order of int64 ``[B]`` numbers."""
        columns = {name: values.take(pa.array(numbers)) for name, values in self.columns.items()}
        return Rows(np.take(self.tokens, numbers, axis=0), np.take(self.labels, numbers), columns)


class Images(NamedTuple):
    """Which rows show the same image.

    Attributes:
      rows: int64 ``[N]``, numbers of rows, image by image, in the order of the images' first rows.
      counts: int64 ``[M]``, how many views each image has.
    """

    rows: np.ndarray
    counts: np.ndarray


class RowGroup(NamedTuple):
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


class RowGroups:
    """Rows of a split of a data set, numbered from 0 through all shards. Safe from many threads.

    Attributes:
      sizes: int64 ``[R]``, rows of each row group that has some.
      starts: int64 ``[R]``, the number of each one's first row.
      fields: Arrow fields of the columns besides tokens and label.
    """

    def __init__(self, manifest: TokenManifest, shards: Sequence[ShardInfo], split: Split) -> None:
        self._manifest, self._shards, self._split = manifest, shards, split
        self.fields = dict(shards[0].fields) if shards else {}
        self._groups = [group for shard in shards for group in self._groups_of(shard) if group.rows]
        self.sizes = np.array([group.rows for group in self._groups], np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self._decoded = LatestResults(self.group, ROW_GROUPS_KEPT)

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def group(self, number: int) -> Rows:
        """Reads all rows of a row group from disk.

        Raises:
          UserError: a shard is gone or damaged, or has tokens outside of the codebook.
        """
        group = self._groups[number]
        return read_group(self._manifest, group.shard, group.number, group.kept, self.fields)

    def read(self, numbers: np.ndarray) -> Rows:
        """Reads rows by number, int64 ``[B]``, at least one. Raises like :meth:`group`."""
        owners = np.searchsorted(self.starts, numbers, side="right") - 1
        return gather(
            owners, numbers - self.starts[owners], lambda number, rows: self._decoded(number).take(rows)
        )

    def images(self) -> Images:
        """Finds which rows are views of the same image. Reads all keys.

        Raises:
          UserError: a shard is gone or damaged.
        """
        rows, counts, start = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
        for shard in self._shards:  # no image has rows in two shards
            keys = read_keys(self._manifest, shard)
            if not self._split.is_all:
                keys = keys.filter(pa.array(self._split.accepts(keys)))
            owners = keys.dictionary_encode().indices.to_numpy()
            rows.append(start + np.argsort(owners, kind="stable"))
            counts.append(np.bincount(owners))
            start += len(keys)
        return Images(np.concatenate(rows), np.concatenate(counts))

    def _groups_of(self, shard: ShardInfo) -> list[RowGroup]:
        if self._split.is_all:
            return [RowGroup(shard, number, None, rows) for number, rows in enumerate(shard.group_rows)]
        accepted = self._split.accepts(read_keys(self._manifest, shard))
        parts = np.split(accepted, np.cumsum(shard.group_rows)[:-1])
        kept = [np.flatnonzero(part) for part in parts]
        return [RowGroup(shard, number, rows, len(rows)) for number, rows in enumerate(kept)]


def load_rows(groups: RowGroups, length: int, dtype: np.dtype) -> Rows:
    """Reads all rows into memory.

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


def read_group(
    manifest: TokenManifest,
    shard: ShardInfo,
    group: int,
    kept: np.ndarray | None,
    fields: Mapping[str, pa.Field],
) -> Rows:
    """Reads the rows of one row group.

    Args:
      manifest: of the data set.
      shard: which shard.
      group: which of its row groups.
      kept: int64 numbers of the rows that are wanted, or None for all.
      fields: columns to read besides.

    Raises:
      UserError: the shard is gone or damaged, or has tokens outside of the codebook.
    """
    path = filesystems.join(manifest.folder, shard.name)
    with open_shard(path) as file:
        table = file.row_group(group, ["tokens", "label", *fields])
        tokens = flat_tokens(file, table)  # all of them: validation rows may be damaged, too
    columns = {name: one_array(table.column(name)) for name in fields}
    rows = Rows(tokens, labels_of(table.column("label")), columns)
    return rows if kept is None else rows.take(kept)


def flat_tokens(shard: Shard, table: pa.Table) -> np.ndarray:
    """Returns the tokens of a shard's table, uint16 or uint32 ``[rows, L]``.

    Raises:
      UserError: nulls, or tokens outside of the codebook.
    """
    column = one_array(table.column("tokens"))
    flat = column.flatten()
    if column.null_count or flat.null_count:
        raise UserError(f"{shard.name}: damaged (rows without tokens); run vqgan verify on the data set")
    tokens = flat.to_numpy().reshape(len(column), -1)
    if tokens.size and int(tokens.max()) >= shard.metadata.codebook_size:
        raise UserError(
            f"{shard.name}: token {tokens.max()} is outside of a codebook of "
            f"{shard.metadata.codebook_size} codes; run vqgan verify on the data set"
        )
    return tokens


def gather(owners: np.ndarray, numbers: np.ndarray, read: Callable[[int, np.ndarray], Rows]) -> Rows:
    """Puts rows together that lie in several places.

    Args:
      owners: int ``[B]``, where each row lies; at least one.
      numbers: int64 ``[B]``, its number there.
      read: some rows (int64 ``[M]`` numbers) of one place.

    Returns:
      The ``B`` rows, in the order asked for.
    """
    groups = list(groups_of(owners))
    parts = [read(owner, numbers[members]) for owner, members in groups]
    if len(parts) == 1:
        return parts[0]
    return _concatenated(parts).take(np.argsort(np.concatenate([members for _, members in groups])))


def _concatenated(parts: Sequence[Rows]) -> Rows:
    """Returns the rows of all parts, one after the other; at least one part."""
    return Rows(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.labels for part in parts]),
        {name: pa.concat_arrays([part.columns[name] for part in parts]) for name in parts[0].columns},
    )
