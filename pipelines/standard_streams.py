"""Standard output and error as a program finds them: closed, full, gone, or of another encoding."""

import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO


class OutputError(Exception):
    """Standard output takes nothing more; the OSError that says why is its cause."""


class Output:
    """Standard output whose failures cannot be taken for those of any other file."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes like the stream; raises OutputError."""
        return self._guarded(self._stream.write, text)

    def flush(self) -> None:
        """Flushes the stream; raises OutputError."""
        self._guarded(self._stream.flush)

    def _guarded(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except OSError as error:
            raise OutputError from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_standard_streams() -> None:
    """Puts streams where the caller has closed some, and lets none fail on a character.

    Without them the next file that is opened would be taken for standard output. What stands in for it
    refuses to be written to, as a closed descriptor does; what is said to a closed standard error is lost.
    """
    if sys.stdout is None:
        sys.stdout = _stand_in(1, os.O_RDONLY)
    if sys.stderr is None:
        sys.stderr = _stand_in(2, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def abandon_output() -> None:
    """Sends what is still in standard output's buffer nowhere; else Python complains once more at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _stand_in(descriptor: int, flags: int) -> TextIO:
    opened = os.open(os.devnull, flags)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)
    return open(descriptor, "w", encoding="utf-8", closefd=False)
