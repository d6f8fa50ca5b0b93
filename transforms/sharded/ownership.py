"""One launcher at a time for one output: a second one would take the first one's temporaries for leftovers.

The lock is the system's own (``flock``), so a killed owner does not leave it behind. It is had on local file
systems alone. Where there is none, as on an object store, two launchers do the same work twice, and neither
harms the other: they publish the same bytes, and only temporaries that are a day old count as left behind.
"""

import contextlib
import os
import socket
from collections.abc import Iterator

from vqgan import filesystems
from vqgan.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".run.lock"


@contextlib.contextmanager
def owning(output: str) -> Iterator[bool]:
    """Holds an output, which is there, while the block lasts.

    Yields:
      Whether it is held: False where there are no locks.

    Raises:
      UserError: another process holds it.
    """
    filesystem, inner = filesystems.resolve(output)
    local = fcntl is not None and filesystem.type_name == "local"
    path = os.path.join(inner, LOCK_FILE)
    descriptor = _lock(path, output) if local else None
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.unlink(path)  # before the lock goes: whoever waits for this file looks for its successor
            os.close(descriptor)


def _lock(path: str, output: str) -> int | None:
    """Returns the descriptor of the locked file; None where nothing can be written or locked."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None  # who cannot write here takes nothing from anybody
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode(errors="replace") or "just started"
            os.close(descriptor)
            raise UserError(
                f"{output}: another run owns this output ({owner}); wait for it, or stop it first"
            ) from None
        except OSError:  # a file system without locks
            os.close(descriptor)
            return None
        os.close(descriptor)  # the former owner removed the file after it was opened here


def _is_at(descriptor: int, path: str) -> bool:
    """Tells whether an open file is still the one of this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
