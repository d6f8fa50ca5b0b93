"""Local paths and ``gs://``, ``s3://``, ``hdfs://`` behind one interface, through pyarrow.

A path here is a plain local path, or a URI with a scheme; a :class:`~pathlib.Path` is a local file whatever
its name. What writes is in :mod:`vqgan.publishing`.
"""

import functools
import os
import re
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from vqgan.errors import UserError, first_line

SCHEMES = ("file", "gs", "gcs", "s3", "hdfs", "viewfs", "abfs", "abfss", "hf")
"""Of the URIs that pyarrow opens."""

_SCHEME = re.compile(r"(?i:file:(?=/[^/]))|(?:[A-Za-z][\w+.-]*)(?=://)")

_STORES = ("gs", "gcs", "s3", "hdfs", "viewfs", "abfs", "abfss")
_PLAIN = re.compile(r"(?:[\w.~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})+", re.ASCII)
"""A URI of a store that is told apart without a parser; any other goes to pyarrow's, which may refuse it."""


def resolve(path: str | Path) -> tuple[fs.FileSystem, str]:
    """Returns the file system and the path inside it.

    Raises:
      UserError: a scheme that pyarrow does not know, or whose library is missing.
    """
    if isinstance(path, Path):
        return fs.LocalFileSystem(), os.path.abspath(path)
    if "://" not in path:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    check_scheme(path)
    path = plain_uri(path)
    try:
        return _in_store(path) if _is_in_store(path) else fs.FileSystem.from_uri(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot open this location ({first_line(error)})") from error


def _is_in_store(uri: str) -> bool:
    return uri.partition("://")[0] in _STORES and _PLAIN.fullmatch(uri) is not None


def _in_store(uri: str) -> tuple[fs.FileSystem, str]:
    """Returns the client of a store, one for all that lies in a bucket, and the path inside it."""
    address, mark, query = uri.partition("?")
    scheme, _, rest = address.partition("://")
    root, _, inner = rest.partition("/")
    filesystem, base = _connect(os.getpid(), f"{scheme}://{root}/{mark}{query}")
    inner = urllib.parse.unquote(inner).rstrip("/")
    return filesystem, f"{base.rstrip('/')}/{inner}" if inner else base


@functools.lru_cache(maxsize=64)
def _connect(process: int, uri: str) -> tuple[fs.FileSystem, str]:
    """Makes a client: once in a ``process``, since its threads and connections are not those of a fork."""
    if uri.startswith("s3://") and "allow_delayed_open=" not in uri:  # no multipart uploads of small files,
        uri += ("&" if "?" in uri else "?") + "allow_delayed_open=true"  # which killed writers would leave
    return fs.FileSystem.from_uri(uri)


def plain_uri(path: str) -> str:
    """Returns a URI with its scheme in lower case, and ``file:/a`` as ``file:///a``; a path as it is."""
    match = _SCHEME.match(path)
    if match is None:
        return path
    scheme, rest = match[0].lower(), path[match.end() :]
    return f"file://{rest}" if scheme == "file:" else scheme + rest


def check_scheme(path: str) -> None:
    """Checks that something opens URIs of this scheme; plain paths pass.

    Raises:
      UserError: nothing does.
    """
    scheme, mark, _ = plain_uri(path).partition("://")
    if mark and scheme not in SCHEMES and not scheme.startswith("fsspec+"):
        raise UserError(
            f"{path:.200}: cannot open this location: {scheme:.40}:// is not supported; "
            "local paths, gs://, s3:// and hdfs:// are"
        )


def join(root: str, name: str) -> str:
    """Returns ``root/name`` of local paths and URIs alike; a URI's query (``?region=…``) stays at its end."""
    if "://" not in root:
        return os.path.join(root, name)
    base, mark, query = root.partition("?")
    return f"{base.rstrip('/')}/{name}{mark}{query}"


def file_info(path: str) -> fs.FileInfo:
    """Returns type and size of what lies at ``path``.

    Raises:
      UserError: the location cannot be reached.
    """
    filesystem, inner = resolve(path)
    try:
        return filesystem.get_file_info(inner)
    except OSError as error:
        raise UserError(f"{path}: cannot be reached ({first_line(error)})") from error


def exists(path: str) -> bool:
    """Returns whether a file or folder lies at ``path``."""
    return file_info(path).type != fs.FileType.NotFound


def list_names(folder: str) -> list[str]:
    """Lists the files (not folders) directly in ``folder``, sorted; empty if it is not there.

    Raises:
      UserError: it cannot be listed.
    """
    return sorted(file_sizes(folder))


def file_sizes(root: str, folders: Iterable[str] = ("",)) -> dict[str, int]:
    """Returns sizes in bytes of the files directly in some folders, from one listing of each.

    Args:
      root: folder or URI.
      folders: below it, ``""`` for itself; one that is not there has no files.

    Returns:
      The sizes by path below ``root``, such as ``data/a.parquet``.

    Raises:
      UserError: one cannot be listed.
    """
    sizes: dict[str, int] = {}
    for folder in sorted(set(folders)):
        prefix = f"{folder}/" if folder else ""
        infos = _list(join(root, folder) if folder else root)
        sizes |= {prefix + info.base_name: info.size for info in infos if info.is_file}
    return sizes


def parents(names: Iterable[str]) -> set[str]:
    """Returns the folders that relative paths lie in, ``""`` for those in none."""
    return {name.rpartition("/")[0] for name in names}


def sizes_of(folder: str, names: Sequence[str]) -> list[int | None]:
    """Returns sizes in bytes of some files in ``folder`` or below it, None for one that is not there.

    Raises:
      UserError: the location cannot be reached.
    """
    if not names:
        return []
    resolved = [resolve(join(folder, name)) for name in names]
    try:
        infos = resolved[0][0].get_file_info([inner for _, inner in resolved])
    except OSError as error:
        raise UserError(f"{folder}: cannot be reached ({first_line(error)})") from error
    return [info.size if info.is_file else None for info in infos]


def list_entries(folder: str) -> list[str]:
    """Lists files and folders directly in ``folder`` but hidden ones, sorted; empty if it is not there.

    Raises:
      UserError: it cannot be listed.
    """
    return sorted(info.base_name for info in _list(folder) if not info.base_name.startswith("."))


def _list(folder: str) -> list[fs.FileInfo]:
    filesystem, inner = resolve(folder)
    try:
        return select_infos(filesystem, fs.FileSelector(inner, allow_not_found=True))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({first_line(error)}); give a folder") from error


def select_infos(filesystem: fs.FileSystem, selector: fs.FileSelector) -> list[fs.FileInfo]:
    """Returns what a selector finds. Raises OSError."""
    try:
        found: list[fs.FileInfo] = filesystem.get_file_info(selector)
    except FileNotFoundError:  # pyarrow's, of a folder that was made just while it found it missing
        found = filesystem.get_file_info(selector)
    return found


def read_bytes(path: str) -> bytes:
    """Reads the whole file. Raises OSError like ``open``."""
    filesystem, inner = resolve(path)
    with filesystem.open_input_stream(inner) as stream:
        return stream.read()
