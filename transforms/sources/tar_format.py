"""The headers of tar archives, read one after the other without ever skipping damage.

Python's ``tarfile`` takes a damaged header in the middle for the end of the archive, and reads names
and attributes of any length into memory. Here it only decodes single headers of 512 bytes.
"""

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, Protocol

import pyarrow as pa

from transforms.sources.base import error_reason
from transforms.sources.names import DECOMPRESSION_ERRORS, decompressing
from transforms.sources.reading import DamagedFileError, Window, check_size

BLOCK = 512
_CHUNK_BYTES = 1 << 20
_MAX_ATTRIBUTE_BYTES = 1 << 20
_NO_DATA_TYPES = frozenset(
    (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
)
_LONG_NAME, _PAX = tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE
_ATTRIBUTE_TYPES = (_LONG_NAME, tarfile.GNUTYPE_LONGLINK, _PAX, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


class Member(NamedTuple):
    """One member of an archive.

    Attributes:
      name: path in the archive; bytes that are not UTF-8 as lone surrogates.
      header: byte offset of its first header.
      data: byte offset of its contents.
      size: bytes of its contents.
      is_folder: whether it is a folder, which has no contents.
      problem: why its contents cannot be taken, where they cannot.
    """

    name: str
    header: int
    data: int
    size: int
    is_folder: bool
    problem: str | None


class Bytes(Protocol):
    """An archive's bytes, asked for in ascending order, and none of them twice."""

    def read(self, offset: int, size: int) -> bytes:
        """Returns ``size`` bytes from ``offset``, fewer where the archive ends."""
        ...

    def reaches(self, offset: int) -> bool:
        """Tells whether the archive has at least ``offset`` bytes."""
        ...


class Stream:
    """A compressed archive, read forward in memory that does not depend on its size.

    Attributes:
      position: offset in the decompressed archive.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.position = 0
        self._stream = stream
        self._error: DamagedFileError | None = None

    def read(self, offset: int, size: int) -> bytes:
        """Reads as :meth:`Bytes.read` does. Raises DamagedFileError where decompression fails."""
        if not self.reaches(offset):
            return b""
        chunks = []
        while size > 0 and (chunk := self._next(size)):
            chunks.append(chunk)
            size -= len(chunk)
        return b"".join(chunks)

    def read_exact(self, offset: int, size: int) -> bytes:
        """Returns all of these bytes.

        Raises ValueError where there are fewer, or more than an image may have.
        """
        check_size(size)
        data = self.read(offset, size)
        if len(data) != size:
            raise ValueError(f"cut off: only {len(data):,} of {size:,} bytes at {offset:,}")
        return data

    def reaches(self, offset: int) -> bool:
        """Tells what :meth:`Bytes.reaches` does, by moving there."""
        while self.position < offset and self._next(offset - self.position):
            pass
        return self.position >= offset

    def _next(self, size: int) -> bytes:
        if self._error:
            raise self._error
        try:
            chunk = self._stream.read(min(size, _CHUNK_BYTES))
        except DECOMPRESSION_ERRORS as error:
            self._error = DamagedFileError(self.position, f"cannot be decompressed ({error_reason(error)})")
            raise self._error from error
        self.position += len(chunk)
        return chunk


def decompressed(file: pa.NativeFile) -> Stream | None:
    """Returns the archive inside a compressed file, from its start; None if the file is not compressed."""
    stream = decompressing(file)
    return Stream(stream) if stream else None


def open_archive(file: pa.NativeFile) -> Bytes:
    """Returns the bytes of an archive, compressed or not."""
    return decompressed(file) or Window(file)


def members(archive: Bytes) -> Iterator[Member]:
    """Yields every member in turn, from the headers alone; archives that were concatenated are all read.

    Raises:
      DamagedFileError: a header is damaged, contents are cut off, or the mark at the end is missing; the
        members before have been yielded.
    """
    position, ended = 0, False
    while header := archive.read(position, BLOCK):
        if header.count(0) == len(header):
            position, ended = position + len(header), True
            continue
        member, position = _next_member(archive, header, position)
        ended = False
        yield member
    if not ended:
        raise DamagedFileError(position, "the mark at the end of the archive is missing, so it is cut off")


def _next_member(archive: Bytes, header: bytes, start: int) -> tuple[Member, int]:
    """Returns the member whose first header, at ``start``, was read, and where the next begins."""
    attributes: dict[str, str] = {}
    position = start
    while True:
        info = _parse(header, position)
        data = position + BLOCK
        if info.type not in _ATTRIBUTE_TYPES:
            return _member(archive, info, attributes, start, data)
        attributes |= _attributes(archive, info, data)
        position = data + _padded(info.size)
        header = archive.read(position, BLOCK)


def _parse(header: bytes, position: int) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise DamagedFileError(position, f"no tar header ({error_reason(error)})") from error
    if info.size < 0:
        raise DamagedFileError(position, f"a member of {info.size} bytes")
    return info


def _member(
    archive: Bytes, info: tarfile.TarInfo, attributes: dict[str, str], start: int, data: int
) -> tuple[Member, int]:
    name = attributes.get("path", info.name)
    try:
        size = 0 if info.type in _NO_DATA_TYPES else int(attributes.get("size", info.size))
    except ValueError as error:
        raise DamagedFileError(start, f"a member of {attributes['size']!r:.40} bytes") from error
    if size < 0 or not archive.reaches(data + size):
        raise DamagedFileError(start, f"{name!r:.200} of {size:,} bytes is cut off")
    member = Member(name, start, data, size, info.isdir(), _problem(info, attributes))
    return member, data + _padded(size)


def _problem(info: tarfile.TarInfo, attributes: dict[str, str]) -> str | None:
    if info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        return "a link, not a file"
    if info.type == tarfile.GNUTYPE_SPARSE or any(name.startswith("GNU.sparse.") for name in attributes):
        return "a sparse file, which is not supported"
    return None if info.isreg() or info.isdir() else "neither a file nor a folder"


def _attributes(archive: Bytes, info: tarfile.TarInfo, data: int) -> dict[str, str]:
    """Returns what an extension header says about the next member."""
    if info.size > _MAX_ATTRIBUTE_BYTES:
        raise DamagedFileError(data - BLOCK, f"attributes of {info.size:,} bytes")
    raw = archive.read(data, info.size)
    if len(raw) != info.size:
        raise DamagedFileError(data - BLOCK, "the file ends within a member's attributes")
    if info.type == _LONG_NAME:
        return {"path": raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")}
    return _pax_records(raw, data) if info.type in (_PAX, tarfile.SOLARIS_XHDTYPE) else {}


def _pax_records(raw: bytes, data: int) -> dict[str, str]:
    r"""Reads records of the form ``"<length> <name>=<value>\n"``, the length counting all of it."""
    records = {}
    while raw := raw.lstrip(b"\0"):
        digits, _, _ = raw.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 9 else 0
        name, equals, value = raw[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or length > len(raw) or raw[length - 1 : length] != b"\n":
            raise DamagedFileError(data - BLOCK, "attributes that cannot be read")
        records[name.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        raw = raw[length:]
    return records


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
