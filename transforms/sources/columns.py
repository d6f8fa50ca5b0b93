"""Columns of tables of images, chosen by name and by what they can hold; classes, numbers or names."""

import json
import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from transforms.sources.locations import Found, from_file
from transforms.sources.reading import to_label
from vqgan.errors import UserError

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "bytes", "image_bytes", "image_data", "content")
"""Names by which a column of images is recognised."""


def require(where: str, columns: Sequence[str], wanted: Sequence[str | None]) -> None:
    """Makes sure that the wanted columns (None: not wanted) are there, once each.

    Raises:
      UserError: one is not; it names those that are.
    """
    missing = [name for name in wanted if name is not None and name not in columns]
    if missing:
        raise UserError(f"{where}: no column {', '.join(missing)}; there are {', '.join(columns) or 'none'}")
    twice = [name for name in wanted if name is not None and columns.count(name) > 1]
    if twice:
        raise UserError(f"{where}: column {twice[0]} is there more than once; give each a name of its own")


def first_of(where: str, columns: Sequence[str], candidates: Sequence[str], what: str) -> str:
    """Returns the first candidate that is a column.

    Raises:
      UserError: none is.
    """
    if not columns:
        raise UserError(f"{where}: no column to take as image_column, for it is empty; give another")
    for name in candidates:
        if name in columns:
            require(where, columns, [name])
            return name
    raise UserError(
        f"{where}: no column looks like {what}; name one with image_column: there are {', '.join(columns)}"
    )


def check_label(where: str, field: pa.Field) -> None:
    """Makes sure that a column can hold classes: numbers or names, or nothing at all.

    Raises:
      UserError: it holds something else.
    """
    kind = values_type(field.type)
    if not (pa.types.is_integer(kind) or pa.types.is_null(kind) or is_text(kind)):
        raise UserError(f"{where}: label column {field.name} holds {field.type}, not integers or names")


def is_text(kind: pa.DataType) -> bool:
    """Tells whether a type is one of strings, in any of Arrow's layouts, or a dictionary of them."""
    kind = values_type(kind)
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def values_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type of the values of a dictionary; any other type as it is."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def image_column(where: str, schema: pa.Schema, wanted: str | None) -> str:
    """Returns the column that holds the images: by its name, else the only one that can hold any.

    Raises:
      UserError: there is none, it holds no bytes, or the choice is open.
    """
    if wanted:
        require(where, schema.names, [wanted])
        if not has_images(schema.field(wanted).type):
            raise UserError(f"{where}: column {wanted} holds {schema.field(wanted).type}, not images")
        return wanted
    able = [field.name for field in schema if holds_images(field.type)]
    if len(able) == 1:
        return able[0]
    lists = [field.name for field in schema if has_images(field.type)]
    if lists and not able:
        raise UserError(
            f"{where}: column {lists[0]} holds lists of images; image_column {lists[0]} makes a row of each"
        )
    if not able and len(schema.names) > 0:
        there = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise UserError(f"{where}: no column holds encoded images; there are {' '.join(there.split()):.300}")
    return first_of(where, able, IMAGE_COLUMNS, "images")


def has_only_nulls(schema: pa.Schema, wanted: str | None) -> bool:
    """Returns whether the column of images, by name, is of Arrow's null type, and there is no other."""
    places = [schema.get_field_index(name) for name in ([wanted] if wanted else IMAGE_COLUMNS)]
    empty = any(place >= 0 and pa.types.is_null(schema.field(place).type) for place in places)
    return empty and (wanted is not None or not any(has_images(kind) for kind in schema.types))


def has_images(kind: pa.DataType) -> bool:
    """Tells whether a column of this type can hold encoded images, or lists of them."""
    return holds_images(kind.value_type if is_list(kind) else kind)


def is_list(kind: pa.DataType) -> bool:
    """Tells whether a type is one of lists, in any of Arrow's layouts."""
    types = pa.types
    checks = (
        types.is_list,
        types.is_large_list,
        types.is_fixed_size_list,
        types.is_list_view,
        types.is_large_list_view,
    )
    return any(check(kind) for check in checks)


def holds_images(kind: pa.DataType) -> bool:
    """Tells whether a column of this type can hold encoded images, one in a row."""
    types, kind = pa.types, values_type(kind)
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and holds_images(kind.field("bytes").type)
    checks = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(check(kind) for check in checks)


MAX_CLASSES = 1 << 20
"""Most names of classes: more are captions, or keys."""

_NUMBER = re.compile(r"\s*[+-]?[0-9][0-9_]*(\.[0-9]*)?\s*")  # pandas writes 1.0 where others are missing


def names_of_texts(values: Iterable[str | None]) -> list[str] | None:
    """Returns the distinct texts of a label column, sorted.

    None where some are numbers, as all should be then.

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
    return None if not seen or any(_NUMBER.fullmatch(value) for value in seen) else sorted(seen)


def to_number(value: object, classes: Mapping[str, int]) -> int | None:
    """Returns the number of a class; None for no value or an empty text.

    Args:
      value: an integer, a name, or an integer as text.
      classes: number of each name; empty where classes are numbers.

    Raises:
      ValueError: it is none of these.
    """
    if isinstance(value, str):
        if not value:
            return None
        return classes[value] if value in classes else to_label(_whole(value))
    return to_label(value)


def _whole(text: str) -> int:
    """Returns an integer, which may be written as ``3.0``. Raises ValueError."""
    whole, _, fraction = text.strip().partition(".")
    return int(text if fraction.strip("0") else whole)


def feature_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Returns the names of a ``ClassLabel`` that ``datasets`` wrote into a schema's metadata.

    None without any.
    """
    try:
        document: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"null"))
        names = document["info"]["features"][column]["names"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return list(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


_NULL = "__HIVE_DEFAULT_PARTITION__"


def folder_columns(found: Found) -> dict[str, str | None]:
    """Returns names and values that the folders of a file give it; None for Hive's mark of no value."""
    return _of_folders(found.parts[:-1])


def folder_columns_of(file: str) -> dict[str, str | None]:
    """Gives the :func:`folder_columns` of an entry's file."""
    return _of_folders(tuple(os.fsdecode(from_file(file)).split("/")[:-1]))


def with_folder_columns(schema: pa.Schema, found: Found) -> pa.Schema:
    """Returns the schema of a file with the columns that its folders give it, which are strings."""
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
