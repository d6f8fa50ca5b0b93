"""Compiled programs kept on disk, so that the second run of a command need not compile its model again.

JAX can keep them itself, but writes each entry in place: a process that is killed meanwhile leaves a torn
one, which every later run reads in vain. The cache here stands behind the same two methods (``get`` and
``put`` of ``jax._src.compilation_cache_interface``) and

- writes an entry beside its place and renames it; a sum stands in front, and what is not as it says is
  removed;
- never fails a run: where the disk is full or the folder cannot be written, programs are just compiled again;
- keeps programs of each processor, release of jaxlib and number of cores apart, since machine code made for
  another processor may end the process;
- removes the entries used longest ago beyond :data:`MOST_BYTES`.

Entries are machine code that is run unseen, so a folder that others can write to is not used. The folder is
``$VQGAN_CACHE/compiled``, see :func:`vqgan.extras.cache_root`. Commands switch it on; whoever uses the models
as a library calls :func:`enable_compilation_cache`, since what it changes is global to JAX.
"""

import contextlib
import hashlib
import os
import platform
import re
import threading
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from vqgan.extras import cache_root
from vqgan.processor import available_cores, describe_processor
from vqgan.publishing import temporary_name

SWITCH = "VQGAN_COMPILATION_CACHE"
"""Environment variable: 0 switches the cache off; the path of a folder puts it there."""
MOST_BYTES = 1 << 30
"""Size of all entries together, of all processors and releases. One of a codec has about 100 kB on a CPU."""
LEAST_COMPILE_SECONDS = 0.1
"""What compiles faster is not kept: it would be read about as slowly."""
SHARE_KEPT = 0.75
"""Of :data:`MOST_BYTES`, once it is exceeded, so that not every new entry has to make room."""
LEFTOVER_SECONDS = 3600.0
"""A temporary file that is older was left by a killed process."""

_MAGIC = b"vqgan program 1\n"
_SUM_BYTES = hashlib.sha256().digest_size
_NAME = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{64}\.[0-9a-f]{32}\.tmp")
_lock = threading.Lock()


class ProgramCache:
    """A folder of compiled programs by key, shared by any number of threads and processes.

    No method raises for what the disk does: a program that cannot be read is compiled, and one that cannot be
    written is lost.

    Args:
      root: of the entries of all machines; its size is bounded.
      machine: name of the folder below it that this machine's entries are in.
      most_bytes: size of all entries under ``root`` at which the oldest are removed.
    """

    def __init__(self, root: Path, machine: str, most_bytes: int = MOST_BYTES):
        self._root, self._most_bytes = root, most_bytes
        self._path = root / machine  # the name that JAX logs when it resets its cache

    def get(self, key: str) -> bytes | None:
        """Returns the program of a key; None if there is none, or a damaged one, which is removed."""
        path = self._entry(key)
        try:
            if not _is_trusted(path.parent):
                return None
            data = path.read_bytes()
        except OSError:
            return None
        value = data[len(_MAGIC) + _SUM_BYTES :]
        is_whole = data == _sealed(key, value)
        with contextlib.suppress(OSError):  # a folder that can only be read serves as well
            if is_whole:
                os.utime(path)  # used last
            else:
                path.unlink()
        return value if is_whole else None

    def put(self, key: str, value: bytes) -> None:
        """Keeps a program, in place of one that is there: that one was not usable, or JAX had not asked."""
        path, data = self._entry(key), _sealed(key, value)
        if len(data) > self._most_bytes:
            return
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_trusted(path.parent):
                self._make_room(len(data))
                _write(path, data)

    def _entry(self, key: str) -> Path:
        # A key begins with a function's name, which may be longer than a file's and hold other characters.
        return self._path / hashlib.sha256(key.encode()).hexdigest()

    def _make_room(self, needed: int) -> None:
        """Removes what was used longest ago, and what killed writers left."""
        found = sorted(_files(self._root), key=lambda file: file[1])
        total = needed + sum(size for _, _, size in found)
        crowded = total > self._most_bytes
        for path, modified, size in found:
            is_leftover = path.suffix == ".tmp" and time.time() - modified > LEFTOVER_SECONDS
            if is_leftover or (crowded and total > SHARE_KEPT * self._most_bytes):
                path.unlink(missing_ok=True)
                total -= size


def enable_compilation_cache() -> bool:
    """Has JAX, in this process, keep what it compiles and take what an earlier run has compiled.

    Call it before the first compilation. XLA's warnings about features of the processor, which it compares
    with those that its own compiler adds, are kept from standard error by ``TF_CPP_MIN_LOG_LEVEL``, unless
    that is set or JAX is loaded already.

    Returns:
      Whether it is on: not where the environment switches it off, JAX has been given a cache of its own
      (``JAX_COMPILATION_CACHE_DIR``), or this release of JAX has no place for ours.
    """
    root = _chosen_root()
    if root is None:
        return False
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax

    try:
        from jax._src import compilation_cache as place
    except ImportError:
        return False
    if not all(hasattr(place, name) for name in ("_cache", "_cache_initialized", "is_cache_used")):
        return False
    with _lock:
        if not isinstance(place._cache, ProgramCache):
            if place._cache is not None or jax.config.values["jax_compilation_cache_dir"]:
                return False
            place._cache, place._cache_initialized = ProgramCache(root, machine_name()), True  # type: ignore[assignment]
            jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_COMPILE_SECONDS)
            # JAX goes on by itself, and compiles; the entry is made anew.
            warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    return True


def machine_name() -> str:
    """Returns a name for all machines that can run each other's programs, of 16 hexadecimal digits."""
    cores = f"{available_cores()} cores"
    parts = (*map(version, ("jax", "jaxlib")), platform.machine(), cores, describe_processor())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _chosen_root() -> Path | None:
    """Returns the folder that the environment chooses; None where it wants none, or there is no home."""
    chosen = os.environ.get(SWITCH, "")
    if chosen == "0":
        return None
    try:
        folder = Path(chosen).expanduser() if chosen not in ("", "1") else cache_root() / "compiled"
        return folder.absolute()
    except RuntimeError:  # no home
        return None


def _is_trusted(folder: Path) -> bool:
    """Tells whether nobody else can put an entry into a folder."""
    if not hasattr(os, "getuid"):
        return True
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _sealed(key: str, value: bytes) -> bytes:
    """Returns an entry: the program, and in front of it the sum of key and program."""
    return _MAGIC + hashlib.sha256(key.encode() + b"\n" + value).digest() + value


def _write(path: Path, data: bytes) -> None:
    """Puts a file in its place at once; nothing is left of what fails.

    It need not survive a power cut, since the sum tells, so nothing waits for the disk.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _files(root: Path) -> Iterator[tuple[Path, float, int]]:
    """Yields every entry and temporary file below a folder, when it was last used, and its size."""
    for folder in root.iterdir():
        for path in folder.iterdir() if folder.is_dir() else ():
            if _NAME.fullmatch(path.name):  # the folder may be a chosen one, with other files in it
                with contextlib.suppress(FileNotFoundError):  # another process has removed it
                    status = path.stat()
                    yield path, status.st_mtime, status.st_size
