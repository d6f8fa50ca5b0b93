"""Lists of images (text, CSV, TSV, JSON lines, Parquet) read row by row."""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.sources import names
from transforms.sources.base import error_reason
from transforms.sources.locations import Found, Location, open_file, to_text
from transforms.sources.names import DECOMPRESSION_ERRORS
from transforms.sources.text import open_lines, split_delimited, split_tabs
from vqgan.errors import UserError

_ERRORS = (*DECOMPRESSION_ERRORS, ValueError, pa.ArrowException)
_SAMPLE_ROWS = 1000
_SURROGATE = re.compile("[\ud800-\udfff]")

There = Callable[[str], bool]
"""Whether a path in a list leads to something."""


class Table(Protocol):
    """Rows of named columns. Each method opens the file anew and raises UserError if it cannot."""

    def schema(self) -> pa.Schema:
        """Returns names and types of the columns."""
        ...

    def rows(self, names: Sequence[str]) -> Iterator[tuple[Any, ...] | str]:
        """Returns the values of some columns, row by row; for a row that cannot be read, what is wrong."""
        ...


class TextTable:
    """One path to a line, in a column named ``path``. Blank lines and comments are no rows.

    A line with blanks at its ends is a path without them, and one that begins with ``#`` and a blank a
    comment, but where there is a file of just that name.
    """

    def __init__(self, location: Location, found: Found, there: There) -> None:
        self._location = location
        self._found = found
        self._there = there

    def schema(self) -> pa.Schema:
        """Returns the one column."""
        return pa.schema([("path", pa.string())])

    def rows(self, names: Sequence[str]) -> Iterator[tuple[Any, ...] | str]:
        """Yields each path, as often as it is asked for."""
        with _readable(self._location, self._found), open_lines(self._location, self._found) as lines:
            for line in lines:
                path = self._path(line.rstrip("\r\n"))
                if path:
                    yield (path,) * len(names)

    def _path(self, line: str) -> str | None:
        stripped = line.strip()
        is_comment = stripped.startswith("#") and (stripped[1:2].isspace() or not stripped.strip("#"))
        if (is_comment or stripped != line) and stripped and self._there(line):
            return line
        return None if is_comment else stripped


class DelimitedTable:
    """CSV or TSV with a header. Every value is a string."""

    def __init__(self, location: Location, found: Found, delimiter: str) -> None:
        self._location = location
        self._found = found
        self._delimiter = delimiter

    def schema(self) -> pa.Schema:
        """Returns the names in the header."""
        with _readable(self._location, self._found), open_lines(self._location, self._found) as lines:
            return pa.schema([(name, pa.string()) for name in next(self._reader(lines), [])])

    def rows(self, names: Sequence[str]) -> Iterator[tuple[Any, ...] | str]:
        """Yields the values of each row. One with too few or too many cannot be trusted to be in step."""
        with _readable(self._location, self._found), open_lines(self._location, self._found) as lines:
            reader = self._reader(lines)
            header = next(reader, [])
            places = [header.index(name) for name in names]
            for row in reader:
                if len(row) == len(header):
                    yield tuple(row[place] for place in places)
                elif row:
                    yield f"{len(row)} values under a header of {len(header)}"

    def _reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        return split_tabs(lines) if self._delimiter == "\t" else split_delimited(lines)


class JsonTable:
    """JSON lines: an object on each. Types are those of the first rows."""

    def __init__(self, location: Location, found: Found) -> None:
        self._location = location
        self._found = found

    def schema(self) -> pa.Schema:
        """Gives the names in the first rows; what is neither text, number nor a list of such is JSON text."""
        first = [row for row in itertools.islice(self._objects(), _SAMPLE_ROWS) if not isinstance(row, str)]
        columns = dict.fromkeys(name for row in first for name in row)
        return pa.schema([(name, _json_type([row.get(name) for row in first])) for name in columns])

    def rows(self, names: Sequence[str]) -> Iterator[tuple[Any, ...] | str]:
        """Yields the values of each row, None where it lacks one."""
        schema = self.schema()
        types = [schema.field(name).type for name in names]
        for row in self._objects():
            if isinstance(row, str):
                yield row
                continue
            values = [row.get(name) for name in names]
            wrong = [n for n, v, kind in zip(names, values, types, strict=True) if not _fits(v, kind)]
            yield (
                f"{wrong[0]} is of another type than in the first rows"
                if wrong
                else tuple(_json_value(value, kind) for value, kind in zip(values, types, strict=True))
            )

    def _objects(self) -> Iterator[dict[str, Any] | str]:
        with _readable(self._location, self._found), open_lines(self._location, self._found) as lines:
            for line in lines:
                if line.strip():
                    yield _parse_object(line)


def _parse_object(line: str) -> dict[str, Any] | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"no JSON ({error_reason(error)})"
    return row if isinstance(row, dict) else "no JSON object"


def _json_type(values: list[Any]) -> pa.DataType:
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.string() if pa.types.is_nested(kind.value_type) else kind
    return pa.string() if pa.types.is_null(kind) or pa.types.is_nested(kind) else kind


def _json_value(value: Any, kind: pa.DataType) -> Any:
    if pa.types.is_string(kind) and value is not None and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return value


def _fits(value: Any, kind: pa.DataType) -> bool:
    if pa.types.is_string(kind):
        return True
    try:
        pa.scalar(value, kind)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return False
    return True


class ParquetTable:
    """A Parquet file, whose columns keep their types."""

    def __init__(self, location: Location, found: Found) -> None:
        self._location = location
        self._found = found

    def schema(self) -> pa.Schema:
        """Returns the file's schema."""
        with _readable(self._location, self._found), open_file(self._location, self._found.file) as file:
            return pq.read_schema(file)

    def rows(self, names: Sequence[str]) -> Iterator[tuple[Any, ...] | str]:
        """Yields the values of each row, from as little of the file as these columns take."""
        with _readable(self._location, self._found), open_file(self._location, self._found.file) as file:
            for batch in pq.ParquetFile(file, pre_buffer=False).iter_batches(
                columns=list(dict.fromkeys(names))
            ):
                yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)


def open_table(location: Location, found: Found, there: There) -> Table:
    """Returns the table in a file.

    Parquet by its first bytes, CSV, TSV and JSON lines by name, else lines of text.

    Args:
      location: of the list.
      found: the list.
      there: for a list of bare paths; see :class:`TextTable`.

    Raises:
      UserError: the file cannot be read.
    """
    with _readable(location, found), open_file(location, found.file) as file:
        magic = file.read_at(min(4, file.size()), 0)
    if magic == b"PAR1":
        return ParquetTable(location, found)
    ending = names.extension(names.uncompressed_name(found.name))
    if ending in ("jsonl", "ndjson"):
        return JsonTable(location, found)
    if ending == "csv":
        return DelimitedTable(location, found, ",")
    if ending in ("tsv", "tab"):
        return DelimitedTable(location, found, "\t")
    return TextTable(location, found, there)


@contextmanager
def _readable(location: Location, found: Found) -> Iterator[None]:
    """Turns what a damaged list raises into an answer: nothing can be read without the list."""
    try:
        yield
    except _ERRORS as error:
        where = location.text if location.text.endswith(found.name) else f"{location.text}: {found.key}"
        raise UserError(f"{where}: the list cannot be read ({error_reason(error)}); repair it") from error


def is_unicode(value: object) -> bool:
    """Returns whether text, or a list of texts, came from bytes in UTF-8."""
    if isinstance(value, list):
        return all(map(is_unicode, value))
    return not isinstance(value, str) or value.isascii() or _SURROGATE.search(value) is None


def storable(value: Any) -> Any:
    """Makes text that is not UTF-8 such, by escapes."""
    if isinstance(value, list):
        return [storable(element) for element in value]
    return to_text(value) if isinstance(value, str) else value


def check_encoding(where: str, number: int, path: object, texts: Mapping[str, Any]) -> None:
    """Refuses a row of text in Latin-1 and the like, but where the names of files are in it too.

    Raises:
      UserError: names the column.
    """
    wrong = [name for name, text in texts.items() if not is_unicode(text)] if is_unicode(path) else []
    if wrong:
        raise UserError(
            f"{where}: row {number} is not UTF-8 in column {wrong[0]} "
            f"({storable(texts[wrong[0]])!r:.80}), perhaps Latin-1; save the list as UTF-8"
        )
