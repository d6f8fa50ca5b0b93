"""Captions of images from a column of a Parquet file: texts, or sequences of vectors of any encoder.

A row belongs to the image of its ``key``, as token shards have it. Rows of one key, or a list in one row,
are several captions of the image; a row without a key is left out. A column of texts is ``string`` or
``list<string>``. One of vectors is a list of numbers (a caption of one vector), a list of such (a caption),
or a list of those (several captions); lists may be of fixed size. No JAX is imported here.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vqgan import filesystems
from vqgan.errors import UserError, first_line

KEY_COLUMNS = ("key", "id")
"""Columns that may say which image a caption is of: the first of them that is there."""
Caption = str | np.ndarray
"""A text, or float32 vectors ``[t, E]``."""


@dataclass(frozen=True)
class Captions:
    """Captions by key.

    Attributes:
      address: ``FILE.parquet:COLUMN``, for messages.
      numbers: of each key's captions among all, at least one.
      texts: of all captions; None where they are vectors.
      vectors: ``[M, E]`` of all captions, one after the other; None where they are texts.
      ends: int64 ``[C + 1]``, where in ``vectors`` each caption begins, and the last one ends.
    """

    address: str
    numbers: Mapping[str, Sequence[int]]
    texts: Sequence[str] | None = None
    vectors: np.ndarray | None = None
    ends: np.ndarray | None = None

    @property
    def width(self) -> int:
        """Returns the features of a vector; 0 for texts."""
        return 0 if self.vectors is None else self.vectors.shape[1]

    @property
    def longest(self) -> int:
        """Returns the most vectors of a caption; 0 for texts."""
        return 0 if self.ends is None else int(np.diff(self.ends).max())

    def __getitem__(self, number: int) -> Caption:
        if self.texts is not None:
            return self.texts[number]
        assert self.vectors is not None  # one of the two is there
        assert self.ends is not None
        return self.vectors[self.ends[number] : self.ends[number + 1]].astype(np.float32)

    @property
    def sha256(self) -> str:
        """Returns a sum over keys and captions."""
        digest = hashlib.sha256(repr([(key, list(found)) for key, found in self.numbers.items()]).encode())
        for part in (self.vectors, self.ends):
            digest.update(b"" if part is None else np.ascontiguousarray(part).tobytes())
        digest.update(repr(self.texts).encode())
        return digest.hexdigest()


def read_captions(address: str, *, vectors: bool) -> Captions:
    """Reads a column of captions.

    Args:
      address: ``FILE.parquet:COLUMN``, the file on any file system.
      vectors: whether they must be vectors, or else texts.

    Raises:
      UserError: no such file or column; a column of another kind; vectors of several widths, or that are not
        finite; no caption at all.
    """
    path, colon, column = address.rpartition(":")
    if not colon or not path or "/" in column:
        raise UserError(f"{address}: name the column, too: FILE.parquet:COLUMN")
    keys, values = _read_columns(path, column)
    return _vectors(address, keys, values) if vectors else _texts(address, keys, values)


def _read_columns(path: str, column: str) -> tuple[list[str], pa.Array]:
    """Returns the key of each row, and what the column holds."""
    try:
        filesystem, inner = filesystems.resolve(path)
        with filesystem.open_input_file(inner) as stream:
            file = pq.ParquetFile(stream)
            names = file.schema_arrow.names
            key = next((name for name in KEY_COLUMNS if name in names), None)
            if key is None or column not in names:
                missing = f"column {column}" if key else "column key"
                raise UserError(f"{path}: no {missing}; it has {', '.join(names)}")
            table = file.read([key, column])
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: cannot be read as Parquet ({first_line(error)}); give such a file"
        ) from error
    table = table.filter(pc.is_valid(table.column(key)))
    try:
        keys = table.column(key).cast(pa.string()).to_pylist()
    except pa.ArrowException as error:
        raise UserError(
            f"{path}: its column {key} is {table.schema.field(key).type} and no text ({first_line(error)}); "
            "give the keys of the tokens"
        ) from error
    return keys, _decoded(_whole(table.column(column)))


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _decoded(values: pa.Array) -> pa.Array:
    """Returns values by themselves where a column has them by number, as pandas' categories are written."""
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _texts(address: str, keys: list[str], values: pa.Array) -> Captions:
    owners = np.arange(len(values))
    if _is_list(values.type):
        owners = np.repeat(owners, np.diff(_ends(values)))
        values = _decoded(values.flatten())
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise UserError(
            f"{address}: this column is {values.type}; captions as texts are string or list<string>, and "
            "those as vectors are for --condition-embeddings"
        )
    found = [
        (owner, text) for owner, text in zip(owners, values.to_pylist(), strict=True) if (text or "").strip()
    ]
    texts = [text for _, text in found]
    return Captions(address, _by_key(address, keys, [int(owner) for owner, _ in found]), texts=texts)


def _vectors(address: str, keys: list[str], values: pa.Array) -> Captions:
    depth, inner = 0, values.type
    while _is_list(inner):
        depth, inner = depth + 1, inner.value_type
    if not pa.types.is_floating(inner) or not 1 <= depth <= 3:
        raise UserError(
            f"{address}: this column is {values.type}; captions as vectors are lists of lists of numbers, "
            "such as list<fixed_size_list<float>>, and those as texts are for --condition-text"
        )
    owners = np.arange(len(values))
    if depth == 3:
        owners, values = np.repeat(owners, np.diff(_ends(values))), values.flatten()
    # A caption of one vector each is a list of one, but where that is missing.
    ends = np.cumsum([0, *np.asarray(values.is_valid())]) if depth == 1 else _ends(values)
    rows = values.drop_null() if depth == 1 else values.flatten()
    flat = _matrix(address, rows)
    kept = np.flatnonzero(np.diff(ends))
    ends = np.concatenate([ends[:1], ends[kept + 1]])  # an empty caption takes no place
    return Captions(address, _by_key(address, keys, owners[kept].tolist()), vectors=flat, ends=ends)


def _matrix(address: str, rows: pa.Array) -> np.ndarray:
    """Returns lists of numbers of one length as an array ``[M, E]``."""
    widths = np.unique(np.diff(_ends(rows)))
    if len(widths) == 1 and not widths[0]:
        raise UserError(f"{address}: vectors of no numbers; encode the captions again")
    if len(widths) > 1:
        raise UserError(f"{address}: vectors of {widths[0]} and of {widths[-1]} numbers; all must be alike")
    flat = rows.flatten()
    if flat.null_count or not np.isfinite(flat.to_numpy(zero_copy_only=False)).all():
        raise UserError(f"{address}: vectors with numbers that are missing or not finite; encode them again")
    return flat.to_numpy(zero_copy_only=False).reshape(len(rows), widths[0] if len(widths) else 0)


def _by_key(address: str, keys: list[str], owners: Sequence[int]) -> dict[str, list[int]]:
    """Returns the numbers of each key's captions; ``owners`` is the row of each caption."""
    found: dict[str, list[int]] = {}
    for number, owner in enumerate(owners):
        found.setdefault(keys[owner], []).append(number)
    if not found:
        raise UserError(f"{address}: no caption in it")
    return found


def _ends(lists: pa.Array) -> np.ndarray:
    """Returns where each list ends in what ``flatten`` gives, with 0 before, int64 ``[N + 1]``."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def caption_numbers(captions: Captions, keys: Sequence[str]) -> Iterator[Sequence[int]]:
    """Yields the numbers of the captions of each key, none where it has none."""
    for key in keys:
        yield captions.numbers.get(key, ())
