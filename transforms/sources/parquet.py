"""Images in Parquet files: Hugging Face's layout, or a plain binary column."""

import bisect
import dataclasses
import functools
import itertools
import os
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.sources.base import Entry, Example, Loader, SourceConfig, error_reason
from transforms.sources.columns import check_label, image_column, require
from transforms.sources.locations import Found, Location, from_file, locate, open_file, to_file
from transforms.sources.reading import (
    DamagedFileError,
    check_size,
    container_files,
    failing,
    list_containers,
    read_containers,
    read_exact,
    to_label,
)

_BATCH_ROWS = 16
_LIST_BATCH_ROWS = 8192
_BUFFER_BYTES = 4 << 20
_ERRORS = (OSError, ValueError, pa.ArrowException)
"""What pyarrow raises on a damaged file (ArrowMemoryError among them, for an absurd size)."""


@dataclasses.dataclass(frozen=True)
class ParquetSource:
    """Images in a column of one or many Parquet files.

    The column is of type struct<bytes, path> or binary. Where a struct has no bytes but a path, the file
    of that path below the Parquet file's folder is read; absolute paths and ``..`` are refused, since
    whoever wrote the Parquet file could otherwise have any file read.

    The key is the key column as a string, else ``<file>#<row>``. Rows are read in small batches, and only
    those columns that are asked for; how much pyarrow holds at a time is up to the size of the file's pages.
    Page checksums are verified where the writer stored any; pyarrow and many others do not by default, and
    a bit that flips in such a file may go unnoticed.
    """

    config: SourceConfig

    shuffles = False
    options = frozenset({"image_column", "key_column", "label_column", "columns"})

    def fields(self) -> list[pa.Field]:
        """The further columns, with the types that the first readable file gives them.

        Raises:
          UserError: a column is missing, or labels are no integers.
        """
        schema = self._schema(locate(self.config.input))
        require(self.config.input, schema.names, self.config.columns)
        return [schema.field(name).with_nullable(True) for name in self.config.columns]

    def class_names(self) -> None:
        """None: classes are numbers here."""

    def list(self) -> Iterator[Entry]:
        """An entry for each row, its ``offset`` being the number of the row; sizes are not known.

        Only footers are read, and the key and label columns if they are named.

        Raises:
          UserError: the first readable file lacks a column that is asked for, or an image column.
        """
        location = locate(self.config.input)
        schema = self._schema(location)
        return list_containers(location, functools.partial(self._list_one, schema))

    def read(self, entries: Sequence[Entry]) -> Iterator[Loader]:
        """A loader for each entry. Rows of a file should come in their order: a step back starts over."""
        location = locate(self.config.input)
        return read_containers(location, entries, functools.partial(self._read_one, location))

    def _schema(self, location: Location) -> pa.Schema:
        """The schema of the first file that can be read, checked; empty if none can."""
        for found in container_files(location):
            try:
                with open_file(location, found.file) as file:
                    schema: pa.Schema = pq.read_schema(file)
            except _ERRORS:
                continue
            self._check(found, schema)
            return schema
        return pa.schema([])

    def _check(self, found: Found, schema: pa.Schema) -> None:
        config, where = self.config, f"{self.config.input} ({found.key})"
        require(where, schema.names, [config.key_column, config.label_column, *config.columns])
        if config.label_column:
            check_label(where, schema.field(config.label_column))
        image_column(where, schema, config.image_column)

    def _list_one(self, expected: pa.Schema, file: pa.NativeFile, found: Found) -> Iterator[Entry]:
        parquet = _open(file)
        self._check_same(expected, parquet.schema_arrow)
        sizes = _group_sizes(parquet)
        if sum(sizes) != parquet.metadata.num_rows:
            raise DamagedFileError(0, "the footer contradicts itself about the number of rows")
        first = 0
        for group, count in enumerate(sizes):
            yield from self._list_group(parquet, group, range(first, first + count), found)
            first += count

    def _check_same(self, expected: pa.Schema, schema: pa.Schema) -> None:
        config = self.config
        image = image_column(config.input, expected, config.image_column)
        for name in (image, config.key_column, config.label_column, *config.columns):
            if name and (name not in schema.names or schema.field(name).type != expected.field(name).type):
                raise DamagedFileError(0, f"column {name} is missing here or has another type than elsewhere")

    def _list_group(self, parquet: pq.ParquetFile, group: int, rows: range, found: Found) -> Iterator[Entry]:
        """Entries of one row group, all of which bear an error if its keys or labels are damaged."""
        key_column, label_column = self.config.key_column, self.config.label_column
        names = [name for name in (key_column, label_column) if name]
        try:
            table = _read_group_columns(parquet, group, names, len(rows)) if names else None
        except _ERRORS as error:
            message = f"row group {group} is damaged ({error_reason(error)})"
            yield from (Entry(f"{found.key}#{row}", found.file, row, error=message) for row in rows)
            return
        keys = _values(table, key_column, len(rows))
        labels = _values(table, label_column, len(rows))
        for row, key, label in zip(rows, keys, labels, strict=True):
            yield _entry(found, row, key, label, key_column)

    def _read_one(
        self, location: Location, file: pa.NativeFile, entries: Sequence[Entry]
    ) -> Iterator[Loader]:
        parquet = _open(file)
        image = image_column(self.config.input, parquet.schema_arrow, self.config.image_column)
        ends = list(itertools.accumulate(_group_sizes(parquet)))
        for group, wanted in itertools.groupby(entries, key=lambda entry: _group_of(entry.offset, ends)):
            first = ends[group - 1] if group else 0
            yield from self._read_group(parquet, group, first, list(wanted), image, location)

    def _read_group(
        self,
        parquet: pq.ParquetFile,
        group: int,
        first: int,
        entries: Sequence[Entry],
        image: str,
        location: Location,
    ) -> Iterator[Loader]:
        rows = _Rows(parquet, group, first, [image, *self.config.columns])
        for entry in entries:
            try:
                row = rows.at(entry.offset)
            except _ERRORS as error:
                yield failing(ValueError(f"row group {group} is damaged ({error_reason(error)})"))
                continue
            yield functools.partial(self._load, row, image, entry, location)

    def _load(self, row: pa.RecordBatch, image: str, entry: Entry, location: Location) -> Example:
        columns = {name: row.column(name)[0].as_py() for name in self.config.columns}
        value = row.column(image)[0].as_py()
        return Example(_image_bytes(value, entry, location), entry.label, columns)


class _Rows:
    """Rows of one row group, read forward in small batches."""

    def __init__(self, parquet: pq.ParquetFile, group: int, first: int, columns: Sequence[str]) -> None:
        self._parquet = parquet
        self._group = group
        self._first = first
        self._columns = list(dict.fromkeys(columns))
        self._restart()

    def at(self, row: int) -> pa.RecordBatch:
        """One row of the file. Raises one of ``_ERRORS`` if its batch, or one before it, is damaged."""
        if row < self._start:
            self._restart()
        while row >= self._start + len(self._batch):
            self._advance()
        return self._batch.slice(row - self._start, 1)

    def _restart(self) -> None:
        self._start = self._first
        self._batch: pa.RecordBatch = pa.RecordBatch.from_pylist([])
        self._error: Exception | None = None
        batches = self._parquet.iter_batches(_BATCH_ROWS, [self._group], self._columns, use_threads=False)
        self._batches: Iterator[pa.RecordBatch] = batches

    def _advance(self) -> None:
        """The next batch. After a damaged one the rest of the group cannot be trusted to be in step."""
        if self._error:
            raise self._error.with_traceback(None)
        try:
            batch = next(self._batches, None)
            if batch is None:
                raise ValueError("fewer rows than the footer says")
        except _ERRORS as error:
            self._error = error
            raise
        self._start += len(self._batch)
        self._batch = batch


def _open(file: pa.NativeFile) -> pq.ParquetFile:
    """Raises DamagedFileError if this is no whole Parquet file."""
    try:
        # Without a buffer, or with pre_buffer, pyarrow reads the column chunk of a whole row group at once.
        return pq.ParquetFile(
            file, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        )
    except _ERRORS as error:
        raise DamagedFileError(0, f"no whole Parquet file ({error_reason(error)})") from error


def _group_sizes(parquet: pq.ParquetFile) -> list[int]:
    return [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]


def _read_group_columns(parquet: pq.ParquetFile, group: int, names: Sequence[str], count: int) -> pa.Table:
    """Small columns of a row group. Raises one of ``_ERRORS``."""
    table = parquet.read_row_group(group, columns=list(names))
    if table.num_rows != count:
        raise ValueError(f"{table.num_rows} rows, not the {count} of the footer")
    return table


def _group_of(row: int, ends: Sequence[int]) -> int:
    return min(bisect.bisect_right(ends, row), len(ends) - 1)


def _values(table: pa.Table | None, column: str | None, count: int) -> Sequence[Any]:
    return [None] * count if table is None or column is None else table.column(column).to_pylist()


def _entry(found: Found, row: int, key: Any, label: Any, key_column: str | None) -> Entry:
    own = f"{found.key}#{row}"
    if key_column and key is None:
        return Entry(own, found.file, row, error=f"no key in column {key_column}")
    text = key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)
    try:
        return Entry(text if key_column else own, found.file, row, label=to_label(label))
    except ValueError as error:
        return Entry(text if key_column else own, found.file, row, error=str(error))


def _image_bytes(value: Any, entry: Entry, location: Location) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    path = value.get("path") if isinstance(value, dict) else None
    if data is None and path:
        data = _companion(str(path), entry, location)
    if not data:
        raise ValueError("no image in this row" if data is None else "the image in this row is empty")
    check_size(len(data))
    return bytes(data)


def _companion(path: str, entry: Entry, location: Location) -> bytes:
    normal = posixpath.normpath(path)
    if "://" in path or normal.startswith("/") or normal.split("/")[0] == "..":
        raise ValueError(f"the row has no bytes, and its path {path!r:.200} leads out of the file's folder")
    folder = posixpath.dirname(os.fsdecode(from_file(entry.file)))
    with open_file(location, to_file(posixpath.join(folder, normal))) as file:
        return read_exact(file, 0, file.size())
