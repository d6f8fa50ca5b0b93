"""What sources share when they read: bounded reads, loaders that fail, and containers of many images."""

import errno
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from pyarrow import fs

from transforms.sources import names
from transforms.sources.base import Entry, Example, Loader, error_reason
from transforms.sources.locations import Found, Location, open_file
from vqgan.errors import UserError
from vqgan.faults import GoneError, raise_machine_fault

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


def failing(error: Exception, cause: Exception | None = None) -> Loader:
    """Returns a loader that raises ``error``, perhaps from another."""
    if cause is not None:
        error.__cause__ = cause.with_traceback(None)
    return functools.partial(_fail, error)


def _fail(error: Exception) -> Example:
    # Without the traceback of an earlier raise: an error that many loaders share would grow.
    raise error.with_traceback(None)


class ChangedError(UserError):
    """A file is not as it was when the input was listed."""


def seen(entry: Entry, found: Found) -> Entry:
    """Returns an entry with size and time of the file that it was found in."""
    return entry._replace(file_size=found.size, modified=found.modified)


def open_planned(location: Location, entry: Entry) -> pa.NativeFile:
    """Opens the file of an entry for random access, if it is as it was when the input was listed.

    Raises:
      ChangedError: its size is another, or, on a local disk, its time.
      GoneError: it is not there any more.
    """
    filesystem, path = location.filesystem, location.path(entry.file)
    return opened_as_planned(entry, filesystem, path, lambda path: open_file(location, entry.file))


def opened_as_planned(
    entry: Entry, filesystem: fs.FileSystem, path: str | bytes, opener: Callable[[str | bytes], pa.NativeFile]
) -> pa.NativeFile:
    """Does as :func:`open_planned` for a file that ``opener`` opens."""
    try:
        file = opener(path)
    except FileNotFoundError as error:
        if entry.file_size < 0:
            raise  # nobody has ever seen it
        raise GoneError(errno.ENOENT, "it was there when the input was listed") from error
    local = isinstance(filesystem, fs.LocalFileSystem) and entry.modified is not None
    changes = change(entry, file.size(), os.stat(path).st_mtime_ns if local else None)
    if changes:
        raise ChangedError(f"{entry.file}: has changed since the input was listed ({changes}); {RESTORE}")
    return file


RESTORE = "restore it, or choose another output"


def change(entry: Entry, size: int, modified: int | None) -> str | None:
    """Returns what differs between the file of an entry and what is there now; None if nothing does."""
    if entry.file_size >= 0 and size != entry.file_size:
        return f"{entry.file_size:,} bytes, now {size:,}"
    if None not in (entry.modified, modified) and modified != entry.modified:
        return f"its time was {_time(entry.modified)}, now {_time(modified)}"
    return None


def _time(nanoseconds: int | None) -> str:
    return str(np.datetime64(nanoseconds or 0, "ns")) + "Z"


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
    what = "an image" if names.is_image(plain) else (names.unread(plain) or ("",))[0]
    is_other = named is None and what
    return f"no {kind} file, but {what}; give it as an input of its own" if is_other else None


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
                yield from (seen(entry, found) for entry in list_one(file, found))
        except DamagedFileError as error:
            raise_machine_fault(error, f"{location.text}: {found.key!r} cannot be read")
            yield damaged(found, error.offset, _damage(found, kind, error))
        except OSError as error:
            raise_machine_fault(error, f"{location.text}: {found.key!r} cannot be read")
            yield damaged(found, 0, f"cannot be read ({error_reason(error)})")


def _damage(found: Found, kind: str, error: DamagedFileError) -> str:
    """Returns what to say of a damaged file; one without a container's name may never have been one."""
    if error.offset == 0 and names.container_kind(found.name) is None:
        return f"no {kind} file, or damaged ({error.reason})"
    return str(error)


def damaged(found: Found, offset: int, message: str) -> Entry:
    """Returns the entry that stands for all that is lost of a file."""
    return seen(Entry(f"{found.key}/#damaged-at-{offset}", found.file, offset, error=message), found)


def read_containers(
    location: Location,
    entries: Sequence[Entry],
    read_one: Callable[[pa.NativeFile, Sequence[Entry]], Iterator[Loader]],
) -> Iterator[Loader]:
    """Yields the loaders of the entries, file by file.

    A file is closed when the last loader that refers to it is gone: until then any of them may run.
    """
    for _, group in by_file(entries):
        try:
            opened = open_planned(location, group[0])
        except (OSError, ChangedError) as error:
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
