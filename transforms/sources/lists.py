"""A list of image files."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from transforms.sources.base import Entry, Example, Loader, SourceConfig
from transforms.sources.columns import Table, check_label, first_of, open_table, require
from transforms.sources.locations import Location, from_file, locate, to_file, to_text
from transforms.sources.reading import read_exact, to_label
from vqgan.errors import UserError
from vqgan.filesystems import resolve

PATH_COLUMNS = (
    *("path", "file", "filepath", "file_path", "filename", "file_name"),
    *("image", "image_path", "img", "img_path", "url", "uri"),
)
"""Names by which the column of paths is recognised, in this order."""


@dataclasses.dataclass(frozen=True)
class ListSource:
    """Images whose paths stand in a text file, a CSV or TSV file with a header, or a Parquet file.

    Paths are relative to the list's folder, absolute, or URIs that pyarrow knows. The key is the path
    as it is written, or the key column. Nothing is fetched over HTTP.
    """

    config: SourceConfig

    shuffles = True
    options = frozenset({"image_column", "key_column", "label_column", "columns"})

    def fields(self) -> list[pa.Field]:
        """The further columns: strings from text, else as the Parquet file has them.

        Raises:
          UserError: a column is missing.
        """
        table = self._table(locate(self.config.input))
        schema = table.schema()
        require(self.config.input, schema.names, self.config.columns)
        return [schema.field(name).with_nullable(True) for name in self.config.columns]

    def class_names(self) -> None:
        """None: classes are numbers here."""

    def list(self) -> Iterator[Entry]:
        """An entry for each row, its ``offset`` being the number of the row; sizes are not known.

        Raises:
          UserError: a column is missing, a label is no integer, or a path is a web address.
        """
        table = self._table(locate(self.config.input))
        path, key, label = self._columns(table)
        names = [name for name in (path, key, label) if name]
        for number, row in enumerate(table.rows(names)):
            if isinstance(row, str):
                yield Entry(f"#row-{number}", "", number, error=row)
                continue
            values: dict[str, Any] = dict(zip(names, row, strict=True))
            yield self._entry(number, values[path], values[key or path], values[label] if label else None)

    def read(self, entries: Sequence[Entry]) -> Iterator[Loader]:
        """A loader for each entry; each opens, reads and closes its own file."""
        location = locate(self.config.input)
        rows = self._rows(location, {entry.offset for entry in entries}) if self.config.columns else {}
        for entry in entries:
            yield functools.partial(_load, location, entry, rows.get(entry.offset, {}))

    def _table(self, location: Location) -> Table:
        found = next(location.walk(), None)
        if location.globs.patterns or location.names == ((),) or found is None or found.error:
            raise UserError(f"{location.text}: a list must be a single file; give its name")
        return open_table(location, found)

    def _columns(self, table: Table) -> tuple[str, str | None, str | None]:
        """The columns of paths, keys and labels."""
        config, schema = self.config, table.schema()
        wanted = [config.image_column, config.key_column, config.label_column, *config.columns]
        require(config.input, schema.names, wanted)
        path = config.image_column or first_of(config.input, schema.names, PATH_COLUMNS, "paths")
        if config.label_column and not pa.types.is_string(schema.field(config.label_column).type):
            check_label(config.input, schema.field(config.label_column))
        return path, config.key_column, config.label_column

    def _entry(self, number: int, path: object, key: object, label: object) -> Entry:
        if not isinstance(path, str) or not path or key is None or key == "":
            return Entry(f"#row-{number}", "", number, error="no path or no key in this row")
        if path.startswith(("http://", "https://")):
            raise UserError(
                f"{self.config.input}: {path:.200} is not fetched from the web; download the images first"
            )
        return Entry(to_text(str(key)), to_file(path), number, label=self._label(number, label))

    def _label(self, number: int, value: object) -> int | None:
        try:
            if isinstance(value, str):
                return to_label(int(value)) if value else None
            return to_label(value)
        except ValueError as error:
            raise UserError(
                f"{self.config.input}: row {number} has the label {value!r:.80}, which is no integer; "
                f"correct column {self.config.label_column}"
            ) from error

    def _rows(self, location: Location, wanted: set[int]) -> dict[int, dict[str, Any]]:
        """The further columns of some rows; of the list itself no more than a batch is in memory."""
        names = self.config.columns
        found: dict[int, dict[str, Any]] = {}
        for number, row in enumerate(self._table(location).rows(names)):
            if number in wanted and not isinstance(row, str):
                found[number] = {name: _storable(value) for name, value in zip(names, row, strict=True)}
                if len(found) == len(wanted):
                    break
        return found


def _storable(value: Any) -> Any:
    return to_text(value) if isinstance(value, str) else value


def _load(location: Location, entry: Entry, columns: dict[str, Any]) -> Example:
    filesystem, path = _resolve(location, entry.file)
    with filesystem.open_input_file(path) as file:
        return Example(read_exact(file, 0, file.size()), entry.label, columns)


def _resolve(location: Location, file: str) -> tuple[fs.FileSystem, str | bytes]:
    """Where a path of the list leads: a URI, an absolute local path, or relative to the list."""
    path = from_file(file)
    if b"://" not in path:
        absolute = path.startswith(b"/")
        return (fs.LocalFileSystem(), path) if absolute else (location.filesystem, location.path(file))
    address = urlsplit(os.fsdecode(path))
    filesystem, root = _bucket(address.scheme, address.netloc)
    return filesystem, f"{root.rstrip('/')}/{os.fsdecode(path).split('://', 1)[1].partition('/')[2]}"


@functools.lru_cache(maxsize=16)
def _bucket(scheme: str, name: str) -> tuple[fs.FileSystem, str]:
    """Connecting takes far longer than reading one image, so every bucket is connected to once."""
    return resolve(f"{scheme}://{name}/")
