"""Streams of gzip, bzip2, xz and zstd files, told by their first bytes."""

import bz2
import gzip
import io
import lzma
import zlib
from typing import Any, BinaryIO, cast

import pyarrow as pa

_MAGICS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LONGEST_MAGIC = max(map(len, _MAGICS))

DECOMPRESSION_ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError)
"""What reading a damaged compressed file raises."""


def compression(head: bytes) -> str | None:
    """Returns the name of the compression that the first bytes of a file show; None without any."""
    return next((name for magic, name in _MAGICS.items() if head.startswith(magic)), None)


def decompressing(file: pa.NativeFile) -> BinaryIO | None:
    """Returns the contents of a compressed file, from their start; None if it is not compressed.

    Reading raises one of :data:`DECOMPRESSION_ERRORS` where the file is damaged. ``file`` stays open when the
    stream is closed or gone, so that another can be had.
    """
    name = compression(file.read_at(min(_LONGEST_MAGIC, file.size()), 0))
    file.seek(0)
    if name == "gzip":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if name == "bz2":
        return cast(BinaryIO, bz2.BZ2File(file))
    if name == "xz":
        return cast(BinaryIO, lzma.LZMAFile(file))
    return cast(BinaryIO, pa.CompressedInputStream(_Borrowed(file), "zstd")) if name else None


class _Borrowed(io.RawIOBase):
    """A file that Arrow's stream may close without closing the one beneath."""

    def __init__(self, file: pa.NativeFile) -> None:
        super().__init__()
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        data: bytes = self._file.read(len(view))
        view[: len(data)] = data
        return len(data)
