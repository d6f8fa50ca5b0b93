"""Columns that stand in the names of folders: ``label=cat/part-0.parquet``."""

import os
import urllib.parse

import pyarrow as pa

from transforms.sources.locations import Found, from_file

_NULL = "__HIVE_DEFAULT_PARTITION__"


def values(found: Found) -> dict[str, str | None]:
    """Names and values that the folders of a file give it; None for Hive's mark of no value."""
    return _of_folders(found.parts[:-1])


def values_of(file: str) -> dict[str, str | None]:
    """Like :func:`values`, of the file of an entry."""
    return _of_folders(tuple(os.fsdecode(from_file(file)).split("/")[:-1]))


def with_fields(schema: pa.Schema, found: Found) -> pa.Schema:
    """The schema of a file with the columns that its folders give it, which are strings."""
    for name in values(found):
        if name not in schema.names:
            schema = schema.append(pa.field(name, pa.string()))
    return schema


def _of_folders(folders: tuple[str, ...]) -> dict[str, str | None]:
    pairs = (folder.partition("=") for folder in folders)
    unquote = urllib.parse.unquote
    return {
        unquote(name): None if value == _NULL else unquote(value)
        for name, equals, value in pairs
        if equals and name
    }
