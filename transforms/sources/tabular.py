"""Images in the rows of files of tables: what Parquet and Arrow files have in common."""

import bisect
import dataclasses
import functools
import itertools
import json
import os
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol, cast

import pyarrow as pa

from transforms.sources.base import Entry, Example, Loader, Names, error_reason
from transforms.sources.columns import (
    check_label,
    feature_names,
    folder_columns,
    folder_columns_of,
    has_only_nulls,
    holds_images,
    image_column,
    is_list,
    is_text,
    names_of_texts,
    require,
    to_number,
    values_type,
    with_folder_columns,
)
from transforms.sources.locations import Found, LocatedSource, Location, from_file, open_file, to_file
from transforms.sources.reading import (
    DamagedFileError,
    check_size,
    container_files,
    failing,
    list_containers,
    read_containers,
    read_exact,
)
from vqgan.errors import UserError
from vqgan.faults import raise_machine_fault

ERRORS = (OSError, ValueError, pa.ArrowException)
"""What pyarrow raises on a damaged file (ArrowMemoryError among them, for an absurd size)."""


class TableRows(Protocol):
    """The rows of one group."""

    def at(self, row: int) -> pa.RecordBatch:
        """Returns one row, by its number in the file. Raises one of :data:`ERRORS` if it cannot be read."""
        ...


class TableFile(Protocol):
    """A file of rows in groups, open."""

    schema: pa.Schema

    def sizes(self) -> list[int]:
        """Returns tableRows of each group. Raises DamagedFileError if the file contradicts itself."""
        ...

    def values(self, group: int, names: Sequence[str], count: int) -> pa.Table:
        """Reads small columns of a group of ``count`` rows. Raises one of :data:`ERRORS`."""
        ...

    def elements(self, group: int, image: str) -> list[int]:
        """Returns how many elements a column of lists has in each row of a group.

        Raises one of :data:`ERRORS`.
        """
        ...

    def rows(self, group: int, first: int, names: Sequence[str]) -> TableRows:
        """Returns some columns of a group, whose first row has the number ``first`` in the file."""
        ...


@dataclasses.dataclass(frozen=True)
class TableSource(LocatedSource):
    """Images in a column of one or many files of tables.

    The column is of type struct<bytes, path> or binary, in any of Arrow's layouts. Where a struct has no
    bytes but a path, the file of that path below the table's folder is read; absolute paths and ``..`` are
    refused, since whoever wrote the file could otherwise have any file read. A column of lists of images, if
    it is named, gives a row for each element.

    The key is the key column as a string, else ``<file>#<row>``, followed by ``.<element>`` where rows hold
    lists. Classes are integers, perhaps with the names that ``datasets`` wrote into the file, or names, which
    are numbered in sorted order. Folders named ``column=value`` give columns too.
    """

    shuffles = False
    options = frozenset({"image_column", "key_column", "label_column", "columns"})
    kind: ClassVar[str]

    def open_table(self, file: pa.NativeFile) -> TableFile:
        """Raises DamagedFileError if this is no whole file of tables."""
        raise NotImplementedError

    def fields(self) -> list[pa.Field]:
        """Returns the further columns, with types that hold those of every file.

        Raises:
          UserError: a column is missing, or labels are neither integers nor names.
        """
        schema = self._schema(self.location)
        require(self.config.input, schema.names, self.config.columns)
        return [schema.field(name).with_nullable(True) for name in self.config.columns]

    def class_names(self) -> Names | None:
        """Returns names of the classes in the order of their numbers; None where they are numbers."""
        column = self.config.label_column
        if column is None:
            return None
        location = self.location
        schema = self._schema(location)
        if column not in schema.names or not is_text(schema.field(column).type):
            return feature_names(schema, column)
        return names_of_texts(self._label_texts(location, column))

    def list(self) -> Iterator[Entry]:
        """Returns an entry for each row or element, its ``offset`` being the number of the row.

        Sizes are not known.

        Raises:
          UserError: the first readable file lacks a column that is asked for, or an image column; or files
            disagree about what kind of thing a column holds.
        """
        location = self.location
        schema = self._schema(location)
        classes = {name: number for number, name in enumerate(self._numbered(schema))}
        return list_containers(location, self.kind, functools.partial(self._list_one, schema, classes))

    def read(self, entries: Sequence[Entry]) -> Iterator[Loader]:
        """Returns a loader for each entry.

        Rows of a file should come in their order: a step back starts over.
        """
        location = self.location
        return read_containers(location, entries, functools.partial(self._read_one, location))

    def _numbered(self, schema: pa.Schema) -> Names:
        """Returns the names of classes that stand in the rows themselves."""
        column = self.config.label_column
        if column is None or column not in schema.names or not is_text(schema.field(column).type):
            return []
        return self.class_names() or []

    def _schemas(self, location: Location) -> Iterator[tuple[Found, pa.Schema]]:
        """Yields the schemas of the files that can be read."""
        for found in container_files(location, self.kind):
            try:
                with open_file(location, found.file) as file:
                    schema = self.open_table(file).schema
            except ERRORS as error:
                raise_machine_fault(error, f"{self.config.input}: {found.key!r} cannot be read")
                continue
            yield found, with_folder_columns(schema, found)

    def _schema(self, location: Location) -> pa.Schema:
        """Returns the schema of the first file that can be read, checked; empty if none can.

        Further files are looked at only where their types matter: for columns that are passed through, and
        for labels of which the first file has none.
        """
        config = self.config
        wanted = [*config.columns, *([config.label_column] if config.label_column else [])]
        first: pa.Schema | None = None
        empty: tuple[Found, pa.Schema] | None = None
        for found, schema in self._schemas(location):
            if first is None and has_only_nulls(schema, config.image_column):
                empty = empty or (found, schema)
                continue
            if first is None:
                self._check(found, schema)
                first = schema
            else:
                first = _widened(f"{config.input} ({found.key})", first, schema, wanted)
            if not config.columns and not any(pa.types.is_null(first.field(name).type) for name in wanted):
                break
        if first is None and empty is not None:
            self._check(*empty)
        return first if first is not None else pa.schema([])

    def _check(self, found: Found, schema: pa.Schema) -> None:
        config, where = self.config, f"{self.config.input} ({found.key})"
        require(where, schema.names, [config.key_column, config.label_column, *config.columns])
        if config.label_column:
            check_label(where, schema.field(config.label_column))
        image_column(where, schema, config.image_column)

    def _label_texts(self, location: Location, column: str) -> Iterator[str | None]:
        for found in container_files(location, self.kind):
            inherited = folder_columns(found)
            try:
                with open_file(location, found.file) as file:
                    table = self.open_table(file)
                    if column not in table.schema.names:
                        yield inherited.get(column)
                        continue
                    for group, count in enumerate(table.sizes()):
                        yield from table.values(group, [column], count).column(column).unique().to_pylist()
            except ERRORS as error:
                raise_machine_fault(error, f"{self.config.input}: {found.key!r} cannot be read")
                continue  # which listing reports

    def _list_one(
        self, expected: pa.Schema, classes: dict[str, int], file: pa.NativeFile, found: Found
    ) -> Iterator[Entry]:
        table = self.open_table(file)
        if has_only_nulls(table.schema, self.config.image_column):
            for row in range(sum(table.sizes())):
                yield Entry(f"{found.key}#{row}", found.file, row, error="no image in this row")
            return
        self._check_same(expected, with_folder_columns(table.schema, found), found)
        first = 0
        for group, count in enumerate(table.sizes()):
            yield from self._list_group(table, group, range(first, first + count), found, classes)
            first += count

    def _check_same(self, expected: pa.Schema, schema: pa.Schema, found: Found) -> None:
        config = self.config
        image = image_column(config.input, expected, config.image_column)
        for name in (image, config.key_column, config.label_column, *config.columns):
            if name and name not in schema.names:
                raise DamagedFileError(0, f"column {name} is missing here")
        where = f"{config.input} ({found.key})"
        require(where, schema.names, [image, config.key_column, config.label_column, *config.columns])
        kind, usual = schema.field(image).type, expected.field(image).type
        if (holds_images(kind), is_list(kind)) != (holds_images(usual), is_list(usual)):
            raise UserError(
                f"{where}: column {image} holds {kind}, but {usual} elsewhere; give them one by one"
            )
        if config.label_column:
            _widened(where, expected, schema, [config.label_column])

    def _list_group(
        self, table: TableFile, group: int, rows: range, found: Found, classes: dict[str, int]
    ) -> Iterator[Entry]:
        """Yields entries of one row group, all of which bear an error if its keys or labels are damaged."""
        image = image_column(self.config.input, table.schema, self.config.image_column)
        try:
            keys = _values(table, group, self.config.key_column, found, len(rows))
            labels = _values(table, group, self.config.label_column, found, len(rows))
            counts = table.elements(group, image) if is_list(table.schema.field(image).type) else None
        except ERRORS as error:
            raise_machine_fault(error, f"{self.config.input}: {found.key!r} cannot be read")
            message = f"row group {group} is damaged ({error_reason(error)})"
            yield from (Entry(f"{found.key}#{row}", found.file, row, error=message) for row in rows)
            return
        for place, row in enumerate(rows):
            entry = _entry(found, row, keys[place], labels[place], self.config.key_column, classes)
            yield from [entry] if counts is None or entry.error else _elements(entry, counts[place])

    def _read_one(
        self, location: Location, file: pa.NativeFile, entries: Sequence[Entry]
    ) -> Iterator[Loader]:
        table = self.open_table(file)
        image = image_column(self.config.input, table.schema, self.config.image_column)
        names = [image, *(name for name in self.config.columns if name in table.schema.names)]
        ends = list(itertools.accumulate(table.sizes()))
        for group, wanted in itertools.groupby(entries, key=lambda entry: _group_of(entry.offset, ends)):
            rows = table.rows(group, ends[group - 1] if group else 0, names)
            for entry in wanted:
                try:
                    row = rows.at(entry.offset)
                except ERRORS as error:
                    message = f"row group {group} is damaged ({error_reason(error)})"
                    yield failing(ValueError(message), error)
                    continue
                yield functools.partial(self._load, row, image, entry, location)

    def _load(self, row: pa.RecordBatch, image: str, entry: Entry, location: Location) -> Example:
        there = row.schema.names
        inherited = folder_columns_of(entry.file)
        columns = {
            name: row.column(name)[0].as_py() if name in there else inherited.get(name)
            for name in self.config.columns
        }
        value = row.column(image)[0].as_py()
        if entry.members is not None:
            value = value[json.loads(entry.members)]
        return Example(_image_bytes(value, entry, location), entry.label, columns)


def _widened(where: str, schema: pa.Schema, other: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """Returns a schema whose columns of these names hold another file's values too.

    Raises:
      UserError: no type does.
    """
    for name in names:
        if name not in other.names or schema.field(name).type == other.field(name).type:
            continue
        types = [values_type(part.field(name).type) for part in (schema, other)]
        try:
            parts = [pa.schema([(name, kind)]) for kind in types]
            (field,) = pa.unify_schemas(parts, promote_options="permissive")
        except pa.ArrowException as error:
            raise UserError(
                f"{where}: column {name} holds {types[1]}, but {types[0]} elsewhere; convert them to one type"
            ) from error
        schema = schema.set(schema.get_field_index(name), field)
    return schema


def _group_of(row: int, ends: Sequence[int]) -> int:
    return min(bisect.bisect_right(ends, row), len(ends) - 1)


def _values(table: TableFile, group: int, column: str | None, found: Found, count: int) -> Sequence[Any]:
    """Returns a column's value for each row of a group, from the file or its folders' names."""
    if column is None:
        return [None] * count
    if column not in table.schema.names:
        return [folder_columns(found).get(column)] * count
    return cast(Sequence[Any], table.values(group, [column], count).column(column).to_pylist())


def _entry(
    found: Found, row: int, key: Any, label: Any, key_column: str | None, classes: dict[str, int]
) -> Entry:
    own = f"{found.key}#{row}"
    if key_column and key is None:
        return Entry(own, found.file, row, error=f"no key in column {key_column}")
    text = key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)
    try:
        return Entry(text if key_column else own, found.file, row, label=to_number(label, classes))
    except ValueError:
        error = f"the label {label!r:.80} is no integer of 32 bits"
        return Entry(text if key_column else own, found.file, row, error=error)


def _elements(entry: Entry, count: int) -> Iterator[Entry]:
    """Yields an entry for each image of a row, which ``members`` tells apart."""
    if not count:
        yield entry._replace(error="no image in this row")
    for number in range(count):
        yield entry._replace(key=f"{entry.key}.{number}", members=str(number))


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
