"""Images in zip archives, one to a member."""

import dataclasses
import functools
import zipfile
from collections.abc import Iterator, Sequence
from typing import IO, cast

import pyarrow as pa

from transforms.sources import names
from transforms.sources.base import Entry, Example, Loader, error_reason
from transforms.sources.locations import Found, LocatedSource, to_key
from transforms.sources.names import DECOMPRESSION_ERRORS
from transforms.sources.reading import DamagedFileError, check_size, list_containers, read_containers

_ENCRYPTED = 0x1
_EMPTY_BYTES = 22  # of an archive that is nothing but its end
_ERRORS = (*DECOMPRESSION_ERRORS, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError)
"""What ``zipfile`` raises on damaged archives, methods that it lacks, and encryption."""


@dataclasses.dataclass(frozen=True)
class ZipSource(LocatedSource):
    """Every member of one or many zip archives that is neither hidden nor a folder; one image each.

    The key is ``<archive below the root>/<name of the member>``. Nothing is unpacked to disk, and no member
    is read beyond the size that the archive's directory states. Checksums are verified.
    """

    shuffles = False
    options = frozenset[str]()

    def fields(self) -> list[pa.Field]:
        """Gives no further columns: members have none."""
        return []

    def class_names(self) -> None:
        """Gives None: members have no classes."""

    def list(self) -> Iterator[Entry]:
        """Returns an entry for each member, its ``offset`` being its number in the archive's directory."""
        return list_containers(self.location, "zip", _list_one)

    def read(self, entries: Sequence[Entry]) -> Iterator[Loader]:
        """Returns a loader for each entry, in any order."""
        return read_containers(self.location, entries, _read_one)


def _list_one(file: pa.NativeFile, found: Found) -> Iterator[Entry]:
    for number, info in enumerate(_open(file).infolist()):
        parts = info.filename.removeprefix("./").split("/")
        is_hidden = "__MACOSX" in parts or any(part.startswith(".") for part in parts)
        if not info.is_dir() and not is_hidden:
            key = f"{found.key}/{to_key(info.filename)}"
            yield Entry(key, found.file, number, info.file_size, error=_problem(info))


def _problem(info: zipfile.ZipInfo) -> str | None:
    """Returns why a member cannot be an image, where the directory tells."""
    if info.flag_bits & _ENCRYPTED:
        return "the member is encrypted; unpack the archive and give the folder"
    return names.no_image(info.filename)


def _read_one(file: pa.NativeFile, entries: Sequence[Entry]) -> Iterator[Loader]:
    archive = _open(file)
    members = archive.infolist()
    for entry in entries:
        yield functools.partial(_load, archive, members, entry)


def _load(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], entry: Entry) -> Example:
    if entry.offset >= len(members) or members[entry.offset].file_size != entry.size:
        raise ValueError("the archive has changed since it was listed")
    check_size(entry.size)
    try:
        with archive.open(members[entry.offset]) as member:
            data = member.read(entry.size)
            member.read(1)  # verifies the checksum, at the end
    except _ERRORS as error:
        raise ValueError(f"the member cannot be read ({error_reason(error)})") from error
    if len(data) != entry.size:
        raise ValueError(f"cut off: only {len(data):,} of {entry.size:,} bytes")
    return Example(data, None, {})


def _open(file: pa.NativeFile) -> zipfile.ZipFile:
    if file.size() <= _EMPTY_BYTES:
        raise DamagedFileError(0, "no whole zip archive, or one without members")
    try:
        return zipfile.ZipFile(cast(IO[bytes], file))
    except _ERRORS as error:
        raise DamagedFileError(0, f"no whole zip archive ({error_reason(error)})") from error
