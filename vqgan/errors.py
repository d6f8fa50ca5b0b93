"""Errors that are answers to a user, not bugs.

Everything that a user can cause (a wrong path, a truncated checkpoint, a full disk) ends as a
:class:`UserError` with one line that says what happened, where, and what to do. The command line
prints that line and exits with code 2; a library user catches it like any other exception.
"""


class UserError(Exception):
    """Something that the user can put right. The message is one complete line.

    >>> from vqgan import Codec, UserError
    >>> try:
    ...     Codec.load("nowhere/")
    ... except UserError as error:
    ...     print(str(error).split(";")[0])
    codec nowhere/: nothing there
    """


class Postponed(Exception):  # noqa: N818 - it is what was asked for
    """A run is prepared, to be started later, and so nothing is made yet; a line says where it is."""


def counted(number: int, noun: str) -> str:
    """Returns a number of things for a message: ``1 slice``, ``2 slices``, ``12,000 slices``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """Returns what another library's error says, in one printable line; its type where it says nothing."""
    return printable((str(error).splitlines() or [type(error).__name__])[0])


def printable(text: str) -> str:
    """Returns a text with what is no printable character, such as a line feed, written as in Python."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
