"""Token data sets opened for training: rows by number, from memory or from disk.

Needs NumPy and pyarrow only, so that it serves programs that train with another library just as well.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from vqgan.data.row_groups import Images, RowGroups, Rows, load_rows
from vqgan.data.splits import Split
from vqgan.data.token_shards import ShardInfo, check_shard, check_together
from vqgan.errors import UserError
from vqgan.manifest import TokenManifest, load_token_manifest, manifest_fields
from vqgan.shard_columns import token_dtype
from vqgan.token_layouts import read_latent_shape

_MIB = 1 << 20
_OPENING_THREADS = 8


class TokenBatch(NamedTuple):
    """Rows of token data sets, as a training step takes them.

    Attributes:
      tokens: int32 ``[B, L]``, each row a token grid row by row (see :attr:`TokenSet.layout`).
      labels: int32 ``[B]``, the class, or -1 where there is none.
      columns: what was asked for besides. Numbers, truth values and lists of a fixed number of them are
        arrays ``[B]`` or ``[B, n]`` unless the column may have gaps; other columns are lists of Python
        values, with None for a gap.
    """

    tokens: np.ndarray
    labels: np.ndarray
    columns: dict[str, np.ndarray | list[Any]]


class TokenSet:
    """One token data set on disk, or one split of it. Safe from many threads. See :func:`open_tokens`.

    Attributes:
      path: its folder or URI, as it was given.
      folder: where its files lie: the same, or the cache of what lies on the Hub.
      manifest: as JSON data.
      fingerprint: of the codec that made the tokens.
      codec: what the manifest says about that codec.
      grid: ``(h, w)``; a row has ``L = h * w`` tokens.
      layout: ``grid``; ``scales`` (grids from coarse to fine, one after the other) or ``sequence``
        (one-dimensional), both with a grid of one row.
      codebook_size: tokens lie in ``[0, codebook_size)``.
      latent_shape: of a row's latents, ``(h, w, D)`` or ``(L, D)``, which ``columns=["latents"]`` gives flat,
        float16 ``[B, h * w * D]``; None where the data set has none.
      preprocessing: how pixels were made, as JSON data; empty where there were none.
      classes: one more than the largest label of the whole data set, whichever split this is; 0 where there
        are no labels.
      class_names: of the source, perhaps none.
      in_memory: whether all rows are, rather than on disk.
      groups: the row groups.
    """

    def __init__(
        self, manifest: TokenManifest, shards: Sequence[ShardInfo], split: Split, memory: int
    ) -> None:
        """For :func:`open_tokens`; ``memory`` is in bytes."""
        identity = manifest.document.get("identity") or {}
        self.path = manifest.path
        self.folder = manifest.folder
        self.manifest = manifest.document
        self.fingerprint = manifest.fingerprint
        self.codec: Mapping[str, Any] = manifest.document["codec"]
        self.grid = manifest.grid
        self.layout = manifest.layout
        self.codebook_size = manifest.codebook_size
        self.latent_shape = read_latent_shape(
            manifest_fields(self.path, self.manifest).fields("identity", {})
        )
        self.preprocessing: Mapping[str, Any] = identity.get("preprocessing") or {}
        self.class_names = tuple((identity.get("source") or {}).get("class_names") or ())
        self.classes = 1 + max((shard.largest_label for shard in shards), default=-1)
        self.groups = RowGroups(manifest, shards, split)
        self._total = manifest.histogram if split.is_all else None
        dtype = token_dtype(self.codebook_size)
        length = self.grid[0] * self.grid[1]
        share = len(self) / max(1, sum(sum(shard.group_rows) for shard in shards))
        columns = share * sum(shard.column_bytes for shard in shards)
        self.in_memory = len(self) * (length * dtype.itemsize + 4) + columns <= memory
        self._rows = load_rows(self.groups, length, dtype) if self.in_memory else None

    def __len__(self) -> int:
        return len(self.groups)

    def take(self, numbers: np.ndarray) -> TokenBatch:
        """Reads rows by number, int ``[B]`` in ``[0, len)``, at least one, in that order.

        On disk, rows of the same row groups are read best together, or one after the other.

        Raises:
          IndexError: there is no such row.
          UserError: a shard is gone, damaged, or has tokens outside of the codebook.
        """
        return as_batch(self.read(np.asarray(numbers, np.int64)), self.groups.fields)

    def read(self, numbers: np.ndarray) -> Rows:
        """Reads like :meth:`take`, as the rows are kept: at least one, int64 ``[B]``."""
        if not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"{self.path}: rows {numbers.min()} to {numbers.max()} of {len(self)}")
        return self.groups.read(numbers) if self._rows is None else self._rows.take(numbers)

    @functools.cached_property
    def histogram(self) -> np.ndarray:
        """Counts each code in these rows, int64 ``[K]``. Reads them all if some are left out."""
        if self._total is not None:
            return self._total
        counts = np.zeros(self.codebook_size, np.int64)
        for number, (start, size) in enumerate(zip(self.groups.starts, self.groups.sizes, strict=True)):
            rows = self._rows  # part by part: counting takes eight bytes a token
            part = self.groups.group(number).tokens if rows is None else rows.tokens[start : start + size]
            counts += np.bincount(part.reshape(-1), minlength=len(counts))
        return counts

    @functools.cached_property
    def images(self) -> Images:
        """Finds which rows are views of the same image. Reads all keys."""
        return self.groups.images()


def open_tokens(
    path: str,
    *,
    columns: Sequence[str] = (),
    fingerprint: str | None = None,
    codec_name: str = "",
    grid: tuple[int, int] | None = None,
    holdout: int = 0,
    validation: bool = False,
    memory_mib: int = 1024,
) -> TokenSet:
    """Opens a finished data set, after comparing every shard's size and footer with the manifest.

    >>> from vqgan import open_tokens
    >>> tokens = open_tokens("tokens/")
    >>> len(tokens), tokens.grid, tokens.codebook_size
    (10, (8, 8), 1024)
    >>> tokens.take([0, 3]).tokens.shape  # int32, each row a grid row by row
    (2, 64)

    Args:
      path: folder or URI that ``vqgan tokenize`` or ``vqgan sample`` has written, or
        ``hf://datasets/owner/name[@revision]`` of one that ``vqgan push`` has uploaded.
      columns: to be read besides tokens and label.
      fingerprint: of the codec that the tokens must be of; None for any.
      codec_name: what to call that codec in a message.
      grid: that the tokens must have; None for any.
      holdout: one image in so many is for validation, with all its views, by a hash of its key
        (:mod:`vqgan.data.splits`); 0 for none.
      validation: open the validation rows rather than the others; there may be none.
      memory_mib: rows are loaded now if they take no more than this. Otherwise they are read from disk when
        asked for, and some tens of decoded row groups stay in memory.

    Raises:
      UserError: no finished data set, one that is unavailable on the Hub, shards that are missing, damaged
        or not those of the manifest, another codec or grid, an unknown column, nothing to train on.
    """
    if holdout < 0:
        raise UserError(f"one image in {holdout} to hold back: give 0 for none, or a number above it")
    manifest = load_token_manifest(path)
    _check_wanted(manifest, fingerprint, codec_name, grid)
    with ThreadPoolExecutor(_OPENING_THREADS) as pool:
        shards = list(pool.map(lambda entry: check_shard(manifest, entry, columns), manifest.entries))
    check_together(manifest, shards)
    tokens = TokenSet(manifest, shards, Split(holdout, validation), memory_mib * _MIB)
    if not len(tokens) and not validation:
        count = manifest.document["counts"]["rows"]
        why = (
            f"all {count} rows are for validation, as one image in {holdout} is"
            if count
            else "it has no rows"
        )
        raise UserError(f"{path}: nothing to train on: {why}; give more images or hold back fewer")
    return tokens


def as_batch(rows: Rows, fields: Mapping[str, pa.Field]) -> TokenBatch:
    """Returns rows as a training step takes them; ``fields`` tell which columns may have gaps."""
    columns = {name: _values(values, fields[name]) for name, values in rows.columns.items()}
    return TokenBatch(rows.tokens.astype(np.int32), rows.labels, columns)


def all_batches(tokens: TokenSet, batch_size: int) -> Iterator[TokenBatch]:
    """Yields every row once, in order; the last batch is what is left over. For validation."""
    if batch_size < 1:
        raise UserError(f"a batch of {batch_size} rows: it must be at least 1")
    for start in range(0, len(tokens), batch_size):
        yield tokens.take(np.arange(start, min(start + batch_size, len(tokens))))


def _check_wanted(
    manifest: TokenManifest, fingerprint: str | None, codec_name: str, grid: tuple[int, int] | None
) -> None:
    if fingerprint is not None and fingerprint != manifest.fingerprint:
        found = called(manifest.fingerprint, manifest.codec_name)
        raise UserError(
            f"{manifest.path}: its tokens were made by codec {found}, not by "
            f"{called(fingerprint, codec_name)}; give a data set of the same codec"
        )
    if grid is not None and tuple(grid) != manifest.grid:
        raise UserError(
            f"{manifest.path}: its grids have {shape(manifest.grid)} tokens, not {shape(grid)}; give a data "
            "set of images of the same size"
        )


def shape(grid: tuple[int, int]) -> str:
    """Returns a grid in a message."""
    return f"{grid[0]} rows of {grid[1]}"


def called(fingerprint: str, name: str) -> str:
    """Returns a codec in a message: the first digits of its fingerprint, and its name where that is known."""
    return fingerprint[:12] + (f" ({name})" if name else "")


def _values(values: pa.Array, field: pa.Field) -> np.ndarray | list[Any]:
    """Returns a column as an array where each row must have a value of the same shape, else as a list."""
    if not field.nullable and _is_number(field.type):
        return values.to_numpy(zero_copy_only=False)
    if not field.nullable and pa.types.is_fixed_size_list(field.type) and _is_number(field.type.value_type):
        # flatten() heeds the offset of a slice, which .values does not
        return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)
    return values.to_pylist()


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
