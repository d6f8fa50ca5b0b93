"""Local paths and ``gs://``, ``s3://``, ``hdfs://`` behind one interface, through pyarrow.

A path here is a plain local path, or a URI with a scheme; a :class:`~pathlib.Path` is a local file whatever
its name. Files are published by writing a hidden temporary file beside the final name and renaming it, so a
reader finds a file whole or not at all.

On a local disk the contents are synced before the rename, and the folder after it: what was published before
something else is there after a power cut, too, if that is. A store keeps an object once it is written.
"""

import errno
import functools
import math
import os
import re
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from pyarrow import fs

from vqgan.errors import UserError, first_line
from vqgan.faults import MachineError, has_come, is_machine_fault

SCHEMES = ("file", "gs", "gcs", "s3", "hdfs", "viewfs", "abfs", "abfss", "hf")
"""Of the URIs that pyarrow opens."""

_SCHEME = re.compile(r"(?i:file:(?=/[^/]))|(?:[A-Za-z][\w+.-]*)(?=://)")

_STORES = ("gs", "gcs", "s3", "hdfs", "viewfs", "abfs", "abfss")
_PLAIN = re.compile(r"(?:[\w.~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})+", re.ASCII)
"""A URI of a store that is told apart without a parser; any other goes to pyarrow's, which may refuse it."""
FREE_SPACE = "free space or check permissions"
"""What to do about a failed write, where nothing more is known."""
_UNSYNCED = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES, errno.EPERM)
"""How a system answers that cannot sync a folder, or not one that may be written to but not read."""


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
        return _infos(filesystem, fs.FileSelector(inner, allow_not_found=True))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({first_line(error)}); give a folder") from error


def _infos(filesystem: fs.FileSystem, selector: fs.FileSelector) -> list[fs.FileInfo]:
    try:
        found: list[fs.FileInfo] = filesystem.get_file_info(selector)
    except FileNotFoundError:  # pyarrow's, of a folder that was made just while it found it missing
        found = filesystem.get_file_info(selector)
    return found


def make_folder(path: str) -> None:
    """Creates a folder and its parents, which are on the disk when this returns.

    Raises:
      UserError: it cannot be created.
    """
    filesystem, inner = resolve(path)
    try:
        new = _missing_folders(filesystem, inner)
        filesystem.create_dir(inner, recursive=True)
        for folder in new:
            _sync_folder(filesystem, os.path.dirname(folder))
    except OSError as error:
        raise output_error(path, error) from error


def _missing_folders(filesystem: fs.FileSystem, inner: str) -> list[str]:
    """Returns the local folders on the way to one that are not there, the innermost first."""
    missing: list[str] = []
    local = isinstance(filesystem, fs.LocalFileSystem)
    while local and inner != os.path.dirname(inner) and not os.path.lexists(inner):
        missing.append(inner)
        inner = os.path.dirname(inner)
    return missing


def read_bytes(path: str) -> bytes:
    """Reads the whole file. Raises OSError like ``open``."""
    filesystem, inner = resolve(path)
    with filesystem.open_input_stream(inner) as stream:
        return stream.read()


def delete(path: str) -> None:
    """Removes a file, for good when this returns; nothing happens if it is not there.

    Raises:
      UserError: it cannot be removed.
    """
    filesystem, inner = resolve(path)
    try:
        with suppress(FileNotFoundError):
            filesystem.delete_file(inner)
            _sync_folder(filesystem, os.path.dirname(inner))
    except OSError as error:
        raise output_error(path, error) from error


def temporary_name(name: str) -> str:
    """Returns a hidden name, used once, to write a file or folder under before it is renamed to ``name``."""
    return f".{name}.{uuid.uuid4().hex}.tmp"


def output_error(path: str | Path, error: OSError) -> UserError:
    """Returns the answer to a failed write of a job that goes on where it was stopped."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(
            f"{path}: no space left to write it; free some and run the same command again, "
            "finished shards are kept"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"{path}: no permission to write there; choose another output or change it")
    kind = MachineError if is_machine_fault(error) else UserError  # the former's slice is made again
    return kind(f"{path}: cannot be written ({first_line(error)})")


def write_error(path: str | Path, error: OSError, advice: str = FREE_SPACE) -> UserError:
    """Returns the answer to any other failed write."""
    reason = os.strerror(error.errno) if error.errno else first_line(error)
    return UserError(f"{path}: cannot be written ({reason}); {advice}")


@contextmanager
def publish(
    path: str | Path,
    refuse: Callable[[str | Path, OSError], UserError] = output_error,
    one_of_many: bool = False,
) -> Iterator[BinaryIO]:
    """Opens a stream to write a file with; the file appears at ``path`` when the block ends well.

    When the block raises, or the process dies, what was there stays. A published file survives a power cut.

    Args:
      path: the file, in a folder that exists.
      refuse: makes the error of a failed write.
      one_of_many: the caller syncs the folder itself (:func:`sync_folder`), once for many files.

    Raises:
      UserError: the disk is full, or the place cannot be written to.
    """
    filesystem, inner = resolve(path)
    folder, name = os.path.split(inner)
    # As bytes: pyarrow would refuse the name of a local folder that is not UTF-8.
    final = inner.encode(errors="surrogateescape")
    temporary = os.path.join(folder, temporary_name(name)).encode(errors="surrogateescape")
    try:
        try:
            with filesystem.open_output_stream(temporary) as stream:
                yield stream
            _sync(filesystem, temporary)
            filesystem.move(temporary, final)
            if not one_of_many:
                _sync_folder(filesystem, folder)
                if not has_come(lambda: filesystem.get_file_info(final).type != fs.FileType.NotFound):
                    raise OSError(errno.ETIMEDOUT, "it was written and cannot be seen")
        except BaseException:
            with suppress(OSError):
                filesystem.delete_file(temporary)
            raise
    except OSError as error:
        raise refuse(path, error) from error


def write_bytes(path: str, data: bytes, one_of_many: bool = False) -> None:
    """Publishes a file with these contents; see :func:`publish`."""
    with publish(path, one_of_many=one_of_many) as stream:
        stream.write(data)


def write_atomically(path: Path, data: bytes, advice: str = FREE_SPACE) -> None:
    """Publishes a local file.

    Args:
      path: the file, in a folder that exists.
      data: its contents.
      advice: what the user may do where it fails.

    Raises:
      UserError: the disk is full, or the place cannot be written to.
    """
    with publish(path, lambda place, error: write_error(place, error, advice)) as stream:
        stream.write(data)


def delete_temporaries(folder: str, least_age: float = 0, below: bool = False) -> None:
    """Removes what killed writers left in ``folder``.

    Args:
      folder: local or remote; one that is not there has nothing in it.
      least_age: in seconds; what is younger, or of unknown age, may be another writer's who is at work.
      below: also in the folders below it.

    Raises:
      UserError: the folder cannot be listed, or something cannot be removed.
    """
    filesystem, inner = resolve(folder)
    selector = fs.FileSelector(inner, allow_not_found=True, recursive=below)
    try:
        infos = [info for info in _infos(filesystem, selector) if info.is_file]
        # The time of a store whose clock is behind ours is that of the newest file in it.
        now = min(time.time(), max((info.mtime_ns or 0 for info in infos), default=0) / 1e9)
        for info in infos:
            hidden = info.base_name.startswith(".") and info.base_name.endswith(".tmp")
            age = now - (info.mtime_ns / 1e9 if info.mtime_ns else math.inf)
            if hidden and (not least_age or age >= least_age):
                with suppress(FileNotFoundError):
                    filesystem.delete_file(info.path)
    except OSError as error:
        raise output_error(folder, error) from error


def sync_folder(path: str | Path) -> None:
    """Forces the names in a folder to disk, if it is a local one. Raises OSError."""
    _sync_folder(*resolve(path))


def sync_tree(folder: Path) -> None:
    """Forces every file and folder below a local folder to disk, and itself. Raises OSError."""
    local = fs.LocalFileSystem()
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(local, os.path.join(root, name).encode(errors="surrogateescape"))
        _sync_folder(local, root)


def _sync_folder(filesystem: fs.FileSystem, path: str) -> None:
    """Forces the names in a local folder to disk, where the system can sync a folder."""
    try:
        _sync(filesystem, path.encode(errors="surrogateescape"))
    except OSError as error:
        if error.errno not in _UNSYNCED:
            raise


def _sync(filesystem: fs.FileSystem, path: bytes) -> None:
    """Forces a local file to disk, so that the rename never outlives the contents."""
    if isinstance(filesystem, fs.LocalFileSystem):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
