"""Choosing columns of a table by name."""

from collections.abc import Sequence

import pyarrow as pa

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
