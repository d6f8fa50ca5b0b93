"""Rejects: images that gave no tokens, and rows that gave no image, each with its reason."""

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.sources.base import Entry
from vqgan import filesystems, publishing
from vqgan.errors import UserError, first_line
from vqgan.manifest import AGAIN
from vqgan.shards import REJECTS_FOLDER, rejects_name

DUPLICATE = "same bytes as "
"""How the error of a planned entry begins whose bytes occur under another key."""
REJECT_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("sha256", pa.string()),
    ]
)

T = TypeVar("T")


class RejectRow(NamedTuple):
    """One row of a rejects file.

    Attributes:
      key: of the example.
      stage: ``plan`` (found while listing), ``read``, ``decode`` or ``filter``.
      error: class of the error.
      message: one line.
      size: bytes of the encoded image, or None where it could not be read.
      sha256: of those bytes, or None.
    """

    key: str
    stage: str
    error: str
    message: str
    size: int | None
    sha256: str | None


def accepted(
    items: Iterator[T | RejectRow], found: list[RejectRow], progress: Callable[[int, int], None]
) -> Iterator[T]:
    """Yields items that are no rejects; the rejects go to ``found`` and are reported as done."""
    for item in items:
        if isinstance(item, RejectRow):
            found.append(item)
            progress(0, 1)
        else:
            yield item


def reject_of_plan(entry: Entry) -> RejectRow:
    """Returns the reject of an entry that listing had found damaged, or a duplicate."""
    message = one_line(entry.error or "")
    error = "Duplicate" if message.startswith(DUPLICATE) else "Damaged"
    size = entry.size if entry.size >= 0 else None
    return RejectRow(entry.key, "plan", error, message, size, None)


def reject_of_error(key: str, stage: str, error: str, message: str, data: bytes | None) -> RejectRow:
    """Returns the reject of an example; ``data`` are its bytes where they could be read."""
    size, digest = (None, None) if data is None else (len(data), hashlib.sha256(data).hexdigest())
    return RejectRow(key, stage, error, one_line(message), size, digest)


def may_pass(row: RejectRow) -> bool:
    """Returns whether the reason of a reject may have passed: its bytes, or memory, could not be had."""
    return (row.stage == "read" and row.sha256 is None) or row.error == "MemoryError"


def write_rejects(path: str, rows: list[RejectRow]) -> None:
    """Publishes a rejects file."""
    columns = list(zip(*rows, strict=True))
    arrays = [pa.array(column, field.type) for column, field in zip(columns, REJECT_SCHEMA, strict=True)]
    with publishing.publish(path) as stream:
        pq.write_table(pa.Table.from_arrays(arrays, schema=REJECT_SCHEMA), stream, compression="zstd")


def publish_rejects(output: str, number: int, slices: int, rows: list[RejectRow], part: int = 0) -> None:
    """Puts the rejects of a slice in place: before the file that says that the slice is finished."""
    path = filesystems.join(output, rejects_name(number, slices, part))
    if rows:
        publishing.make_folder(filesystems.join(output, REJECTS_FOLDER))
        write_rejects(path, rows)
    else:
        publishing.delete(path)  # a killed run may have found some that can be read now


def read_rejects(path: str) -> list[RejectRow]:
    """Returns all rows of a rejects file.

    Raises:
      UserError: damaged, or no rejects file.
      OSError: it cannot be opened.
    """
    filesystem, inner = filesystems.resolve(path)
    with filesystem.open_input_file(inner) as file:
        try:
            table = pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: damaged ({first_line(error)}); {AGAIN}") from error
    if not table.schema.equals(REJECT_SCHEMA):
        raise UserError(f"{path}: damaged (its columns are not those of rejects); {AGAIN}")
    return [RejectRow(**row) for row in table.to_pylist()]


def one_line(text: str, limit: int = 500) -> str:
    """Returns ``text`` on one line of valid Unicode, cut to ``limit`` characters."""
    clean = " ".join(text.split()).encode("utf-8", "backslashreplace").decode()
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
