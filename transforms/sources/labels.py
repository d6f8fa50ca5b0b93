"""Classes of a label column: numbers, or names that are numbered in sorted order."""

import json
import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from transforms.sources.locations import Found, from_file
from transforms.sources.reading import to_label
from vqgan.errors import UserError

MAX_CLASSES = 1 << 20
"""Most names of classes: more are captions, or keys."""

_INTEGER = re.compile(r"\s*[+-]?[0-9][0-9_]*\s*")


def names_of_texts(values: Iterable[str | None]) -> list[str] | None:
    """The distinct texts of a label column, sorted; None where some are integers, as all should be then.

    Raises:
      UserError: there are more than :data:`MAX_CLASSES`.
    """
    seen: set[str] = set()
    for value in values:
        if value:
            seen.add(value)
            if len(seen) > MAX_CLASSES:
                raise UserError(
                    f"the label column has more than {MAX_CLASSES:,} different texts; name another"
                )
    return None if not seen or any(_INTEGER.fullmatch(value) for value in seen) else sorted(seen)


def to_number(value: object, classes: Mapping[str, int]) -> int | None:
    """The number of a class; None for no value or an empty text.

    Args:
      value: an integer, a name, or an integer as text.
      classes: number of each name; empty where classes are numbers.

    Raises:
      ValueError: it is none of these.
    """
    if isinstance(value, str):
        if not value:
            return None
        return classes[value] if value in classes else to_label(int(value))
    return to_label(value)


def feature_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The names of a ``ClassLabel`` that ``datasets`` wrote into a schema's metadata; None without any."""
    try:
        document: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"null"))
        names = document["info"]["features"][column]["names"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return list(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


_NULL = "__HIVE_DEFAULT_PARTITION__"


def folder_columns(found: Found) -> dict[str, str | None]:
    """Names and values that the folders of a file give it; None for Hive's mark of no value."""
    return _of_folders(found.parts[:-1])


def folder_columns_of(file: str) -> dict[str, str | None]:
    """Like :func:`folder_columns`, of the file of an entry."""
    return _of_folders(tuple(os.fsdecode(from_file(file)).split("/")[:-1]))


def with_folder_columns(schema: pa.Schema, found: Found) -> pa.Schema:
    """The schema of a file with the columns that its folders give it, which are strings."""
    for name in folder_columns(found):
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
