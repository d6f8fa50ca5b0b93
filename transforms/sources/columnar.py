"""Images in Parquet and Arrow files: the layouts of Hugging Face, or a plain binary column.

Arrow files are what ``Dataset.save_to_disk`` writes, and streams or files of other writers.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transforms.sources.base import error_reason
from transforms.sources.reading import DamagedFileError
from transforms.sources.tabular import ERRORS, TableSource

_BATCH_ROWS = 16
_BUFFER_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class ParquetSource(TableSource):
    """Images in a column of one or many Parquet files; see :class:`TableSource`.

    For listing, only footers are read, and the key and label columns if they are named. Rows are read in
    small batches, and only those columns that are asked for; how much pyarrow holds at a time is up to the
    size of the file's pages. Page checksums are verified where the writer stored any; pyarrow and many others
    do not by default, and a bit that flips in such a file may go unnoticed.
    """

    kind = "parquet"

    def open_table(self, file: pa.NativeFile) -> "ParquetRows":
        """Raises DamagedFileError if this is no whole Parquet file."""
        return ParquetRows(_open(file))


class ParquetRows:
    """The rows of an open Parquet file, in its row groups."""

    def __init__(self, parquet: pq.ParquetFile) -> None:
        self._parquet = parquet
        self.schema: pa.Schema = parquet.schema_arrow

    def sizes(self) -> list[int]:
        """Gives them as the footer has them. Raises DamagedFileError if it contradicts itself."""
        sizes = _group_sizes(self._parquet)
        if sum(sizes) != self._parquet.metadata.num_rows:
            raise DamagedFileError(0, "the footer contradicts itself about the number of rows")
        return sizes

    def values(self, group: int, names: Sequence[str], count: int) -> pa.Table:
        """Reads small columns of a row group. Raises one of ``ERRORS``."""
        return _read_group_columns(self._parquet, group, names, count)

    def elements(self, group: int, image: str) -> list[int]:
        """Returns lengths of lists, from another column of their elements than the images if there is one."""
        # By the schema alone: asked for the size of a column chunk that is damaged, pyarrow ends the process.
        schema = self._parquet.schema
        paths = [schema.column(number).path for number in range(len(schema))]
        leaves = [path for path in paths if path.startswith(f"{image}.")]
        leaf = min(leaves, key=lambda path: path.endswith(".bytes"))  # those are the images themselves
        column = self._parquet.read_row_group(group, columns=[leaf]).column(image)
        return [count or 0 for count in pc.list_value_length(column).to_pylist()]

    def rows(self, group: int, first: int, names: Sequence[str]) -> "_Rows":
        """Returns some columns of a row group, read forward in small batches."""
        return _Rows(self._parquet, group, first, names)


class _Rows:
    """Rows of one row group, read forward in small batches."""

    def __init__(self, parquet: pq.ParquetFile, group: int, first: int, columns: Sequence[str]) -> None:
        self._parquet = parquet
        self._group = group
        self._first = first
        self._columns = list(dict.fromkeys(columns))
        self._restart()

    def at(self, row: int) -> pa.RecordBatch:
        """Gives one row of the file. Raises one of ``ERRORS`` if its batch, or one before it, is damaged."""
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
        """Moves to the next batch. After a damaged one the rest of the group may be out of step."""
        if self._error:
            raise self._error.with_traceback(None)
        try:
            batch = next(self._batches, None)
            if batch is None:
                raise ValueError("fewer rows than the footer says")
        except ERRORS as error:
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
    except ERRORS as error:
        raise DamagedFileError(0, f"no whole Parquet file ({error_reason(error)})") from error


def _group_sizes(parquet: pq.ParquetFile) -> list[int]:
    return [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]


def _read_group_columns(parquet: pq.ParquetFile, group: int, names: Sequence[str], count: int) -> pa.Table:
    """Reads small columns of a row group. Raises one of ``ERRORS``."""
    table = parquet.read_row_group(group, columns=list(names))
    if table.num_rows != count:
        raise ValueError(f"{table.num_rows} rows, not the {count} of the footer")
    return table


_FILE_MAGIC = b"ARROW1"


@dataclasses.dataclass(frozen=True)
class ArrowSource(TableSource):
    """Images in a column of one or many Arrow files; see :class:`TableSource`.

    Such a file is read batch by batch, and in full for listing too; the batches' size is what memory takes.
    There are no checksums in it.
    """

    kind = "arrow"

    def open_table(self, file: pa.NativeFile) -> "ArrowRows":
        """Raises DamagedFileError if this is no Arrow file."""
        return ArrowRows(file)


class ArrowRows:
    """The rows of an open Arrow file, in its record batches."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file
        self._sizes: list[int] | None = None
        self._current: pa.RecordBatch | None = None
        self._restart()

    def sizes(self) -> list[int]:
        """Counts rows of every batch, which takes reading all.

        Raises DamagedFileError where one cannot be read.
        """
        if self._sizes is None:
            sizes: list[int] = []
            try:
                while (batch := self._batch(len(sizes))) is not None:
                    sizes.append(batch.num_rows)
            except ERRORS as error:
                raise DamagedFileError(0, f"batch {len(sizes)} is damaged ({error_reason(error)})") from error
            self._sizes = sizes
        return self._sizes

    def values(self, group: int, names: Sequence[str], count: int) -> pa.Table:
        """Returns some columns of a batch."""
        return pa.Table.from_batches([self._read(group)]).select(list(names))

    def elements(self, group: int, image: str) -> list[int]:
        """Returns lengths of lists."""
        return [count or 0 for count in pc.list_value_length(self._read(group).column(image)).to_pylist()]

    def rows(self, group: int, first: int, names: Sequence[str]) -> "_Batch":
        """Returns some columns of a batch."""
        return _Batch(self, group, first, list(dict.fromkeys(names)))

    def _read(self, group: int) -> pa.RecordBatch:
        batch = self._batch(group)
        if batch is None:
            raise ValueError("fewer batches than before")
        return batch

    def _batch(self, group: int) -> pa.RecordBatch | None:
        """Returns a batch, by reading forward; None after the last. Raises one of ``ERRORS``."""
        if group < self._number:
            self._restart()
        while self._number < group or self._current is None:
            batch = next(self._batches, None)
            if batch is None:
                return None
            batch.validate(full=True)  # else its offsets may lead anywhere in memory
            self._number += 1
            self._current = batch
        return self._current

    def _restart(self) -> None:
        is_file = self._file.read_at(min(len(_FILE_MAGIC), self._file.size()), 0) == _FILE_MAGIC
        self._file.seek(0)
        try:
            if is_file:
                reader = pa.ipc.open_file(self._file)
                self._batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                reader = pa.ipc.open_stream(self._file)
                self._batches = iter(reader)
        except ERRORS as error:
            raise DamagedFileError(0, f"no Arrow file ({error_reason(error)})") from error
        self.schema: pa.Schema = reader.schema
        self._number = -1
        self._current = None


class _Batch:
    """Rows of one batch."""

    def __init__(self, rows: ArrowRows, group: int, first: int, names: list[str]) -> None:
        self._rows = rows
        self._group = group
        self._first = first
        self._names = names

    def at(self, row: int) -> pa.RecordBatch:
        """Returns one row of the file. Raises one of ``ERRORS`` if its batch is damaged."""
        batch = self._rows._read(self._group).select(self._names)
        return batch.slice(row - self._first, 1)
