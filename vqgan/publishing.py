"""Files that appear whole or not at all, wherever :mod:`vqgan.filesystems` finds their folder.

A file is written under a hidden name beside its own and renamed, so a reader finds it whole or not at all.
On a local disk the contents are synced before the rename, and the folder after it: what was published before
something else is there after a power cut, too, if that is. A store keeps an object once it is written.
"""

import errno
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pyarrow import fs

from vqgan import filesystems
from vqgan.errors import UserError, first_line
from vqgan.faults import MachineError, has_come, is_machine_fault

FREE_SPACE = "free space or check permissions"
"""What to do about a failed write, where nothing more is known."""
NO_FOLDER = "something above it is a file and no folder"
"""What is wrong where a path leads through a file."""


_UNSYNCED = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES, errno.EPERM)
"""How a system answers that cannot sync a folder, or not one that may be written to but not read."""


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
    if error.errno == errno.ENOTDIR:
        return UserError(f"{path}: {NO_FOLDER}; choose another output")
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
    filesystem, inner = filesystems.resolve(path)
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


def make_folder(path: str) -> None:
    """Creates a folder and its parents, which are on the disk when this returns.

    Raises:
      UserError: it cannot be created.
    """
    filesystem, inner = filesystems.resolve(path)
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


def delete(path: str) -> None:
    """Removes a file, for good when this returns; nothing happens if it is not there.

    Raises:
      UserError: it cannot be removed.
    """
    filesystem, inner = filesystems.resolve(path)
    try:
        with suppress(FileNotFoundError):
            filesystem.delete_file(inner)
            _sync_folder(filesystem, os.path.dirname(inner))
    except OSError as error:
        raise output_error(path, error) from error


def delete_temporaries(folder: str, least_age: float = 0, below: bool = False) -> None:
    """Removes what killed writers left in ``folder``.

    Args:
      folder: local or remote; one that is not there has nothing in it.
      least_age: in seconds; what is younger, or of unknown age, may be another writer's who is at work.
      below: also in the folders below it.

    Raises:
      UserError: the folder cannot be listed, or something cannot be removed.
    """
    filesystem, inner = filesystems.resolve(folder)
    selector = fs.FileSelector(inner, allow_not_found=True, recursive=below)
    try:
        infos = [info for info in filesystems.select_infos(filesystem, selector) if info.is_file]
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
    _sync_folder(*filesystems.resolve(path))


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
