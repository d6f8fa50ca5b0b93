"""The entries of a source as one compact table, and the slices that it is cut into.

A corpus may have many millions of entries: the table holds each text once, the slices are an order and
bounds, and the rows of one slice are gathered when they are asked for.
"""

import contextlib
import dataclasses
import gc
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.sources.base import Entry
from vqgan.errors import UserError

ORDER_SALT = b"vqgan-order-1"  # changing it reorders every folder: a new format version
CHUNK = 1 << 16
PASSED = "passed_"
"""How the names of columns begin that listing took from the source for the shards."""

ENTRY_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("members", pa.string()),
        pa.field("error", pa.string()),
        pa.field("file_size", pa.int64(), nullable=False),
        pa.field("modified", pa.int64()),
    ]
)


def collect(entries: Iterable[Entry], fields: Sequence[pa.Field] = ()) -> pa.Table:
    """Returns all entries as a table with the columns of :data:`ENTRY_SCHEMA`, whose texts may pass 2 GiB.

    Args:
      entries: of a source.
      fields: of the further columns that were asked for; where listing has found their values, they follow
        under names that begin with :data:`PASSED`.
    """
    columns = _Columns(fields)
    chunk: list[Entry] = []
    with _without_collector():
        for entry in entries:
            chunk.append(entry)
            if len(chunk) == CHUNK:
                columns.add(chunk)
                chunk = []
        columns.add(chunk)
    return columns.combined()


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Keeps Python from looking for circles among entries, which have none: a third of a listing's time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Columns:
    """Chunks of each column of a table that grows."""

    def __init__(self, fields: Sequence[pa.Field]) -> None:
        self._passed = [field.with_name(PASSED + field.name).with_nullable(True) for field in fields]
        self._names = [field.name for field in fields]
        self._chunks: list[list[pa.Array]] = [[] for _ in (*ENTRY_SCHEMA, *fields)]
        self._has_passed = False
        self._files_are_keys = True

    def add(self, entries: list[Entry]) -> None:
        """Adds a chunk of rows."""
        *columns, passed = zip(*entries, strict=True) if entries else [()] * (len(ENTRY_SCHEMA) + 1)
        arrays = [
            pa.array(column, _wide(field.type)) for column, field in zip(columns, ENTRY_SCHEMA, strict=True)
        ]
        self._files_are_keys = self._files_are_keys and columns[0] == columns[1]
        self._has_passed = self._has_passed or any(passed)
        for name, field in zip(self._names, self._passed, strict=True):
            arrays.append(pa.array([(row or {}).get(name) for row in passed], field.type))
        for chunks, array in zip(self._chunks, arrays, strict=True):
            chunks.append(array)

    def combined(self) -> pa.Table:
        """Returns the whole; the chunks are gone then, and a path that is a key is held once."""
        fields = [*(field.with_type(_wide(field.type)) for field in ENTRY_SCHEMA), *self._passed]
        arrays: list[pa.Array] = []
        for number, chunks in enumerate(self._chunks):
            is_key = number == 1 and self._files_are_keys
            arrays.append(arrays[0] if is_key else pa.concat_arrays(chunks))
            chunks.clear()
        count = len(fields) if self._has_passed else len(ENTRY_SCHEMA)
        return pa.Table.from_arrays(arrays[:count], schema=pa.schema(fields[:count]))


def _wide(kind: pa.DataType) -> pa.DataType:
    """Returns the type that holds texts of any number of bytes in all."""
    return pa.large_string() if kind == pa.string() else kind


def stored_schema(table: pa.Table) -> pa.Schema:
    """Returns the columns of a table of entries as a plan stores them."""
    return pa.schema([*ENTRY_SCHEMA, *list(table.schema)[len(ENTRY_SCHEMA) :]])


def entries_of(table: pa.Table) -> list[Entry]:
    """Returns the rows of a table of entries, with the columns that listing took from the source."""
    own = [table.column(name).to_pylist() for name in ENTRY_SCHEMA.names]
    names = [name for name in table.schema.names if name.startswith(PASSED)]
    if not names:
        return [Entry(*row) for row in zip(*own, strict=True)]
    passed = zip(*(table.column(name).to_pylist() for name in names), strict=True)
    plain = [name.removeprefix(PASSED) for name in names]
    values = (dict(zip(plain, row, strict=True)) for row in passed)
    return [Entry(*row) for row in zip(*own, values, strict=True)]


def check_keys(table: pa.Table, kind: str | None = None) -> None:
    """Refuses duplicate keys.

    Args:
      table: entries.
      kind: of the source, on which it depends what to do about them.

    Raises:
      UserError: names the first few keys that occur more than once.
    """
    if pc.count_distinct(table.column("key")).as_py() == table.num_rows:
        return
    counts = pc.value_counts(table.column("key"))
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    names = ", ".join(repr(key) for key in sorted(repeated.slice(0, 3).to_pylist()))
    raise UserError(
        f"input: {len(repeated)} keys occur more than once, such as {names}; "
        + _advice(table.filter(pc.is_in(table.column("key"), repeated)), kind)
    )


def _advice(repeated: pa.Table, kind: str | None) -> str:
    """Returns what to do about entries whose keys are not unique."""
    if kind not in ("tar", "zip"):
        return "name a unique column with --key-column or remove the duplicates"
    if kind == "tar" and repeated.column("error").null_count < repeated.num_rows:
        return (
            "members of one sample must be neighbours in the archive: write it as tar --sort=name does, "
            "or give --whole-names if it is names with dots that look alike"
        )
    again = "the archive has members of one name twice (one was appended?): write it anew"
    return again if kind == "zip" else f"{again}, or give --whole-names if names only agree up to a dot"


@dataclasses.dataclass(frozen=True, eq=False)
class Slices:
    """Entries, ordered and cut; a slice is a table, made when it is asked for.

    Attributes:
      entries: as the source lists them.
      order: row numbers in the order of the slices; None for that of the entries.
      bounds: ``[slices + 1]`` where slices begin, and the number of all entries.
    """

    entries: pa.Table
    order: np.ndarray | None
    bounds: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """How many entries each slice has, ``[slices]``."""
        return np.diff(self.bounds)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, number: int) -> pa.Table:
        start, end = self.bounds[number : number + 2].tolist() if 0 <= number < len(self) else (0, -1)
        if end < start:
            raise IndexError(number)
        if self.order is None:
            return self.entries.slice(start, end - start)
        return self.entries.take(pa.array(self.order[start:end]))

    def __iter__(self) -> Iterator[pa.Table]:
        return map(self.__getitem__, range(len(self)))


def cut(table: pa.Table, slice_size: int, shuffles: bool) -> Slices:
    """Orders and cuts the entries into slices of at most ``slice_size``.

    Single examples are ordered by a salted hash of their key: shards come out shuffled, and the
    order in which a file system lists does not matter. Containers keep their order, and a slice
    never spans two files.
    """
    starts = [0, table.num_rows] if shuffles else _file_starts(table)
    runs = (_even_starts(start, end, slice_size) for start, end in itertools.pairwise(starts))
    bounds = np.array([*itertools.chain.from_iterable(runs), table.num_rows], np.int64)
    return Slices(table, _shuffled(table.column("key")) if shuffles else None, bounds)


def _shuffled(keys: pa.ChunkedArray) -> np.ndarray:
    """Returns the order by the salted hash of a key; keys of one hash follow one another by themselves."""
    hashes = _order_hashes(keys)
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    if (ordered[1:] == ordered[:-1]).any():  # the order of listing must not show
        by_key = pc.sort_indices(keys).to_numpy()
        order = by_key[np.argsort(hashes[by_key], kind="stable")]
    return order


def _order_hashes(keys: pa.ChunkedArray) -> np.ndarray:
    hashes = np.empty(len(keys), np.uint64)
    for start in range(0, len(keys), CHUNK):  # no list of all keys at once
        found = (
            hashlib.blake2b(key.encode(), digest_size=8, key=ORDER_SALT).digest()
            for key in keys.slice(start, CHUNK).to_pylist()
        )
        hashes[start : start + CHUNK] = np.frombuffer(b"".join(found), dtype=">u8")
    return hashes


def _file_starts(table: pa.Table) -> list[int]:
    """Returns where runs of entries begin that lie in the same file, and the end of the last."""
    if not table.num_rows:
        return [0]
    codes = table.column("file").combine_chunks().dictionary_encode().indices.to_numpy()
    return [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]


def _even_starts(start: int, end: int, slice_size: int) -> list[int]:
    """Cuts as few parts of at most ``slice_size`` rows as possible, as even as possible."""
    rows = end - start
    parts = -(-rows // slice_size)
    return [start + rows * index // parts for index in range(parts)]
