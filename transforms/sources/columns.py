"""Tables of images: choosing columns by name, and lists (text, CSV, TSV, Parquet) read row by row."""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.sources.base import error_reason
from transforms.sources.locations import Found, Location, open_file
from vqgan.errors import UserError

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "bytes", "image_bytes", "image_data", "content")
"""Names by which a column of images is recognised."""


def require(where: str, columns: Sequence[str], wanted: Sequence[str | None]) -> None:
    """Makes sure that the wanted columns (None: not wanted) are there.

    Raises:
      UserError: one is not; it names those that are.
    """
    missing = [name for name in wanted if name is not None and name not in columns]
    if missing:
        raise UserError(f"{where}: no column {', '.join(missing)}; there are {', '.join(columns)}")


def first_of(where: str, columns: Sequence[str], candidates: Sequence[str], what: str) -> str:
    """The first candidate that is a column.

    Raises:
      UserError: none is.
    """
    for name in candidates:
        if name in columns:
            return name
    raise UserError(
        f"{where}: no column looks like {what}; name one with image_column: there are {', '.join(columns)}"
    )


def check_label(where: str, field: pa.Field) -> None:
    """Makes sure that a column can hold classes.

    Raises:
      UserError: it does not hold integers.
    """
    if not pa.types.is_integer(field.type):
        raise UserError(f"{where}: label column {field.name} holds {field.type}, not integers")


def image_column(where: str, schema: pa.Schema, wanted: str | None) -> str:
    """The column that holds the images: by its name, else the only one that can hold any.

    Raises:
      UserError: there is none, it holds no bytes, or the choice is open.
    """
    if wanted:
        require(where, schema.names, [wanted])
        if not holds_images(schema.field(wanted).type):
            raise UserError(f"{where}: column {wanted} holds {schema.field(wanted).type}, not images")
        return wanted
    able = [field.name for field in schema if holds_images(field.type)]
    if len(able) == 1:
        return able[0]
    return first_of(where, able or schema.names, IMAGE_COLUMNS if able else (), "images")


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold encoded images."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and holds_images(kind.field("bytes").type)
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    )


_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_ERRORS = (OSError, ValueError, pa.ArrowException, csv.Error)


class Table(Protocol):
    """Rows of named columns. Each method opens the file anew and raises UserError if it cannot."""

    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        ...

    def rows(self, names: Sequence[str]) -> Iterator[tuple[Any, ...] | str]:
        """The values of some columns, row by row; for a row that cannot be read, what is wrong."""
        ...


class TextTable:
    """One path to a line, in a column named ``path``. Blank lines and those with ``#`` are no rows."""

    def __init__(self, location: Location, found: Found) -> None:
        self._location = location
        self._found = found

    def schema(self) -> pa.Schema:
        """The one column."""
        return pa.schema([("path", pa.string())])

    def rows(self, names: Sequence[str]) -> Iterator[tuple[Any, ...] | str]:
        """Each path, as often as it is asked for."""
        with _readable(self._location), _text(self._location, self._found) as lines:
            for line in lines:
                path = line.strip()
                if path and not path.startswith("#"):
                    yield (path,) * len(names)


class DelimitedTable:
    """CSV or TSV with a header. Every value is a string."""

    def __init__(self, location: Location, found: Found, delimiter: str) -> None:
        self._location = location
        self._found = found
        self._delimiter = delimiter

    def schema(self) -> pa.Schema:
        """The names in the header."""
        with _readable(self._location), _text(self._location, self._found) as lines:
            return pa.schema([(name, pa.string()) for name in next(self._reader(lines), [])])

    def rows(self, names: Sequence[str]) -> Iterator[tuple[Any, ...] | str]:
        """The values of each row. One with too few or too many cannot be trusted to be in step."""
        with _readable(self._location), _text(self._location, self._found) as lines:
            reader = self._reader(lines)
            header = next(reader, [])
            places = [header.index(name) for name in names]
            for row in reader:
                if len(row) == len(header):
                    yield tuple(row[place] for place in places)
                elif row:
                    yield f"{len(row)} values under a header of {len(header)}"

    def _reader(self, lines: io.TextIOWrapper) -> "Iterator[list[str]]":
        return csv.reader(lines, delimiter=self._delimiter, strict=True)


class ParquetTable:
    """A Parquet file, whose columns keep their types."""

    def __init__(self, location: Location, found: Found) -> None:
        self._location = location
        self._found = found

    def schema(self) -> pa.Schema:
        """The file's schema."""
        with _readable(self._location), open_file(self._location, self._found.file) as file:
            return pq.read_schema(file)

    def rows(self, names: Sequence[str]) -> Iterator[tuple[Any, ...] | str]:
        """The values of each row, from as little of the file as these columns take."""
        with _readable(self._location), open_file(self._location, self._found.file) as file:
            for batch in pq.ParquetFile(file, pre_buffer=False).iter_batches(
                columns=list(dict.fromkeys(names))
            ):
                yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)


def open_table(location: Location, found: Found) -> Table:
    """The table in a file: Parquet by its first bytes, CSV and TSV by name, else lines of text.

    Raises:
      UserError: the file cannot be read.
    """
    with _readable(location), open_file(location, found.file) as file:
        magic = file.read_at(min(4, file.size()), 0)
    if magic == b"PAR1":
        return ParquetTable(location, found)
    delimiter = _DELIMITERS.get(found.name[-4:].lower())
    return DelimitedTable(location, found, delimiter) if delimiter else TextTable(location, found)


@contextmanager
def _text(location: Location, found: Found) -> Iterator[io.TextIOWrapper]:
    with (
        open_file(location, found.file) as file,
        io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as lines,
    ):
        yield lines


@contextmanager
def _readable(location: Location) -> Iterator[None]:
    """Turns what a damaged list raises into an answer: nothing can be read without the list."""
    try:
        yield
    except _ERRORS as error:
        raise UserError(
            f"{location.text}: the list cannot be read ({error_reason(error)}); repair it"
        ) from error
