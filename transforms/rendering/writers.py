"""Where the pictures of a slice go: one writer for each form of output.

A writer names a picture, takes it in a thread as soon as it is encoded (``place``), and once more in the
caller's thread in the order of the rows (``append``). Files are placed, archives are appended to.
"""

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, Protocol

from transforms.rendering.forms import ImageForm
from transforms.rendering.index import IndexRow
from transforms.rendering.layout import IMAGES_FOLDER, archive_name
from transforms.rendering.names import file_name, member_name
from vqgan import filesystems


class Picture(NamedTuple):
    """An encoded picture and its row of the index."""

    row: IndexRow
    data: bytes


class Writer(Protocol):
    """Takes the pictures of one slice.

    Attributes:
      archive: what the index's footer says of the file that holds them all, once the writer is closed.
    """

    archive: Mapping[str, Any] | None

    def name(self, key: str, view: int) -> str:
        """What the index calls the picture's file."""

    def place(self, picture: Picture) -> None:
        """Takes a picture, in any order and from any thread."""

    def append(self, picture: Picture) -> None:
        """Takes the same picture, in order."""


class FilesWriter:
    """A file each, below ``images/``."""

    archive: Mapping[str, Any] | None = None

    def __init__(self, output: str, extension: str):
        self._output, self._extension = output, extension
        self._folders: set[str] = set()

    def name(self, key: str, view: int) -> str:
        return f"{IMAGES_FOLDER}/{file_name(key, view, self._extension)}"

    def place(self, picture: Picture) -> None:
        folder = picture.row.file.rpartition("/")[0]
        if folder not in self._folders:
            filesystems.make_folder(filesystems.join(self._output, folder))
            self._folders.add(folder)
        filesystems.write_bytes(filesystems.join(self._output, picture.row.file), picture.data)

    def append(self, picture: Picture) -> None:
        """Nothing more is to be done."""


class ParquetWriter:
    """In the index itself, which takes the bytes with the row."""

    archive: Mapping[str, Any] | None = None

    def __init__(self, extension: str):
        self._extension = extension

    def name(self, key: str, view: int) -> str:
        return file_name(key, view, self._extension)

    def place(self, picture: Picture) -> None:
        """Nothing is to be done before its turn."""

    def append(self, picture: Picture) -> None:
        """Nothing more is to be done."""


class TarWriter:
    """A tar for WebDataset: each picture with ``.json``, and ``.cls`` where it has a class."""

    archive: Mapping[str, Any] | None = None

    def __init__(self, tar: tarfile.TarFile, extension: str):
        self._tar, self._extension = tar, extension

    def name(self, key: str, view: int) -> str:
        return f"{member_name(key, view)}.{self._extension}"

    def place(self, picture: Picture) -> None:
        """Nothing is to be done before its turn."""

    def append(self, picture: Picture) -> None:
        row = picture.row
        base = row.file.removesuffix(f".{self._extension}")
        described = {"key": row.key, "view": row.view, "label": row.label, "sha256": row.sha256}
        self._add(row.file, picture.data)
        if row.label is not None:
            self._add(f"{base}.cls", str(row.label).encode())
        self._add(f"{base}.json", json.dumps(described).encode())

    def _add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)  # without time and owner, so that the same pictures give the same tar
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))


@contextlib.contextmanager
def open_writer(output: str, form: ImageForm, number: int, slices: int) -> Iterator[Writer]:
    """The writer of a slice; what it writes is in place when the block has ended well."""
    if form.container == "files":
        yield FilesWriter(output, form.extension)
    elif form.container == "parquet":
        yield ParquetWriter(form.extension)
    else:
        with _open_tar(output, form.extension, archive_name(number, slices)) as writer:
            yield writer


@contextlib.contextmanager
def _open_tar(output: str, extension: str, name: str) -> Iterator[TarWriter]:
    with filesystems.publish(filesystems.join(output, name)) as stream:
        hashing: Any = _Hashing(stream)
        with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            writer = TarWriter(tar, extension)
            yield writer
    writer.archive = {"name": name, "bytes": hashing.size, "sha256": hashing.digest.hexdigest()}


class _Hashing:
    """A stream that counts and hashes what is written to it."""

    def __init__(self, stream: BinaryIO):
        self.size = 0
        self.digest = hashlib.sha256()
        self._stream = stream

    def write(self, data: bytes) -> int:
        self._stream.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)
