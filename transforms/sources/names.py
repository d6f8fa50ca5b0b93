"""What names and first bytes of files tell: images, containers, what is not read; compression."""

import bz2
import gzip
import io
import lzma
import re
import zlib
from typing import Any, BinaryIO, cast

import pyarrow as pa

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "jp2", "avif")
"""Extensions of images; where several belong to one sample, the first in this order is the image."""

RARE_EXTENSIONS = (
    *("jfif", "jpe", "mpo", "apng", "avifs", "pgm", "pnm", "pbm", "pfm", "tga", "icb", "vda", "vst"),
    *(
        "j2k",
        "j2c",
        "jpc",
        "jpf",
        "jpx",
        "dib",
        "ico",
        "cur",
        "icns",
        "psd",
        "qoi",
        "dds",
        "blp",
        "pcx",
        "dcx",
    ),
    *(
        "sgi",
        "rgb",
        "rgba",
        "bw",
        "ras",
        "msp",
        "fli",
        "flc",
        "ftc",
        "ftu",
        "gbr",
        "xbm",
        "xpm",
        "pxr",
        "pcd",
    ),
    *("im", "heic", "heif", "hif", "jxl"),
)
"""The decoder's other extensions, and those of images that it refuses by name."""

CONTAINERS = ("tar", "parquet", "arrow", "zip", "tfrecord", "array_record")
"""Kinds of files that hold many images each."""

_IMAGE_NAMES = frozenset({*IMAGE_EXTENSIONS, *RARE_EXTENSIONS})
_CONTAINER_NAMES = {
    "tar": re.compile(r"\.(tar|tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE),
    "parquet": re.compile(r"\.(parquet|parq|pq)$", re.IGNORECASE),
    "arrow": re.compile(r"\.(arrow|arrows|feather|ipc)$", re.IGNORECASE),
    "zip": re.compile(r"\.zip$", re.IGNORECASE),
    "array_record": re.compile(r"\.(array_record|arecord)\b", re.IGNORECASE),
    "tfrecord": re.compile(r"\.tfrecords?\b|-\d{5,}-of-\d{5,}$", re.IGNORECASE),
}
_LIST_NAME = re.compile(r"\.(csv|tsv|tab|txt|lst|jsonl|ndjson)$", re.IGNORECASE)
_COMPRESSION_NAME = re.compile(r"\.(gz|gzip|bz2|xz|zst|zstd)$", re.IGNORECASE)
_SIDECAR_NAME = re.compile(
    r"\.(json|jsonl|txt|md|rst|ya?ml|csv|tsv|html?|idx|index|crc)$"
    r"|^(_SUCCESS|_metadata|_common_metadata|_committed_.*|_started_.*|(eh)?thumbs\.db|desktop\.ini)$",
    re.IGNORECASE,
)
_SIDECAR_FOLDERS = frozenset({"_temporary", "_delta_log", "_spark_metadata", "__MACOSX", "__pycache__"})

_VIDEO, _DOCUMENT = "a video", "one JSON document"
BESIDE_IMAGES = frozenset({_VIDEO, _DOCUMENT})
"""What lies among images without making their folder one of something else."""

_CONVERT = "write the images as files, tar or Parquet"
_UNPACK = "unpack it and give the folder"
_UNREAD_NAMES = {
    **dict.fromkeys(("npz", "npy"), ("a file of NumPy arrays", _CONVERT)),
    **dict.fromkeys(("h5", "hdf5", "mat", "nc", "zarr"), ("a file of scientific arrays", _CONVERT)),
    **dict.fromkeys(
        ("7z", "rar", "cab", "iso", "lz4", "br", "lzma", "z", "cbz", "cbr"), ("an archive", _UNPACK)
    ),
    **dict.fromkeys(("mdb", "lmdb", "sqlite", "sqlite3", "db", "duckdb"), ("a database", _CONVERT)),
    **dict.fromkeys(("pkl", "pickle", "pt", "pth", "joblib", "msgpack"), ("serialised data", _CONVERT)),
    **dict.fromkeys(("beton", "mds", "rec", "recordio", "lance"), ("of one loader alone", _CONVERT)),
    **dict.fromkeys(("avro", "orc"), ("a table", "write it as Parquet")),
    **dict.fromkeys(("xlsx", "xls", "ods"), ("a spreadsheet", "save it as CSV in UTF-8")),
    **dict.fromkeys(
        ("mp4", "mov", "m4v", "webm", "mkv", "avi", "mpg", "mpeg", "wmv", "flv"),
        (_VIDEO, "write its frames as images"),
    ),
    **dict.fromkeys(("json",), (_DOCUMENT, "write a line for each image and name it .jsonl, or write CSV")),
}
_UNREAD_HEADS = {
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    b"Rar!\x1a\x07": ("a RAR archive", _UNPACK),
    b"\x04\x22\x4d\x18": ("an LZ4 file", "decompress it"),
    b"\x93NUMPY": ("a NumPy array", _CONVERT),
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file", _CONVERT),
    b"SQLite format 3\0": ("an SQLite database", _CONVERT),
    b"FEA1": ("a Feather file of version 1", "write it as Arrow or Parquet"),
    b"\x1a\x45\xdf\xa3": (_VIDEO, "write its frames as images"),
    b"Obj\x01": ("an Avro file", "write it as Parquet"),
    b"ORC": ("an ORC file", "write it as Parquet"),
}

_LMDB = b"\xde\xc0\xef\xbe"  # where its first page has its magic number


def extension(name: str) -> str:
    """Returns what follows the last dot of a file name, in lower case; empty where there is none."""
    _, dot, ending = name.rpartition(".")
    return ending.lower() if dot else ""


def is_image(name: str) -> bool:
    """Tells whether a file name has an extension of images."""
    return extension(name) in _IMAGE_NAMES


def is_array(name: str) -> bool:
    """Tells whether a file name is one of a NumPy array, an image for some codecs."""
    return extension(name) == "npy"


def is_list_name(name: str) -> bool:
    """Tells whether a file name is one of a list, compressed or not."""
    return _LIST_NAME.search(uncompressed_name(name)) is not None


def uncompressed_name(name: str) -> str:
    """Returns the name without ``.gz`` and the like."""
    return _COMPRESSION_NAME.sub("", name)


def is_sidecar(parts: tuple[str, ...]) -> bool:
    """Tells whether a file beside containers only describes them, or is what Spark, Delta or macOS leave.

    Args:
      parts: folders and name below the root.
    """
    return not parts or (
        _SIDECAR_NAME.search(parts[-1]) is not None or not _SIDECAR_FOLDERS.isdisjoint(parts[:-1])
    )


def container_kind(name: str) -> str | None:
    """Returns the kind of container that a file name stands for; None if it is none."""
    for kind, pattern in _CONTAINER_NAMES.items():
        if pattern.search(name):
            return kind
    return None


def sure_kind(name: str) -> str | None:
    """Gives the :func:`container_kind`, but for ``-00000-of-00001`` alone: all that is cut up is named so."""
    kind = container_kind(name)
    return None if kind == "tfrecord" and ".tfrecord" not in name.lower() else kind


def container_stem(name: str) -> str:
    """Returns the name of a container without its extension."""
    kind = container_kind(name)
    return _CONTAINER_NAMES[kind].sub("", name) if kind else name


def unread(name: str) -> tuple[str, str] | None:
    """Returns what a file is that no source reads, and what to do with it; None if the name tells nothing."""
    if container_kind(name):
        return None
    if name != uncompressed_name(name) and not is_list_name(name):
        return "a compressed file", "decompress it"
    return _UNREAD_NAMES.get(extension(name))


def no_image(name: str) -> str | None:
    """Returns why a file in a folder of images is none, where its name says that it is a container."""
    kind = sure_kind(name)
    if kind:
        return f"a container ({kind}), not an image; give it as an input of its own"
    what = unread(name)
    if what and extension(name) != "json":
        return f"{what[0]}, not an image; {what[1]}"
    return None


def kind_of_head(head: bytes) -> str | None:
    """Returns the kind of container that the first 512 bytes of a file stand for; None if they tell nothing.

    ``compressed`` stands for anything in gzip, bzip2, xz or zstd.
    """
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1\0\0", b"\xff\xff\xff\xff")):
        return "arrow"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head[257:262] == b"ustar":
        return "tar"
    return "compressed" if compression(head) else None


def unread_head(head: bytes) -> tuple[str, str] | None:
    """Does what :func:`unread` does, by the first bytes."""
    if head[16:20] == _LMDB:
        return _UNREAD_NAMES["lmdb"]
    return next((what for magic, what in _UNREAD_HEADS.items() if head.startswith(magic)), None)


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
