"""The shards of a finished data set, checked against its manifest."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from vqgan import filesystems
from vqgan.errors import UserError
from vqgan.manifest import AGAIN, TokenManifest
from vqgan.shards import Shard, ShardMetadata, open_shard

LARGE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
"""Types whose arrays cannot hold more than 2 GiB, and what holds it."""


class DeclaredShards(Protocol):
    """What a manifest declares about every shard.

    Attributes:
      plan_hash: of the plan that the shards are slices of.
      fingerprint: of the codec.
      grid: ``(h, w)``.
      parts: how many slices each part has, by the hash of its plan.
    """

    @property
    def plan_hash(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def parts(self) -> Mapping[str, int]: ...


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """What a shard's footer tells.

    Attributes:
      name: of the file.
      group_rows: rows of each row group.
      slice_number: which slice of the plan.
      plan_hash: of that plan.
      fields: columns that were asked for.
      column_bytes: that those take in memory, at most about.
      largest_label: -1 where there is none.
    """

    name: str
    group_rows: tuple[int, ...]
    slice_number: int
    plan_hash: str
    fields: Mapping[str, pa.Field]
    column_bytes: int
    largest_label: int


def check_shard_size(path: str, found: int | None, expected: int) -> None:
    """Compares the size of a shard's file in bytes, None for one that is not there, with the manifest.

    Raises:
      UserError: it is missing, or of another size.
    """
    if found is None:
        raise UserError(
            f"{path}: missing, though the manifest names it; restore it, or run the command that wrote the "
            "data set again"
        )
    if found != expected:
        raise UserError(f"{path}: {found} bytes, but the manifest says {expected}; {AGAIN}")


def check_footer(
    path: str, metadata: ShardMetadata, rows: int, declared: DeclaredShards, expected: int
) -> None:
    """Compares a shard's footer with the manifest.

    Args:
      path: of the shard, for the message.
      metadata: in its footer.
      rows: that it holds.
      declared: what the manifest says of all shards.
      expected: rows of this one, as the manifest has it.

    Raises:
      UserError: says in what it differs.
    """
    slices = declared.parts.get(metadata.plan_hash)
    if slices is None:
        check_fact(path, "plan hash", metadata.plan_hash, declared.plan_hash)
    check_fact(path, "codec", metadata.fingerprint, declared.fingerprint)
    check_fact(path, "grid", tuple(metadata.grid), declared.grid)
    check_fact(path, "number of shards", metadata.slices, slices)
    check_fact(path, "rows", rows, expected)


def check_fact(path: str, what: str, found: object, expected: object) -> None:
    """Refuses a shard that differs from the manifest in one thing."""
    if found != expected:
        raise UserError(
            f"{path}: {what} is {_short(found)}, but the manifest says {_short(expected)}; {AGAIN}"
        )


def check_shard(manifest: TokenManifest, entry: Mapping[str, Any], columns: Sequence[str]) -> ShardInfo:
    """Compares one shard's size and footer with the manifest. Reads the labels alone.

    Raises:
      UserError: it is missing, damaged or not the one of the manifest, or has no such column.
    """
    path = filesystems.join(manifest.folder, entry["name"])
    info = filesystems.file_info(path)
    check_shard_size(path, None if info.type == fs.FileType.NotFound else info.size, entry["bytes"])
    with open_shard(path) as shard:
        check_footer(path, shard.metadata, shard.rows, manifest, entry["rows"])
        check_fact(path, "layout", shard.metadata.layout, manifest.layout)
        check_fact(path, "codebook size", shard.metadata.codebook_size, manifest.codebook_size)
        return _shard_info(shard, entry["name"], columns)


def check_together(manifest: TokenManifest, shards: Sequence[ShardInfo]) -> None:
    """Checks that each slice is there once, and the columns are the same everywhere.

    Raises:
      UserError: they are not.
    """
    expected = sorted((plan, number) for plan, slices in manifest.parts.items() for number in range(slices))
    if sorted((shard.plan_hash, shard.slice_number) for shard in shards) != expected:
        raise UserError(
            f"{manifest.path}: some slices of its plan are there twice, others not at all; restore its "
            "shards, or move them away and run the command that wrote the data set again"
        )
    for shard in shards:
        for name, field in shard.fields.items():
            first = shards[0].fields[name]
            if field != first:
                where = filesystems.join(manifest.folder, shard.name)
                raise UserError(
                    f"{where}: its column {name!r} is {column_kind(field)}, elsewhere {column_kind(first)}; "
                    "leave the column out"
                )


def read_keys(manifest: TokenManifest, shard: ShardInfo) -> pa.Array:
    """Reads the key of each row of a shard.

    Raises:
      UserError: the shard is gone or damaged.
    """
    path = filesystems.join(manifest.folder, shard.name)
    with open_shard(path) as file:
        parts = [file.row_group(group, ["key"]).column("key") for group in range(len(shard.group_rows))]
    keys = one_array(pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string()))
    if keys.null_count:
        raise UserError(f"{path}: damaged (rows without a key); run vqgan verify on the data set")
    return keys


def labels_of(column: pa.ChunkedArray) -> np.ndarray:
    """Returns int32 labels, -1 where there is none: null, or any number below 0, as sources mark it."""
    return np.maximum(pc.fill_null(column, -1).to_numpy(), -1).astype(np.int32)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Puts the chunks of a column together."""
    if column.type in LARGE:
        column = column.cast(LARGE[column.type])
    return column.combine_chunks()


def column_kind(field: pa.Field) -> str:
    """Returns a column's type in a message."""
    return str(field.type) + ("" if field.nullable else " without gaps")


def _shard_info(shard: Shard, name: str, columns: Sequence[str]) -> ShardInfo:
    """Returns what the footer tells, and checks that there are these columns."""
    for column in columns:
        _require_column(shard, column)
    groups = [shard.footer.row_group(number) for number in range(shard.footer.num_row_groups)]
    return ShardInfo(
        name=name,
        group_rows=tuple(group.num_rows for group in groups),
        slice_number=shard.metadata.slice_number,
        plan_hash=shard.metadata.plan_hash,
        fields={column: shard.schema.field(column).remove_metadata() for column in columns},
        column_bytes=sum(group.total_byte_size for group in groups) if columns else 0,
        largest_label=max((_largest_label(shard, number) for number in range(len(groups))), default=-1),
    )


def _require_column(shard: Shard, name: str) -> None:
    known = [column for column in shard.schema.names if column != "tokens"]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise UserError(f"{shard.name}: no column {name!r} besides the tokens; {hint}")


def _largest_label(shard: Shard, group: int) -> int:
    """Reads it: the footer's own statistics have no checksum, and damaged ones may end the process."""
    labels = labels_of(shard.row_group(group, ["label"]).column("label"))
    return int(labels.max(initial=-1))


def _short(value: object) -> str:
    """Returns the first digits of a hash; anything else as it is."""
    return value[:12] if isinstance(value, str) else str(value)
