"""A list of image files."""

import dataclasses
import errno
import functools
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

import pyarrow as pa
from pyarrow import fs

from transforms.sources.base import Entry, Example, Loader, Names
from transforms.sources.columns import (
    check_label,
    feature_names,
    first_of,
    is_text,
    names_of_texts,
    require,
    to_number,
)
from transforms.sources.locations import LocatedSource, Location, from_file, plain_errors, to_file, to_text
from transforms.sources.reading import opened_as_planned, read_exact
from transforms.sources.tables import (
    ParquetTable,
    Table,
    check_encoding,
    is_unicode,
    open_table,
    storable,
)
from vqgan.errors import UserError
from vqgan.faults import GoneError, raise_machine_fault
from vqgan.filesystems import check_scheme, plain_uri, resolve

PATH_COLUMNS = (
    *("path", "file", "filepath", "file_path", "filename", "file_name"),
    *("image", "image_path", "img", "img_path", "url", "uri"),
)
"""Names by which the column of paths is recognised, in this order."""

# Base64 of images, and what Python prints for bytes and for the rows of `datasets`.
_EMBEDDED = re.compile(r"data:|\{['\"]bytes|b['\"]\\x|(/9j/|iVBORw0KGgo|R0lGOD|UklGR)[\w+/=\s]{40}")


@dataclasses.dataclass(frozen=True)
class ListSource(LocatedSource):
    """Images whose paths stand in a text file, CSV or TSV with a header, JSON lines, or a Parquet file.

    Paths are relative to the list's folder, absolute, or URIs that pyarrow knows. The key is the path
    as it is written, or the key column. Nothing is fetched over HTTP. Text may be compressed, and in UTF-16
    or -32 with a mark; else it is UTF-8. Labels are integers, or names that are numbered in sorted order.
    """

    shuffles = True
    options = frozenset({"image_column", "key_column", "label_column", "columns"})

    def fields(self) -> list[pa.Field]:
        """Returns the further columns: strings from text, else as the Parquet file has them.

        Raises:
          UserError: a column is missing.
        """
        table = self._table(self.location)
        schema = table.schema()
        require(self.config.input, schema.names, self.config.columns)
        return [schema.field(name).with_nullable(True) for name in self.config.columns]

    def class_names(self) -> Names | None:
        """Returns names of the classes: those in the label column, sorted; None where they are numbers.

        A Parquet file that ``datasets`` wrote may say what its numbers stand for.
        """
        column = self.config.label_column
        if column is None:
            return None
        table = self._table(self.location)
        schema = table.schema()
        require(self.config.input, schema.names, [column])
        if not is_text(schema.field(column).type):
            return feature_names(schema, column)
        return names_of_texts(row[0] for row in table.rows([column]) if not isinstance(row, str))

    def list(self) -> Iterator[Entry]:
        """Yields an entry for each row, its ``offset`` being the number of the row; sizes are not known.

        Raises:
          UserError: a column is missing, a label is an integer here and a name there, a path is a web
            address, or text to pass through is not UTF-8.
        """
        location = self.location
        table = self._table(location)
        path, key, label = self._columns(table)
        columns = self.config.columns
        texts = () if isinstance(table, ParquetTable) else columns
        names = [name for name in (path, key, label, *columns) if name]
        key_place, label_place = names.index(key or path), names.index(label or path)
        local = isinstance(location.filesystem, fs.LocalFileSystem)
        classes = {name: place for place, name in enumerate(self.class_names() or ())}
        for number, row in enumerate(table.rows(names)):
            if isinstance(row, str):
                yield Entry(f"#row-{number}", "", number, error=row)
                continue
            entry = _seen(location, self._entry(number, row[0], row[key_place]), local)
            if label is not None:
                entry = entry._replace(label=self._label(number, row[label_place], classes))
            if columns:
                values = dict(zip(names, row, strict=True))
                check_encoding(self.config.input, number, row[0], {name: values[name] for name in texts})
                entry = entry._replace(columns={name: storable(values[name]) for name in columns})
            yield entry

    def read(self, entries: Sequence[Entry]) -> Iterator[Loader]:
        """Yields a loader for each entry; each opens, reads and closes its own file."""
        location = self.location
        # Plans of earlier releases do not tell the columns: the list is looked through for them.
        unknown = {entry.offset for entry in entries if entry.columns is None} if self.config.columns else ()
        rows = self._rows(location, set(unknown)) if unknown else {}
        for entry in entries:
            columns = rows.get(entry.offset, {}) if entry.columns is None else entry.columns
            yield functools.partial(_load, location, entry, columns)

    def _table(self, location: Location) -> Table:
        found = next(location.walk(), None)
        if location.globs.patterns or location.names == ((),) or found is None or found.error:
            raise UserError(f"{location.text}: a list must be a single file; give its name")
        return open_table(location, found, functools.partial(_is_there, location))

    def _columns(self, table: Table) -> tuple[str, str | None, str | None]:
        """Returns the columns of paths, keys and labels."""
        config, schema = self.config, table.schema()
        wanted = [config.image_column, config.key_column, config.label_column, *config.columns]
        require(config.input, schema.names, wanted)
        path = config.image_column or first_of(config.input, schema.names, PATH_COLUMNS, "paths")
        kind = schema.field(path).type
        if not (is_text(kind) or pa.types.is_null(kind)):
            raise UserError(
                f"{config.input}: column {path} holds {' '.join(str(kind).split()):.200}, neither paths nor "
                "encoded images; write the bytes of each image to a binary column"
            )
        if config.label_column:
            check_label(config.input, schema.field(config.label_column))
        return path, config.key_column, config.label_column

    def _entry(self, number: int, path: object, key: object) -> Entry:
        if not isinstance(path, str) or not path or key is None or key == "":
            return Entry(f"#row-{number}", "", number, error="no path or no key in this row")
        if _EMBEDDED.match(path):
            raise UserError(
                f"{self.config.input}: row {number} holds an image itself in place of its path, as text; "
                "write its bytes to a binary column of Parquet, or to a file"
            )
        text = to_text(str(key))
        if ":" not in path:  # a plain path, as nearly all are
            return Entry(text, to_file(path), number)
        if path.lower().startswith(("http://", "https://")):
            raise UserError(
                f"{self.config.input}: {path:.200} is not fetched from the web; download the images first, "
                "as with img2dataset, and give its output"
            )
        try:
            check_scheme(path)
        except UserError as error:
            raise UserError(f"{self.config.input}: row {number}: {error}") from error
        return Entry(text, to_file(plain_uri(path)), number)

    def _label(self, number: int, value: object, classes: dict[str, int]) -> int | None:
        try:
            return to_number(value, classes)
        except ValueError as error:
            raise UserError(
                f"{self.config.input}: row {number} has the label {value!r:.80}, which is no integer; "
                f"correct column {self.config.label_column}"
            ) from error

    def _rows(self, location: Location, wanted: set[int]) -> dict[int, dict[str, Any]]:
        """Returns the further columns of some rows; of the list itself no more than a batch is in memory."""
        names = self.config.columns
        found: dict[int, dict[str, Any]] = {}
        for number, row in enumerate(self._table(location).rows(names)):
            if number in wanted and not isinstance(row, str):
                found[number] = {name: storable(value) for name, value in zip(names, row, strict=True)}
                if len(found) == len(wanted):
                    break
        return found


def _is_there(location: Location, path: str) -> bool:
    """Tells whether a line of a list is the path of a file; an address is looked up by nobody."""
    if "://" in path:
        return False
    filesystem, inner = _resolve(location, to_file(path))
    if isinstance(filesystem, fs.LocalFileSystem):
        return os.path.lexists(inner)
    return bool(filesystem.get_file_info(inner).type != fs.FileType.NotFound)


def _load(location: Location, entry: Entry, columns: dict[str, Any]) -> Example:
    try:
        data = _read_planned(location, entry)
    except GoneError:
        raise
    except FileNotFoundError:
        data = _read_as_written_elsewhere(location, entry.file)
    return Example(data, entry.label, columns)


def _read_as_written_elsewhere(location: Location, file: str) -> bytes:
    """Returns a file whose name is percent-escaped in a URI, or that a list in Latin-1 names.

    Raises:
      FileNotFoundError: there is none either.
    """
    path = from_file(file)
    if b"://" in path and b"%" in path:
        return _read(location, to_file(os.fsdecode(unquote_to_bytes(path))))
    if is_unicode(os.fsdecode(path)):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    try:
        return _read(location, to_file(path.decode("cp1252", "replace")))
    except FileNotFoundError as error:
        reason = "no such file, and its name is not UTF-8 (perhaps Latin-1); save the list as UTF-8"
        raise FileNotFoundError(errno.ENOENT, reason) from error


def _read_planned(location: Location, entry: Entry) -> bytes:
    filesystem, path = _resolve(location, entry.file)
    with opened_as_planned(entry, filesystem, path, functools.partial(_open_input, filesystem)) as opened:
        return read_exact(opened, 0, opened.size())


def _read(location: Location, file: str) -> bytes:
    filesystem, path = _resolve(location, file)
    with _open_input(filesystem, path) as opened:
        return read_exact(opened, 0, opened.size())


def _open_input(filesystem: fs.FileSystem, path: str | bytes) -> pa.NativeFile:
    """Opens a file. Raises OSError of one line."""
    with plain_errors(filesystem):
        return filesystem.open_input_file(path)


def _seen(location: Location, entry: Entry, local: bool) -> Entry:
    """Returns an entry with size and time of its file, if local; a store would be asked for each."""
    if "://" in entry.file or not local:
        return entry
    try:
        status = os.stat(location.path(entry.file))
    except FileNotFoundError:
        return entry
    except (OSError, ValueError) as error:  # reading will tell; its name may be written in another way
        raise_machine_fault(error, f"{location.text}: {entry.key!r} cannot be looked at")
        return entry
    return entry._replace(file_size=status.st_size, modified=status.st_mtime_ns)


def _resolve(location: Location, file: str) -> tuple[fs.FileSystem, str | bytes]:
    """Finds where a path of the list leads: a URI, an absolute local path, or relative to the list."""
    path = from_file(file)
    if b"://" not in path:
        absolute = path.startswith(b"/")
        return (fs.LocalFileSystem(), path) if absolute else (location.filesystem, location.path(file))
    scheme, _, rest = os.fsdecode(path).partition("://")
    host, _, inner = rest.partition("/")
    filesystem, root = resolve(f"{scheme}://{'' if scheme == 'file' and host == 'localhost' else host}/")
    return filesystem, f"{root.rstrip('/')}/{inner}"
