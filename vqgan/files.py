"""Files that are there whole or not at all."""

import contextlib
import os
import uuid
from pathlib import Path

from vqgan.errors import UserError

ADVICE = "free space or check permissions"


def write_atomically(path: Path, data: bytes, advice: str = ADVICE) -> None:
    """Writes a file that is there whole or not at all; what was there stays if it fails.

    Args:
      path: the file, in a folder that exists.
      data: its contents.
      advice: what the user may do where it fails.

    Raises:
      UserError: the disk is full, or the place cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise write_error(path, error, advice) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_error(path: Path, error: OSError, advice: str = ADVICE) -> UserError:
    """The one-line answer to a failed write."""
    return UserError(f"{path}: cannot be written ({error.strerror or error}); {advice}")
