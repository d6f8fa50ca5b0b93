"""Faults of the machine told from faults of the data: which ends as a reject, and which stops the work.

An image that is damaged is damaged tomorrow, too, and so becomes a reject. A machine out of memory or of
descriptors, a disk that fails, a server that does not answer says nothing about an image: whoever meets that
tries again, a few times, and then stops with one line. :func:`is_machine_fault` draws the line for all.
"""

import errno
import os
import re
import time
from collections.abc import Callable
from typing import TypeVar

from vqgan.errors import UserError, first_line

PAUSES = (1.0, 4.0, 16.0)
"""Seconds between attempts."""
LOOKS = tuple(0.01 * 2**number for number in range(12))
"""Seconds between looks for a file that has just been written: 41 in all."""
ABSURD_BYTES = 1 << 30
"""What is asked for at once beyond this was claimed by a damaged file: no image or record has more."""

_OF_THE_FILE = frozenset(
    (
        *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
        *(errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ),
    )
)
"""Who may read it, where a name leads, whether it can be a name: all that a system says of a file itself."""
_OF_THE_OBJECT = frozenset(
    ("ACCESS_DENIED", "PERMISSION_DENIED", "NO_SUCH_KEY", "NO_SUCH_BUCKET", "RESOURCE_NOT_FOUND", "NOT_FOUND")
)
STORE_ERROR = re.compile(r"(?:AWS Error |google::cloud::Status\()([A-Z_]+)")
"""Finds what pyarrow's stores call an error, in its text."""
_TRANSPORT = re.compile(
    r"Timeout|TimedOut|Connect|Throttl|TooManyRequests|Unavailable|ServerError|Incomplete"
)
"""How libraries of remote file systems name what befalls a request, such as ``EndpointConnectionError``."""
_ALLOCATION = re.compile(r"(?:alloc|of) size (\d+)")

T = TypeVar("T")


class MachineError(UserError):
    """The machine failed, not what was asked of it. It may pass, so :func:`retrying` does it again."""


class GoneError(FileNotFoundError):
    """A file is not there any more that was there when the input was listed."""


def is_machine_fault(error: BaseException | None) -> bool:
    """Returns whether an error, or one that it was raised from, is the machine's and not the data's.

    The machine's are: no memory (unless an absurd amount was asked for, as a damaged file does), no further
    thread, a time-out, a lost connection, a file that has vanished since it was listed, what a store says of
    itself rather than of an object, and whatever a system's call reports but for permissions, missing or
    impossible names (so EIO, ESTALE, EMFILE, ENFILE, ENOMEM, EAGAIN and all unheard-of ones). An OSError
    without a number is a decoder's opinion of the data.
    """
    while error is not None:
        if _is_fault(error):
            return True
        error = error.__cause__
    return False


def _is_fault(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return not any(int(size) > ABSURD_BYTES for size in _ALLOCATION.findall(str(error)))
    if isinstance(error, (MachineError, GoneError, TimeoutError, ConnectionError)):
        return True
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return True
    if isinstance(error, OSError) and error.errno:
        return error.errno not in _OF_THE_FILE
    said = STORE_ERROR.search(str(error)) if isinstance(error, OSError) else None
    if said is not None:
        return said[1] not in _OF_THE_OBJECT
    return any(_TRANSPORT.search(kind.__name__) for kind in type(error).__mro__)


def machine_error(error: BaseException, what: str) -> MachineError:
    """Returns the answer to a fault of the machine.

    Args:
      error: the fault.
      what: could not be done, such as ``'a.jpg' cannot be read``.
    """
    if isinstance(error, MachineError):
        return error
    root = error
    while not _is_fault(root) and root.__cause__ is not None:
        root = root.__cause__
    return MachineError(
        f"{what} ({_reason(root)}); {_advice(root)}, then run the same command again, "
        "which keeps what is finished"
    )


def raise_machine_fault(error: BaseException, what: str) -> None:
    """Raises the :func:`machine_error` of a fault of the machine; returns if the data are at fault."""
    if is_machine_fault(error):
        raise machine_error(error, what) from error


def retrying(action: Callable[[], T], before_again: Callable[[], None] = lambda: None) -> T:
    """Does something, and again after each fault of the machine, a few times with growing pauses.

    Args:
      action: is done anew from its start.
      before_again: is called before each further attempt.

    Raises:
      UserError: the machine fails time after time; or whatever else ``action`` raises.
    """
    for pause in PAUSES:
        try:
            return action()
        except MachineError:
            before_again()
            time.sleep(pause)
    try:
        return action()
    except MachineError as error:  # as a plain UserError, which runners know when they send it as text
        raise UserError(f"{error} (tried {len(PAUSES) + 1} times)") from error


def has_come(is_there: Callable[[], bool]) -> bool:
    """Tells whether something is there, at once or after a while: shared file systems may show files late."""
    for pause in LOOKS:
        if is_there():
            return True
        time.sleep(pause)
    return is_there()


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "out of memory"
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number else f"{type(error).__name__}: {first_line(error)}"


def _advice(error: BaseException) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        return "free memory, or use fewer threads"
    if number in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files (ulimit -n), or use fewer threads"
    if isinstance(error, GoneError):
        return "restore it"
    return "see to the disk or the network"
