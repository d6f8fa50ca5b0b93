"""A folder of image files, and what describes them: ``metadata.jsonl``, ``.csv`` or ``.parquet`` beside them.

The latter is the convention of Hugging Face's ``imagefolder``: column ``file_name`` is the path of an image
below the folder that the file lies in; the other columns are captions, classes and the like.
"""

import dataclasses
import functools
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from transforms.sources.base import Entry, Example, Loader, Names
from transforms.sources.columns import check_label, is_text, names_of_texts, require, to_number
from transforms.sources.locations import Found, LocatedSource, Location, to_file, to_key, to_text
from transforms.sources.names import is_array, no_image
from transforms.sources.reading import open_planned, read_exact, seen
from transforms.sources.tables import Table, check_encoding, open_table, storable
from vqgan.errors import UserError


@dataclasses.dataclass(frozen=True)
class FolderSource(LocatedSource):
    """Every file below a folder or matching a glob, or a single file; one image each.

    Whatever its extension, a file is an entry: one that is no image becomes a reject, so nothing goes
    missing silently, and one named as a container (``.tar``, ``.npz``) says so. Only hidden files and folders
    (``.name``) are left out, and an ``imagefolder``'s ``metadata.jsonl``, ``.csv`` or ``.parquet``. Links are
    followed, but never back up into a folder that holds them.

    ``label_column`` and ``columns`` are taken from these files. An image without a row there has none of
    them; a row without an image becomes a reject.

    The key is the path below the root, with ``/`` and with anything that is not UTF-8 escaped.
    """

    shuffles = True
    options = frozenset({"folder_labels", "label_column", "columns"})

    def fields(self) -> list[pa.Field]:
        """Returns the further columns, as ``metadata.jsonl``, ``.csv`` or ``.parquet`` has them.

        Raises:
          UserError: there is no such file, or no such column.
        """
        if not self.config.columns:
            return []
        location = self.location
        if next(metadata_files(location), None) is None:
            raise UserError(
                f"{self.config.input}: a folder of images has no columns ({', '.join(self.config.columns)} "
                "asked for) without metadata.jsonl beside them; leave them out or use a list of images"
            )
        schema = metadata_schema(location, self.config.columns)
        return [schema.field(name).with_nullable(True) for name in self.config.columns]

    def class_names(self) -> Names | None:
        """Returns names of the classes in the order of their numbers; None without any.

        Raises:
          UserError: the root has no subfolders, or cannot be read.
        """
        location = self.location
        if self.config.folder_labels:
            return list(_classes(location))
        column = self.config.label_column
        if column is None:
            return None
        field = metadata_schema(location, [column]).field(column)
        check_label(self.config.input, field)
        if not is_text(field.type):
            return None
        return names_of_texts(values[0] for _, values in metadata_rows(location, [column]))

    def list(self) -> Iterator[Entry]:
        """Yields an entry for each file, with its size and, where asked for, its class.

        Raises:
          UserError: a class is no number where others are, or ``metadata`` cannot be read.
        """
        location = self.location
        classes = _classes(location) if self.config.folder_labels else {}
        described = self._described(location)
        nothing = dict.fromkeys(self.config.columns)
        for found in location.walk():
            if found.name not in METADATA_NAMES:
                entry = _entry(found, classes, self.config.arrays)
                label, columns = described.pop("/".join(found.parts), (None, nothing))
                yield entry._replace(label=entry.label if classes else label, columns=columns or None)
        for path in described if not location.globs.patterns else ():
            key = f"{to_key(path)}/#not-there"
            yield Entry(key, to_file(path), error="metadata describes this image, but it is not there")

    def _described(self, location: Location) -> dict[str, tuple[int | None, dict[str, Any]]]:
        """Returns class and further columns of every image that metadata describes.

        Empty unless some are taken from there.
        """
        config = self.config
        if config.label_column is None and not config.columns:
            return {}
        names = [*([config.label_column] if config.label_column else []), *config.columns]
        has_label = config.label_column is not None and not config.folder_labels
        numbers = {name: number for number, name in enumerate(self.class_names() or ())}
        described: dict[str, tuple[int | None, dict[str, Any]]] = {}
        for path, values in metadata_rows(location, names):
            if path in described:
                raise UserError(f"{config.input}: two rows of metadata describe {to_text(path)}; keep one")
            columns = dict(zip(config.columns, values[len(names) - len(config.columns) :], strict=True))
            try:
                described[path] = (to_number(values[0], numbers) if has_label else None, columns)
            except ValueError as error:
                raise UserError(
                    f"{config.input}: {path} has the label {values[0]!r:.80}, which is no integer; "
                    f"correct column {config.label_column}"
                ) from error
        return described

    def read(self, entries: Sequence[Entry]) -> Iterator[Loader]:
        """Yields a loader for each entry; each opens, reads and closes its own file."""
        location = self.location
        # Plans of earlier releases do not tell the columns: metadata is looked through for them.
        unknown = [entry for entry in entries if entry.columns is None] if self.config.columns else []
        found = self._columns(location, unknown) if unknown else {}
        nothing: dict[str, Any] = dict.fromkeys(self.config.columns)
        for entry in entries:
            columns = found.get(entry.file, nothing) if entry.columns is None else entry.columns
            yield functools.partial(_load, location, entry, columns)

    def _columns(self, location: Location, entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
        """Returns the further columns of some images by their files."""
        wanted = {entry.file for entry in entries}
        names = self.config.columns
        rows = ((to_file(path), values) for path, values in metadata_rows(location, names))
        return {file: dict(zip(names, values, strict=True)) for file, values in rows if file in wanted}


def _entry(found: Found, classes: dict[str, int], arrays: bool) -> Entry:
    label = classes.get(to_key(found.parts[0])) if len(found.parts) > 1 else None
    error = found.error or (None if arrays and is_array(found.name) else no_image(found.name))
    entry = Entry(found.key or ".", found.file, size=found.size, label=label, error=error)
    return seen(entry, found)


def _classes(location: Location) -> dict[str, int]:
    try:
        names = [to_key(node.name) for node in location.children() if node.is_folder]
    except OSError as error:
        raise UserError(f"{location.text}: cannot be read ({error}); check the permissions") from error
    if not names:
        raise UserError(f"{location.text}: no subfolders in {location.root} to take classes from")
    return {name: number for number, name in enumerate(names)}


def _load(location: Location, entry: Entry, columns: dict[str, Any]) -> Example:
    with open_planned(location, entry) as file:
        return Example(read_exact(file, 0, file.size()), entry.label, columns)


METADATA_NAMES = frozenset({"metadata.jsonl", "metadata.csv", "metadata.parquet"})
"""Files that describe the images beside them."""

FILE_NAME = "file_name"


def metadata_files(location: Location) -> Iterator[Found]:
    """Returns the files of a folder that describe its images."""
    return (found for found in location.walk() if found.name in METADATA_NAMES and not found.error)


def metadata_schema(location: Location, wanted: Sequence[str]) -> pa.Schema:
    """Returns the columns of the first such file.

    Raises:
      UserError: there is none, or it lacks ``file_name`` or a column that is asked for.
    """
    found = next(metadata_files(location), None)
    if found is None:
        raise UserError(f"{location.text}: no metadata.jsonl, .csv or .parquet to take columns from")
    schema = _open(location, found).schema()
    require(f"{location.text} ({found.key})", schema.names, [FILE_NAME, *wanted])
    return schema


def metadata_rows(location: Location, names: Sequence[str]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yields the path of an image below the root of ``location``, and the values of some columns, row by row.

    Raises:
      UserError: a file cannot be read, lacks a column, or has a row that cannot be told apart.
    """
    for found in metadata_files(location):
        table = _open(location, found)
        where = f"{location.text} ({found.key})"
        require(where, table.schema().names, [FILE_NAME, *names])
        folder = "/".join(found.parts[:-1])
        for number, row in enumerate(table.rows([FILE_NAME, *names])):
            if isinstance(row, str) or not isinstance(row[0], str) or not row[0]:
                reason = row if isinstance(row, str) else f"no {FILE_NAME}"
                raise UserError(f"{where}: row {number}: {reason}; correct it")
            check_encoding(where, number, row[0], dict(zip(names, row[1:], strict=True)))
            yield posixpath.normpath(posixpath.join(folder, row[0])), tuple(map(storable, row[1:]))


def _open(location: Location, found: Found) -> Table:
    return open_table(location, found, lambda path: False)
