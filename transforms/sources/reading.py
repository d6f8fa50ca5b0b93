"""What the sources share when they read: bounded reads, and loaders that fail."""

import functools
import itertools
from collections.abc import Iterator, Sequence

import pyarrow as pa

from transforms.sources.base import Entry, Example, Loader

_BUFFER_BYTES = 1 << 16
MAX_ITEM_BYTES = 1 << 30
"""Largest image (or record) that is read. What claims to be larger is no image, and could exhaust memory."""


class DamagedError(ValueError):
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
    """``size`` bytes from ``offset``: all of them, or an error. Safe from several threads.

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
        """``size`` bytes from ``offset``, fewer where the file ends."""
        size = max(0, min(size, self.size - offset))
        if offset < self._start or offset + size > self._start + len(self._data):
            wanted = min(max(size, _BUFFER_BYTES), self.size - offset)
            self._start, self._data = offset, read_exact(self._file, offset, wanted) if wanted > 0 else b""
        return self._data[offset - self._start : offset - self._start + size]

    def reaches(self, offset: int) -> bool:
        """Whether the file has at least ``offset`` bytes."""
        return offset <= self.size


def check_size(size: int) -> None:
    """Refuses what is too large to be one image. Raises ValueError."""
    if size > MAX_ITEM_BYTES:
        raise ValueError(f"{size:,} bytes are more than the {MAX_ITEM_BYTES:,} that one image may have")


def to_label(value: object) -> int | None:
    """A class number as the shards hold it: an integer of 32 bits, or None.

    Raises:
      ValueError: it is something else.
    """
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**31) <= value < 2**31:
        raise ValueError(f"the label {value!r:.80} is no integer of 32 bits")
    return value


def failing(error: Exception) -> Loader:
    """A loader that raises ``error``."""
    return functools.partial(_fail, error)


def _fail(error: Exception) -> Example:
    # Without the traceback of an earlier raise: an error that many loaders share would grow.
    raise error.with_traceback(None)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    reason = error.strerror if isinstance(error, OSError) else None
    return reason or (str(error) or type(error).__name__).splitlines()[0]


def by_file(entries: Sequence[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    """Neighbouring entries of the same file, together."""
    for file, group in itertools.groupby(entries, key=lambda entry: entry.file):
        yield file, list(group)
