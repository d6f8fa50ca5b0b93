"""Reads torch checkpoints, zip and legacy, without torch; and pickles of NumPy arrays.

The zip format (torch 1.6 and later) holds one pickle of the structure and one uncompressed member per
storage. A TorchScript archive is one as well: its modules become dictionaries of their attributes, and
the program beside them is not looked at. The legacy format is a row of pickles (magic number, protocol,
system, structure, storage keys) with the raw storages behind. Tensors are read from the file one by one
when asked for, so the peak of memory is what the caller keeps.
"""

import io
import lzma
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vqgan.errors import UserError
from vqgan.folders import check_expansion
from vqgan.importers.pickle_constructors import CONSTRUCTORS, Storage, storage_dtype
from vqgan.importers.pickle_objects import PickleError
from vqgan.importers.safe_pickle import load_pickle
from vqgan.importers.tensors import DamagedError, shown

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
_MAX_STRUCTURE = 64 << 20  # bytes of the pickle that holds the structure of a zip checkpoint
_MAX_KEY = 256  # characters
_CHUNK = 1 << 20
# What the library raises for a damaged archive. Nothing but its own calls stands under it.
_ZIP_DAMAGE = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, NotImplementedError,
    RuntimeError, EOFError, ValueError, TypeError, LookupError, OverflowError, AttributeError, lzma.LZMAError,
)  # fmt: skip


def read_torch_zip(path: Path) -> Any:
    """Reads the structure of a zip checkpoint, its tensors as :class:`~vqgan.importers.tensors.Tensor`.

    Raises:
      UserError: damaged, compressed beyond reason, or with a pickle that names code.
    """
    return _guarded(path, lambda: _ZipFile(path).structure())


def read_torch_legacy(path: Path) -> Any:
    """Reads the structure of a checkpoint in the format before torch 1.6.

    Raises:
      UserError: damaged, or with a pickle that names code.
    """
    return _guarded(path, lambda: _legacy_structure(path))


def read_plain_pickle(path: Path) -> Any:
    """Reads a pickle of dictionaries of NumPy arrays.

    Raises:
      UserError: damaged, or it names code.
    """

    def read() -> Any:
        with path.open("rb") as file:
            return load_pickle(file, CONSTRUCTORS)

    return _guarded(path, read)


def is_torch_zip(path: Path) -> bool:
    """Tells whether it is a zip archive with torch's structure pickle in it."""
    try:
        return any(name.split("/")[-1] == "data.pkl" for name in _members(path))
    except PickleError:
        return False


def is_torch_legacy(path: Path) -> bool:
    """Tells whether its first pickle is the legacy format's magic number."""
    try:
        with path.open("rb") as file:
            return file.read(1) == b"\x80" and file.seek(0) == 0 and load_pickle(file, {}) == LEGACY_MAGIC
    except (PickleError, UserError, OSError):
        return False


def _guarded(path: Path, read: Any) -> Any:
    """Runs a reader; what it says of the file, or the system of it, becomes one line for the user."""
    try:
        return read()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except DamagedError as error:
        what = " ".join(str(error).split())
        raise UserError(f"{path}: the checkpoint is damaged ({what}); download or copy it again") from error


def _members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """Returns the directory of an archive by name."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {info.filename: info for info in archive.infolist()}
    except _ZIP_DAMAGE as error:
        raise PickleError(str(error)) from error


def _whole_member(path: Path, info: zipfile.ZipInfo) -> bytes:
    """Returns the bytes of a small or compressed member."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(info)
    except _ZIP_DAMAGE as error:
        raise PickleError(str(error)) from error


class _ZipFile:
    """A zip checkpoint; every member is checked against the sum in the archive before its first use."""

    def __init__(self, path: Path):
        self._path = path
        self._size = path.stat().st_size
        self._verified: set[str] = set()
        self._members = _members(path)
        structures = [name for name in self._members if name.split("/")[-1] == "data.pkl"]
        if len(structures) != 1:
            raise PickleError(f"it holds {len(structures)} structure pickles")
        self._root = structures[0].removesuffix("data.pkl")
        info = self._members[structures[0]]
        if info.file_size > _MAX_STRUCTURE:
            raise PickleError(f"its structure claims {info.file_size:,} bytes")
        check_expansion(sum(member.file_size for member in self._members.values()), self._size)
        self._pickle = _whole_member(path, info)
        self._order = self._byte_order()

    def structure(self) -> Any:
        return load_pickle(io.BytesIO(self._pickle), CONSTRUCTORS, self._storage)

    def _byte_order(self) -> str:
        name = f"{self._root}byteorder"
        if name not in self._members or self._members[name].file_size > 16:
            return "<"
        return ">" if _whole_member(self._path, self._members[name]) == b"big" else "<"

    def _storage(self, persistent_id: Any) -> Storage:
        kind, key, count = _storage_id(persistent_id)
        dtype = storage_dtype(kind)
        name = f"{self._root}data/{key}"
        if name not in self._members:
            raise PickleError(f"the storage {name} is missing")
        info = self._members[name]
        if info.file_size != count * dtype.itemsize:
            raise PickleError(
                f"the storage {name} has {info.file_size} bytes, expected {count * dtype.itemsize}"
            )
        order = self._order

        def read(first: int, size: int) -> np.ndarray:
            data = self._read(info, first, size)
            if order == "<":
                return data
            if size % dtype.itemsize:
                raise UserError(f"{self._path}: big-endian numbers under another type; save it again")
            return data.view(dtype).byteswap().view(np.uint8)

        return Storage(dtype, count, read)

    def _read(self, info: zipfile.ZipInfo, first: int, size: int) -> np.ndarray:
        """Reads ``size`` bytes of a member, uint8; guarded, since it runs long after the file was opened."""
        return _guarded(self._path, lambda: self._read_member(info, first, size))

    def _read_member(self, info: zipfile.ZipInfo, first: int, size: int) -> np.ndarray:
        if info.compress_type != zipfile.ZIP_STORED:
            return np.frombuffer(_whole_member(self._path, info), np.uint8)[first : first + size]
        with self._path.open("rb") as file:
            start = self._data_start(file, info)
            if start + info.file_size > self._size:
                raise PickleError(f"it ends within {info.filename}")
            if (first, size) == (0, info.file_size):  # a tensor of its own, as most are: read once
                file.seek(start)
                data = _read_exactly(file, size)
                if info.filename not in self._verified:
                    self._check(info, zlib.crc32(data.data))
                return data
            self._verify(file, info, start)
            file.seek(start + first)
            return _read_exactly(file, size)

    def _data_start(self, file: BinaryIO, info: zipfile.ZipInfo) -> int:
        """Finds where a stored member's bytes begin: behind its local header (zip specification, 4.3.7)."""
        if not 0 <= info.header_offset <= self._size:
            raise PickleError(f"{info.filename} lies outside of it")
        file.seek(info.header_offset)
        header = file.read(30)
        if len(header) != 30 or header[:4] != b"PK\x03\x04":
            raise PickleError(f"{info.filename} has no header")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        return info.header_offset + 30 + name_length + extra_length

    def _verify(self, file: BinaryIO, info: zipfile.ZipInfo, start: int) -> None:
        if info.filename in self._verified:
            return
        file.seek(start)
        left, found = info.file_size, 0
        while left:
            chunk = file.read(min(_CHUNK, left))
            if not chunk:
                raise PickleError(f"it ends within {info.filename}")
            found = zlib.crc32(chunk, found)
            left -= len(chunk)
        self._check(info, found)

    def _check(self, info: zipfile.ZipInfo, found: int) -> None:
        # Writers that are told not to compute sums leave zero.
        if info.CRC not in (0, found):
            raise PickleError(f"the check sum of {info.filename} is wrong")
        self._verified.add(info.filename)


def _storage_id(persistent_id: Any) -> tuple[Any, str, int]:
    """Takes class, key and number of elements from ``("storage", class, key, device, count, ...)``."""
    if not isinstance(persistent_id, tuple) or len(persistent_id) < 5 or persistent_id[0] != "storage":
        raise PickleError("a reference that is no storage")
    _, kind, key, _, count = persistent_id[:5]
    if type(count) is not int or not 0 <= count < 1 << 48:
        raise PickleError(f"a storage of {shown(count)} numbers")
    if not isinstance(key, (str, int)) or len(str(key)) > _MAX_KEY:
        raise PickleError("a storage without a key")
    return kind, str(key), count


def _read_exactly(file: BinaryIO, size: int) -> np.ndarray:
    data = np.fromfile(file, np.uint8, size)
    if len(data) != size:
        raise PickleError(f"it ends {size - len(data)} bytes early")
    return data


def _legacy_structure(path: Path) -> Any:
    starts: dict[str, int] = {}  # filled in after the structure was read
    counts: dict[str, tuple[int, int]] = {}

    def storage(persistent_id: Any) -> Storage:
        kind, key, count = _storage_id(persistent_id)
        dtype = storage_dtype(kind)
        if counts.setdefault(key, (count, dtype.itemsize)) != (count, dtype.itemsize):
            raise PickleError(f"the storage {key} has two sizes")

        def read(first: int, size: int) -> np.ndarray:
            return _guarded(path, lambda: _read_at(path, starts[key] + first, size))

        return _view(Storage(dtype, count, read), persistent_id)

    with path.open("rb") as file:
        if load_pickle(file, {}) != LEGACY_MAGIC or load_pickle(file, {}) != LEGACY_PROTOCOL:
            raise PickleError("its magic number or protocol is unknown")
        system = load_pickle(file, CONSTRUCTORS)
        if isinstance(system, dict) and system.get("little_endian") is False:
            raise UserError("written on a big-endian machine; save it again with a current torch")
        structure = load_pickle(file, CONSTRUCTORS, storage)
        keys = load_pickle(file, {})
        _locate(file, keys, counts, starts)
    return structure


def _view(storage: Storage, persistent_id: tuple[Any, ...]) -> Storage:
    """Takes the part of a storage that an old file's view metadata ``(key, offset, size)`` names."""
    view = persistent_id[5] if len(persistent_id) > 5 else None
    if view is None:
        return storage
    if not isinstance(view, tuple) or len(view) != 3:
        raise PickleError("a view of a storage without offset and size")
    _, offset, size = view
    if type(offset) is not int or type(size) is not int or not 0 <= offset <= offset + size <= storage.size:
        raise PickleError("a view reaches beyond its storage")
    skipped = offset * storage.dtype.itemsize
    return Storage(storage.dtype, size, lambda first, count: storage.read(skipped + first, count))


def _locate(file: BinaryIO, keys: Any, counts: dict[str, tuple[int, int]], starts: dict[str, int]) -> None:
    """Finds the raw storages behind the pickles: each has its number of elements before it."""
    if not isinstance(keys, list):
        raise PickleError("its list of storages is missing")
    end = file.seek(0, 1)
    size = file.seek(0, 2)
    for key in keys:
        if not isinstance(key, (str, int)):
            raise PickleError("a storage without a key")
    for key in map(str, keys):
        file.seek(end)
        header = file.read(8)
        if len(header) != 8 or key not in counts:
            raise PickleError(f"the storage {key} is missing")
        count, itemsize = counts[key]
        if struct.unpack("<q", header)[0] != count:
            raise PickleError(f"the storage {key} has another size than its tensors expect")
        starts[key] = end + 8
        end += 8 + count * itemsize
        if end > size:
            raise PickleError(f"it ends {end - size} bytes early")
    if counts.keys() - starts.keys():
        raise PickleError("a storage is missing")


def _read_at(path: Path, start: int, size: int) -> np.ndarray:
    with path.open("rb") as file:
        file.seek(start)
        return _read_exactly(file, size)
