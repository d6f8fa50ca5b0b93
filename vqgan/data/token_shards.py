"""The shards of a finished data set: checked against its manifest, and read by row groups."""

import contextlib
import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from vqgan import filesystems
from vqgan.data.contract import Contract, check_fact, check_footer, check_size
from vqgan.data.rows import Rows, column_kind
from vqgan.errors import UserError, first_line
from vqgan.manifest import AGAIN
from vqgan.shards import Shard

LARGE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
"""Types whose arrays cannot hold more than 2 GiB, and what holds it."""


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """What a shard's footer tells.

    Attributes:
      name: of the file.
      group_rows: rows of each row group.
      slice_number: which slice of the plan.
      fields: columns that were asked for.
      column_bytes: that those take in memory, about.
      largest_label: -1 where there is none.
    """

    name: str
    group_rows: tuple[int, ...]
    slice_number: int
    fields: Mapping[str, pa.Field]
    column_bytes: int
    largest_label: int


def check_shard(contract: Contract, entry: Mapping[str, Any], columns: Sequence[str]) -> ShardInfo:
    """Compares one shard's size and footer with the manifest. Reads no page.

    Raises:
      UserError: it is missing, damaged or not the one of the manifest, or has no such column.
    """
    path = filesystems.join(contract.folder, entry["name"])
    info = filesystems.file_info(path)
    check_size(path, None if info.type == fs.FileType.NotFound else info.size, entry["bytes"])
    with open_shard(path) as shard:
        check_footer(path, shard.metadata, shard.rows, contract, entry["rows"])
        check_fact(path, "codebook size", shard.metadata.codebook_size, contract.codebook_size)
        return shard.info(entry["name"], columns)


def check_together(contract: Contract, shards: Sequence[ShardInfo]) -> None:
    """That each slice is there once, and the columns are the same everywhere.

    Raises:
      UserError: they are not.
    """
    if sorted(shard.slice_number for shard in shards) != list(range(len(shards))):
        raise UserError(
            f"{contract.path}: some slices of its plan are there twice, others not at all; restore its "
            "shards, or move them away and run the command that wrote the data set again"
        )
    for shard in shards:
        for name, field in shard.fields.items():
            first = shards[0].fields[name]
            if field != first:
                where = filesystems.join(contract.folder, shard.name)
                raise UserError(
                    f"{where}: its column {name!r} is {column_kind(field)}, elsewhere {column_kind(first)}; "
                    "leave the column out"
                )


def read_group(
    contract: Contract, shard: ShardInfo, group: int, kept: np.ndarray | None, fields: Mapping[str, pa.Field]
) -> Rows:
    """The rows of one row group.

    Args:
      contract: of the data set.
      shard: which shard.
      group: which of its row groups.
      kept: int64 numbers of the rows that are wanted, or None for all.
      fields: columns to read besides.

    Raises:
      UserError: the shard is gone or damaged, or has tokens outside of the codebook.
    """
    path = filesystems.join(contract.folder, shard.name)
    with open_shard(path) as file:
        table = file.read_group(group, ["tokens", "label", *fields])
        tokens = file.flat_tokens(table)  # all of them: what is held back may be damaged, too
    columns = {name: _one_array(table.column(name)) for name in fields}
    rows = Rows(tokens, labels_of(table.column("label")), columns)
    return rows if kept is None else rows.take(kept)


@contextlib.contextmanager
def open_shard(path: str) -> Iterator["TokenShard"]:
    """A shard, open while the block lasts.

    Raises:
      UserError: it is not there, or no token shard.
    """
    filesystem, inner = filesystems.resolve(path)
    try:
        file = filesystem.open_input_file(inner)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({first_line(error)})") from error
    with file, TokenShard(file, path) as shard:
        yield shard


class TokenShard(Shard):
    """A shard that is read by row groups."""

    def info(self, name: str, columns: Sequence[str]) -> ShardInfo:
        """What the footer tells, and whether there are these columns.

        Raises:
          UserError: a column is not there.
        """
        for column in columns:
            self._require_column(column)
        footer = self._file.metadata
        groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
        return ShardInfo(
            name=name,
            group_rows=tuple(group.num_rows for group in groups),
            slice_number=self.metadata.slice_number,
            fields={column: self.schema.field(column).remove_metadata() for column in columns},
            column_bytes=sum(_column_bytes(group, set(columns)) for group in groups),
            largest_label=max((self._largest_label(number) for number in range(len(groups))), default=-1),
        )

    def read_group(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of one row group.

        Raises:
          UserError: a damaged page.
        """
        try:
            return self._file.read_row_group(group, columns=list(dict.fromkeys(columns)))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{self.name}: damaged ({first_line(error)}); {AGAIN}") from error

    def flat_tokens(self, table: pa.Table) -> np.ndarray:
        """The tokens of a table, uint16 or uint32 ``[rows, L]``.

        Raises:
          UserError: nulls, or tokens outside of the codebook.
        """
        column = _one_array(table.column("tokens"))
        flat = column.flatten()
        if column.null_count or flat.null_count:
            raise UserError(f"{self.name}: damaged (rows without tokens); run vqgan verify on the data set")
        tokens = flat.to_numpy().reshape(len(column), -1)
        if tokens.size and int(tokens.max()) >= self.metadata.codebook_size:
            raise UserError(
                f"{self.name}: token {tokens.max()} is outside of a codebook of "
                f"{self.metadata.codebook_size} codes; run vqgan verify on the data set"
            )
        return tokens

    def _require_column(self, name: str) -> None:
        known = [column for column in self.schema.names if column != "tokens"]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise UserError(f"{self.name}: no column {name!r} besides the tokens; {hint}")

    def _largest_label(self, group: int) -> int:
        """From the footer where it tells, else from the column."""
        footer = self._file.metadata.row_group(group)
        chunks = map(footer.column, range(footer.num_columns))
        known = next(chunk.statistics for chunk in chunks if chunk.path_in_schema == "label")
        if known is not None and known.has_min_max:
            return max(int(known.max), -1)  # any number below 0 stands for no class
        if known is not None and known.has_null_count and known.null_count == footer.num_rows:
            return -1
        labels = labels_of(self.read_group(group, ["label"]).column("label"))
        return int(labels.max(initial=-1))


def read_keys(contract: Contract, shard: ShardInfo) -> pa.Array:
    """The key of each row of a shard.

    Raises:
      UserError: the shard is gone or damaged.
    """
    path = filesystems.join(contract.folder, shard.name)
    with open_shard(path) as file:
        parts = [file.read_group(group, ["key"]).column("key") for group in range(len(shard.group_rows))]
    keys = _one_array(pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string()))
    if keys.null_count:
        raise UserError(f"{path}: damaged (rows without a key); run vqgan verify on the data set")
    return keys


def labels_of(column: pa.ChunkedArray) -> np.ndarray:
    """int32 labels, -1 where there is none. Sources mark images without a class by numbers below 0, too."""
    return np.maximum(pc.fill_null(column, -1).to_numpy(), -1).astype(np.int32)


def _column_bytes(group: Any, names: set[str]) -> int:
    chunks = map(group.column, range(group.num_columns))
    return sum(
        chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in names
    )


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    if column.type in LARGE:
        column = column.cast(LARGE[column.type])
    return column.combine_chunks()
