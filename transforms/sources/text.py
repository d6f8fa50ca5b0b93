"""Text files of any size as lines: compressed or not, in UTF-8 or what their first bytes say."""

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from transforms.sources.compressed import decompressing
from transforms.sources.locations import Found, Location, open_file

MAX_LINE = 1 << 20
"""Most characters of a line; a file that has none would fill memory."""

_HEAD_BYTES = 4096
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@contextmanager
def open_lines(location: Location, found: Found) -> Iterator[Iterator[str]]:
    """The lines of a file with their ends, which may be ``\\n``, ``\\r`` or both.

    Bytes that are not UTF-8 become lone surrogates, as in Python's file names.

    Raises:
      ValueError: a line beyond :data:`MAX_LINE`, or a file in UTF-16 or -32 that is damaged.
      OSError, EOFError, zlib.error, lzma.LZMAError: reading or decompressing fails.
    """
    with open_file(location, found.file) as file:
        stream = decompressing(file)
        encoding = _encoding((stream or file).read(_HEAD_BYTES))
        file.seek(0)
        errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
        raw = cast(BinaryIO, decompressing(file) or file)
        with io.TextIOWrapper(raw, encoding, errors, newline="") as lines:
            yield _bounded(lines)


def _bounded(text: io.TextIOWrapper) -> Iterator[str]:
    number = 1
    while line := text.readline(MAX_LINE):
        ends = line[-1] in "\r\n"
        if len(line) >= MAX_LINE and not ends:
            raise ValueError(f"line {number:,} has more than {MAX_LINE:,} characters")
        yield line
        number += ends


def _encoding(head: bytes) -> str:
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    if b"\0" not in head:
        return "utf-8-sig"
    # Text in UTF-16 without a mark: half of its bytes are zero, those of the higher value.
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) * 4 < len(head) or min(even, odd):
        raise ValueError("there are zero bytes in it, so it is no text in UTF-8; save it as such")
    return "utf-16-be" if even else "utf-16-le"
