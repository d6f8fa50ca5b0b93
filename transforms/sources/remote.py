"""What object stores and other remote file systems raise, as one line for people."""

from collections.abc import Iterator
from contextlib import contextmanager

from pyarrow import fs

from vqgan.errors import first_line
from vqgan.faults import STORE_ERROR

_REASONS = {
    "NETWORK_CONNECTION": "no connection to the server",
    "UNAVAILABLE": "no connection to the server, or no credentials",
    "ACCESS_DENIED": "access denied",
    "NO_SUCH_BUCKET": "no such bucket",
}


@contextmanager
def plain_errors(filesystem: fs.FileSystem) -> Iterator[None]:
    """Turns what remote file systems raise into OSErrors of one line; those in Python raise what they like.

    Raises:
      OSError: with what the store says, without the functions that were called.
    """
    try:
        yield
    except OSError as error:
        found = STORE_ERROR.search(str(error))
        if found is None:
            raise
        raise OSError(_REASONS.get(found[1], found[1].lower().replace("_", " "))) from error
    except Exception as error:
        if not isinstance(filesystem, fs.PyFileSystem):
            raise
        raise OSError(f"{type(error).__name__}: {first_line(error)}") from error
