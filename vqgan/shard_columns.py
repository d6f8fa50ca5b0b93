"""The columns of token shards: their types, how arrays become them, how Parquet encodes them.

Latents are there where a run was asked for them (``--columns-out latents``).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vqgan.errors import UserError

TOKENS_LEAF = "tokens.list.element"
LATENTS = "latents"
LATENT_BYTES_AT_ONCE = 1 << 23  # of one row group, or of rows being read: bounds the memory of both
COMPRESSION: dict[str, Any] = {"compression": "zstd", "compression_level": 3}


def token_dtype(codebook_size: int) -> np.dtype:
    """Returns uint16 when every token fits, else uint32."""
    return np.dtype(np.uint16 if codebook_size <= 1 << 16 else np.uint32)


def shard_schema(
    grid: tuple[int, int],
    codebook_size: int,
    extra: Sequence[pa.Field] = (),
    latents: Sequence[int] | None = None,
) -> pa.Schema:
    """Returns the columns of a shard.

    Args:
      grid: ``(h, w)``.
      codebook_size: number of codes.
      extra: columns passed through from the source.
      latents: shape of one row's latents; None for a shard without that column.

    Raises:
      UserError: an extra column bears the name of one of ours.
    """
    tokens = pa.from_numpy_dtype(token_dtype(codebook_size))
    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("view", pa.uint8(), nullable=False),
        pa.field("tokens", pa.list_(tokens, grid[0] * grid[1]), nullable=False),
        pa.field("crop", pa.list_(pa.int32(), 4), nullable=False),
        pa.field("mirrored", pa.bool_(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("label", pa.int32()),
    ]
    if latents is not None:
        fields.append(pa.field(LATENTS, pa.list_(pa.float16(), math.prod(latents)), nullable=False))
    taken = {field.name for field in fields}
    for field in extra:
        if field.name in taken:
            raise UserError(f"column {field.name!r}: a shard has its own column of this name; leave it out")
    return pa.schema([*fields, *extra])


def smallest_encoding(tokens: pa.Table) -> dict[str, Any]:
    """Returns Parquet options under which a sample of the token column is smallest.

    Parquet keeps uint16 as 32-bit integers, so its encoding decides the size. A dictionary packs tokens into
    the bits that small, evenly used codebooks need; streams of bytes suit zstd's coder, for larger ones.

    Args:
      tokens: table of the ``tokens`` column alone.
    """
    candidates: list[dict[str, Any]] = [
        {"use_dictionary": [TOKENS_LEAF]},
        {"use_dictionary": False, "column_encoding": {TOKENS_LEAF: "BYTE_STREAM_SPLIT"}},
    ]

    def size(options: dict[str, Any]) -> int:
        sink = pa.BufferOutputStream()
        pq.write_table(tokens, sink, **options, **COMPRESSION)
        return sink.tell()

    return min(candidates, key=size)


def fixed_lists(values: np.ndarray, kind: pa.DataType) -> pa.FixedSizeListArray:
    """Turns ``[rows, …]`` into a list of a fixed size for each row."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)


def latent_lists(latents: np.ndarray, kind: pa.DataType) -> pa.FixedSizeListArray:
    """Turns float32 latents ``[rows, …]`` into lists of float16; numbers beyond its range become its ends."""
    most = float(np.finfo(np.float16).max)
    return fixed_lists(np.clip(latents, -most, most).astype(np.float16), kind)


def rows_at_once(rows: int, latents: Sequence[int] | None) -> int:
    """Returns how many of so many rows are held in memory together, at least one.

    Args:
      rows: that would be held without latents.
      latents: shape of one row's; None for none.
    """
    if latents is None:
        return rows
    return max(1, min(rows, LATENT_BYTES_AT_ONCE // (2 * math.prod(latents))))
