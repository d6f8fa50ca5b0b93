"""Images in Arrow files: what ``Dataset.save_to_disk`` writes, and streams or files of other writers."""

import dataclasses
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from transforms.sources.base import error_reason
from transforms.sources.reading import DamagedFileError
from transforms.sources.tabular import ERRORS, TableSource

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
        """Rows of every batch, which takes reading all. Raises DamagedFileError where one cannot be read."""
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
        """Some columns of a batch."""
        return pa.Table.from_batches([self._read(group)]).select(list(names))

    def elements(self, group: int, image: str) -> list[int]:
        """Lengths of lists."""
        return [count or 0 for count in pc.list_value_length(self._read(group).column(image)).to_pylist()]

    def rows(self, group: int, first: int, names: Sequence[str]) -> "_Batch":
        """Some columns of a batch."""
        return _Batch(self, group, first, list(dict.fromkeys(names)))

    def _read(self, group: int) -> pa.RecordBatch:
        batch = self._batch(group)
        if batch is None:
            raise ValueError("fewer batches than before")
        return batch

    def _batch(self, group: int) -> pa.RecordBatch | None:
        """A batch, by reading forward; None after the last. Raises one of ``ERRORS``."""
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
        """One row of the file. Raises one of ``ERRORS`` if its batch is damaged."""
        batch = self._rows._read(self._group).select(self._names)
        return batch.slice(row - self._first, 1)
