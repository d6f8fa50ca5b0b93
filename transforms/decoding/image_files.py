"""The images of a slice as files: their names, one writer for each form of output, and reading them back.

A writer names an image, takes it in a thread as soon as it is encoded (``place``), and once more in the
caller's thread in the order of the rows (``append``). Files are placed, archives are appended to.

A key that is a plain relative path of lower-case ASCII (``dogs/001.jpg``) stands for itself. Any other key
is made harmless and gets a hash of the true key after a ``~``, which no plain key contains:
``../../etc/passwd`` becomes ``_/_/etc/passwd~`` and 16 more characters. The hash keeps apart what a file
system may take for the same name (``A.jpg`` and ``a.jpg``, or two spellings of one accented letter), so
names differ from each other in any of them. The index of a slice tells which key a file belongs to.
"""

import base64
import contextlib
import hashlib
import io
import json
import re
import tarfile
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, Protocol

from transforms.decoding.image_format import ImageFormat
from transforms.decoding.index import IMAGES_FOLDER, IndexRow, archive_name, open_index
from vqgan import filesystems, publishing
from vqgan.errors import UserError, first_line


class EncodedImage(NamedTuple):
    """An encoded image and its row of the index."""

    row: IndexRow
    data: bytes


class Writer(Protocol):
    """Takes the images of one slice.

    Attributes:
      archive: what the index's footer says of the file that holds them all, once the writer is closed.
    """

    archive: Mapping[str, Any] | None

    def name(self, key: str, view: int) -> str:
        """Returns what the index calls the image's file."""

    def place(self, image: EncodedImage) -> None:
        """Takes an image, in any order and from any thread."""

    def append(self, image: EncodedImage) -> None:
        """Takes the same image, in order."""


class FilesWriter:
    """A file each, below ``images/``."""

    archive: Mapping[str, Any] | None = None

    def __init__(self, output: str, extension: str):
        self._output, self._extension = output, extension
        self._folders: set[str] = set()

    def name(self, key: str, view: int) -> str:
        return f"{IMAGES_FOLDER}/{file_name(key, view, self._extension)}"

    def place(self, image: EncodedImage) -> None:
        folder = image.row.file.rpartition("/")[0]
        if folder not in self._folders:
            publishing.make_folder(filesystems.join(self._output, folder))
            self._folders.add(folder)
        path = filesystems.join(self._output, image.row.file)
        publishing.write_bytes(path, image.data, one_of_many=True)

    def append(self, image: EncodedImage) -> None:
        """Does nothing more."""

    def close(self) -> None:
        """Forces the names of all files to disk. Raises OSError."""
        for folder in self._folders:
            publishing.sync_folder(filesystems.join(self._output, folder))


class ParquetWriter:
    """In the index itself, which takes the bytes with the row."""

    archive: Mapping[str, Any] | None = None

    def __init__(self, extension: str):
        self._extension = extension

    def name(self, key: str, view: int) -> str:
        return file_name(key, view, self._extension)

    def place(self, image: EncodedImage) -> None:
        """Does nothing before its turn."""

    def append(self, image: EncodedImage) -> None:
        """Does nothing more."""


class TarWriter:
    """A tar for WebDataset: each image with ``.json``, and ``.cls`` where it has a class."""

    archive: Mapping[str, Any] | None = None

    def __init__(self, tar: tarfile.TarFile, extension: str):
        self._tar, self._extension = tar, extension

    def name(self, key: str, view: int) -> str:
        return f"{member_name(key, view)}.{self._extension}"

    def place(self, image: EncodedImage) -> None:
        """Does nothing before its turn."""

    def append(self, image: EncodedImage) -> None:
        row = image.row
        base = row.file.removesuffix(f".{self._extension}")
        described = {"key": row.key, "view": row.view, "label": row.label, "sha256": row.sha256}
        self._add(row.file, image.data)
        if row.label is not None:
            self._add(f"{base}.cls", str(row.label).encode())
        self._add(f"{base}.json", json.dumps(described).encode())

    def _add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)  # without time and owner, so that the same images give the same tar
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))


@contextlib.contextmanager
def open_writer(output: str, form: ImageFormat, number: int, slices: int) -> Iterator[Writer]:
    """Returns the writer of a slice; what it writes is in place when the block has ended well."""
    if form.container == "files":
        files = FilesWriter(output, form.extension)
        yield files
        files.close()
    elif form.container == "parquet":
        yield ParquetWriter(form.extension)
    else:
        with _open_tar(output, form.extension, archive_name(number, slices)) as writer:
            yield writer


@contextlib.contextmanager
def _open_tar(output: str, extension: str, name: str) -> Iterator[TarWriter]:
    with publishing.publish(filesystems.join(output, name)) as stream:
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


def stored_images(output: str, name: str) -> Iterator[tuple[IndexRow, bytes]]:
    """Yields rows of an index in order, each with the bytes of its image.

    Args:
      output: folder of the data set.
      name: of the index in it.

    Raises:
      UserError: the index or the tar is damaged, or an image is not there.
    """
    with open_index(output, name) as index:
        rows = index.read()
        if index.metadata.archive is not None:
            yield from _of_tar(output, index.metadata.archive, (row for row, _ in rows))
        elif index.metadata.container == "files":
            yield from ((row, _of_file(output, row)) for row, _ in rows)
        else:
            yield from ((row, data or b"") for row, data in rows)


def _of_file(output: str, row: IndexRow) -> bytes:
    try:
        return filesystems.read_bytes(filesystems.join(output, row.file))
    except OSError as error:
        raise UserError(f"{row.file}: cannot be read ({first_line(error)})") from error


def _of_tar(
    output: str, archive: Mapping[str, Any], rows: Iterator[IndexRow]
) -> Iterator[tuple[IndexRow, bytes]]:
    """Reads members in their order, which is that of the rows; nothing is unpacked to a disk."""
    name = archive["name"]
    try:
        filesystem, inner = filesystems.resolve(filesystems.join(output, name))
        with (
            filesystem.open_input_stream(inner) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            members = iter(tar)  # one for all rows: every new one begins at the first member
            for row in rows:
                member = next((member for member in members if member.name == row.file), None)
                file = None if member is None else tar.extractfile(member)
                if file is None:
                    raise UserError(f"{name}: has no member {row.file}")
                yield row, file.read()
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UserError(f"{name}: cannot be read ({first_line(error)})") from error


MOST_BYTES = 200
"""Longest name of a plain key; a temporary file's name adds 38 bytes, and 255 are allowed."""
HASH_BYTES = 10
_PLAIN = re.compile(r"[a-z0-9_](?:[a-z0-9_.,=@# -]*[a-z0-9_,=@#-])?")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:[. ].*)?", re.IGNORECASE)  # on Windows
# A folder of such a name could be in the way of a file of another key.
_LIKE_A_FILE = re.compile(r"(.*)\.(png|webp|jpg|jsonl?|cls)")
_DOT_IN_MEMBER = "+"  # in no plain key either
_SPECIAL = re.compile(r"__.*__")  # WebDataset leaves out what lies in a folder of such a name


def file_name(key: str, view: int, extension: str) -> str:
    """Returns the relative path of the image of a row, with ``/`` between folders.

    Args:
      key: of the row; any text.
      view: of the row; other than 0 it is told by ``~v2``.
      extension: of the image, such as ``png``.

    Returns:
      A path that never leaves its folder and in no part starts with a dot or a dash. Paths differ for
      rows that differ, also to a file system that ignores case or normalises Unicode, and none is a
      folder of another.
    """
    return f"{_stem(key, view)}.{extension}"


def member_name(key: str, view: int) -> str:
    """Returns the :func:`file_name` without extension, for a member of a WebDataset tar.

    Its readers group members by what stands before the first dot of a file's name, so dots are written
    as ``+``: the image of ``dogs/001.jpg`` is ``dogs/001+jpg.png``.
    """
    folder, slash, name = _stem(key, view).rpartition("/")
    return f"{folder}{slash}{name.replace('.', _DOT_IN_MEMBER)}"


def _stem(key: str, view: int) -> str:
    stem = key if _is_plain(key) else f"{_readable(key)}~{_hash(key)}"
    return stem if view == 0 else f"{stem}~v{view}"


def _is_plain(key: str) -> bool:
    parts = key.split("/")
    return (
        len(key) <= MOST_BYTES
        and all(_PLAIN.fullmatch(part) and not _RESERVED.fullmatch(part) for part in parts)
        and not any(_LIKE_A_FILE.fullmatch(part) or _SPECIAL.fullmatch(part) for part in parts[:-1])
    )


def _hash(key: str) -> str:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()
    return base64.b32encode(digest).decode().lower()


def _readable(key: str) -> str:
    """Returns what a reader may recognise a key by; different keys may give the same."""
    parts = [_harmless(part) for part in unicodedata.normalize("NFC", key).split("/") if part]
    *folders, name = parts or ["_"]
    folder = "/".join(_ordinary_folder(_cut(part, 60)) for part in folders)
    if len(folder.encode()) > 100:
        folder = ""  # the hash alone tells them apart
    return f"{folder}/{_cut(name, 80)}" if folder else _cut(name, 80)


def _harmless(part: str) -> str:
    kept = "".join(char if char.isalnum() or char in "_-.,=@# " else "_" for char in part)
    kept = re.sub(r"^[. -]+|[. ]+$", "_", kept)
    return f"_{kept}" if _RESERVED.fullmatch(kept) else kept


def _ordinary_folder(name: str) -> str:
    """Returns a name that is neither like a file's nor left out by readers.

    It is compared case-folded, since a file system may do so as well: ``a.PNG`` may be ``a.png``.
    """
    if _LIKE_A_FILE.fullmatch(name.casefold()):
        name = name.replace(".", "_")
    return name.rstrip("_") + "_" if _SPECIAL.fullmatch(name) else name


def _cut(text: str, most: int) -> str:
    """Returns the first bytes of ``text`` that make whole characters, without a dot or space at the end."""
    cut = text.encode()[:most].decode(errors="ignore")
    return re.sub(r"[. ]+$", "_", cut)
