"""File names as keys and as Parquet strings.

A POSIX file name is bytes, and need not be text; keys and the plan's Parquet file hold Unicode only.
Two forms bridge the gap, both unambiguous:

* *key*, for people: bytes that are not UTF-8 become ``\\xNN``, and a backslash becomes two, so that no
  two names share a key.
* *file*, to open it again: a name that is UTF-8 is written as it is. Any other is written as ``%:`` and
  then percent-escaped bytes (``%:caf%E9.jpg``). A UTF-8 name that itself begins with ``%:`` is escaped
  too, so the marker always means escaping.

Names come from Python's ``os`` functions: a ``str`` whose undecodable bytes are lone surrogates.
"""

import os
import urllib.parse

_MARKER = "%:"


def to_key(name: str) -> str:
    """The key of a file name: valid Unicode, different for different names."""
    return to_text(name.replace("\\", "\\\\"))


def to_text(name: str) -> str:
    """A string as people wrote it, with ``\\xNN`` for bytes that are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def to_file(name: str) -> str:
    """The file name as a string that Parquet can hold; :func:`from_file` turns it back."""
    raw = os.fsencode(name)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return _MARKER + urllib.parse.quote_from_bytes(raw)
    return _MARKER + urllib.parse.quote_from_bytes(raw) if text.startswith(_MARKER) else text


def from_file(file: str) -> bytes:
    """The bytes of the name that :func:`to_file` wrote down."""
    if file.startswith(_MARKER):
        return urllib.parse.unquote_to_bytes(file[len(_MARKER) :])
    return file.encode("utf-8")
