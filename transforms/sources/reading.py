"""What sources share when they read: bounded reads, loaders that fail, and containers of many images."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from transforms.sources import names
from transforms.sources.base import Entry, Example, Loader, error_reason
from transforms.sources.locations import Found, Location, open_file

_BUFFER_BYTES = 1 << 16
MAX_ITEM_BYTES = 1 << 30
"""Largest image (or record) that is read. What claims to be larger is no image, and could exhaust memory."""


class DamagedFileError(ValueError):
    """A file that cannot be followed any further.

    Attributes:
      offset: byte at which the damage starts.
    """

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(offset, reason)
        self.offset = offset
        self.reason = reason

    def __str__(self) -> str:
        return f"damaged from byte {self.offset:,} on: {self.reason}"


def read_exact(file: pa.NativeFile, offset: int, size: int) -> bytes:
    """Returns ``size`` bytes from ``offset``: all of them, or an error. Safe from several threads.

    Raises:
      ValueError: the file ends before, or the size is beyond :data:`MAX_ITEM_BYTES`; nothing is
        allocated in either case.
    """
    check_size(size)
    if size < 0 or offset < 0 or offset + size > file.size():
        raise ValueError(f"cut off: {size:,} bytes at {offset:,} in a file of {file.size():,}")
    data: bytes = file.read_at(size, offset)
    if len(data) != size:
        raise ValueError(f"cut off: only {len(data):,} of {size:,} bytes at {offset:,}")
    return data


class Window:
    """Small forward reads from a large file, few of which reach the disk or the network."""

    def __init__(self, file: pa.NativeFile) -> None:
        self.size: int = file.size()
        self._file = file
        self._start = 0
        self._data = b""

    def read(self, offset: int, size: int) -> bytes:
        """Returns ``size`` bytes from ``offset``, fewer where the file ends."""
        size = max(0, min(size, self.size - offset))
        if offset < self._start or offset + size > self._start + len(self._data):
            wanted = min(max(size, _BUFFER_BYTES), self.size - offset)
            self._start, self._data = offset, read_exact(self._file, offset, wanted) if wanted > 0 else b""
        return self._data[offset - self._start : offset - self._start + size]

    def reaches(self, offset: int) -> bool:
        """Tells whether the file has at least ``offset`` bytes."""
        return offset <= self.size


def check_size(size: int) -> None:
    """Refuses what is too large to be one image. Raises ValueError."""
    if size > MAX_ITEM_BYTES:
        raise ValueError(f"{size:,} bytes are more than the {MAX_ITEM_BYTES:,} that one image may have")


def to_label(value: object) -> int | None:
    """Returns a class number as the shards hold it: an integer of 32 bits, or None.

    Raises:
      ValueError: it is something else.
    """
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**31) <= value < 2**31:
        raise ValueError(f"the label {value!r:.80} is no integer of 32 bits")
    return value


def failing(error: Exception) -> Loader:
    """Returns a loader that raises ``error``."""
    return functools.partial(_fail, error)


def _fail(error: Exception) -> Example:
    # Without the traceback of an earlier raise: an error that many loaders share would grow.
    raise error.with_traceback(None)


def by_file(entries: Sequence[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    """Yields groups neighbouring entries of the same file."""
    for file, group in itertools.groupby(entries, key=lambda entry: entry.file):
        yield file, list(group)


def container_files(location: Location, kind: str) -> Iterator[Found]:
    """Lists the files of an input of one kind, without those that only describe others and were not named.

    What describes others is told by name, and Parquet files beside containers of another kind and the same
    name are such too: img2dataset writes them.
    """
    found = list(location.walk())
    stems = {_stem(file) for file in found if names.container_kind(file.name) == kind}
    for file in found:
        is_named = file.parts in location.names
        if is_named or not (names.is_sidecar(file.parts) or _describes(file, kind, stems)):
            yield file


def _stem(found: Found) -> tuple[str, ...]:
    return (*found.parts[:-1], names.container_stem(found.name))


def _describes(found: Found, kind: str, stems: set[tuple[str, ...]]) -> bool:
    named = names.container_kind(found.name)
    return named == "parquet" and kind in ("tar", "tfrecord") and _stem(found) in stems


def _stray(found: Found, kind: str) -> str | None:
    """Returns why a file beside containers of one kind is none of them, as far as its name tells."""
    named = names.sure_kind(found.name)
    if named not in (None, kind):
        return f"a container ({named}) among {kind} files; give it as an input of its own"
    plain = names.uncompressed_name(found.name)
    is_other = named is None and (names.is_image(plain) or names.unread(plain))
    return f"no {kind} file, but beside some; give it as an input of its own" if is_other else None


def list_containers(
    location: Location, kind: str, list_one: Callable[[pa.NativeFile, Found], Iterator[Entry]]
) -> Iterator[Entry]:
    """Yields the entries of every file of one kind in turn.

    Where ``list_one`` raises :class:`DamagedFileError` or OSError, one entry with an error stands for the
    remainder of that file, and the next file follows.
    """
    for found in container_files(location, kind):
        if found.error:
            yield Entry(found.key or ".", found.file, error=found.error)
            continue
        stray = None if found.parts in location.names else _stray(found, kind)
        if stray:
            yield damaged(found, 0, stray)
            continue
        try:
            with open_file(location, found.file) as file:
                yield from list_one(file, found)
        except DamagedFileError as error:
            yield damaged(found, error.offset, _damage(found, kind, error))
        except OSError as error:
            yield damaged(found, 0, f"cannot be read ({error_reason(error)})")


def _damage(found: Found, kind: str, error: DamagedFileError) -> str:
    """Returns what to say of a damaged file; one without a container's name may never have been one."""
    if error.offset == 0 and names.container_kind(found.name) is None:
        return f"no {kind} file, or damaged ({error.reason})"
    return str(error)


def damaged(found: Found, offset: int, message: str) -> Entry:
    """Returns the entry that stands for all that is lost of a file."""
    return Entry(f"{found.key}/#damaged-at-{offset}", found.file, offset, error=message)


def read_containers(
    location: Location,
    entries: Sequence[Entry],
    read_one: Callable[[pa.NativeFile, Sequence[Entry]], Iterator[Loader]],
) -> Iterator[Loader]:
    """Yields the loaders of the entries, file by file.

    A file is closed when the last loader that refers to it is gone: until then any of them may run.
    """
    for file, group in by_file(entries):
        try:
            opened = open_file(location, file)
        except OSError as error:
            yield from [failing(error)] * len(group)
            continue
        yield from _read_all(read_one(opened, group), len(group))


def _read_all(loaders: Iterator[Loader], count: int) -> Iterator[Loader]:
    """Yields ``count`` loaders, the last of which fail where the file turns out to be damaged."""
    given = 0
    try:
        for loader in loaders:
            given += 1
            yield loader
    except DamagedFileError as error:
        yield from [failing(error)] * (count - given)
