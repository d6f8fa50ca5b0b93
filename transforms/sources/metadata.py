"""What describes the images of a folder: ``metadata.jsonl``, ``.csv`` or ``.parquet`` beside them.

This is the convention of Hugging Face's ``imagefolder``: column ``file_name`` is the path of an image below
the folder that the file lies in; the other columns are captions, classes and the like.
"""

import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from transforms.sources.columns import require
from transforms.sources.locations import Found, Location
from transforms.sources.tables import Table, open_table
from vqgan.errors import UserError

METADATA_NAMES = frozenset({"metadata.jsonl", "metadata.csv", "metadata.parquet"})
"""Files that describe the images beside them."""

FILE_NAME = "file_name"


def metadata_files(location: Location) -> Iterator[Found]:
    """The files of a folder that describe its images."""
    return (found for found in location.walk() if found.name in METADATA_NAMES and not found.error)


def metadata_schema(location: Location, wanted: Sequence[str]) -> pa.Schema:
    """The columns of the first such file.

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
    """The path of an image below the root of ``location``, and the values of some columns, row by row.

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
            yield posixpath.normpath(posixpath.join(folder, row[0])), row[1:]


def _open(location: Location, found: Found) -> Table:
    return open_table(location, found, lambda path: False)
