"""Text files of any size, compressed or not, in UTF-8 or what their first bytes say: lines, and their fields.

Of tab-separated fields there is no standard: some writers quote a field as in CSV where it holds a tab, a
newline or a quotation mark, others write every field as it is. A file of the second kind, read as one of the
first, loses rows; so a quotation mark may be just that.
"""

import codecs
import csv
import io
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from transforms.sources.locations import Found, Location, open_file
from transforms.sources.names import decompressing

MAX_LINE = 1 << 20
"""Most characters of a line; a file that has none would fill memory."""

csv.field_size_limit(MAX_LINE)  # of the process; Python's own is a caption of 131,072 characters

_HEAD_BYTES = 4096
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@contextmanager
def open_lines(location: Location, found: Found) -> Iterator[Iterator[str]]:
    r"""Returns the lines of a file with their ends, which may be ``\n``, ``\r`` or both.

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


def split_delimited(lines: Iterator[str]) -> Iterator[list[str]]:
    """Yields the fields of each row of CSV; semicolons or tabs divide them if the header has no comma.

    Raises:
      ValueError: quotation marks that make no fields; it names the line.
    """
    header = next(lines, "")
    delimiter = next((sign for sign in ",;\t" if sign in header), ",")
    lines = itertools.chain([header], lines)
    if delimiter == "\t":
        yield from split_tabs(lines)
        return
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"the row that begins at line {first:,}: {_quoting(error)}") from error
        if row is None:
            return
        yield row


def _quoting(error: csv.Error) -> str:
    """Says what is wrong with a row; a quotation mark in a field is written twice."""
    is_open = "unexpected end" in str(error)
    return "a quotation mark that is never closed" if is_open else f"a stray quotation mark ({error})"


_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_MOST_LINES = 100


def split_tabs(lines: Iterator[str]) -> Iterator[list[str]]:
    """Yields the fields of each row; the first row is the header, which says how many a row has.

    A field is unquoted where it is wholly and properly quoted. Tabs and newlines belong to a quoted field
    only where the row would not have the header's number of fields without them; a line that has it by itself
    is a row of its own, whatever quotation marks are in it.
    """
    width = None
    pending: list[str] = []
    while line := pending.pop(0) if pending else next(lines, None):
        if not line.rstrip("\r\n"):
            yield []
            continue
        row = _plain(line)
        if width is None:
            width = len(row)
        if '"' in line and (len(row) != width or row[-1].startswith('"')):
            row = _quoted(line, width, row, lines, pending)
        yield row


def _plain(line: str) -> list[str]:
    return [_unquoted(field) for field in line.rstrip("\r\n").split("\t")]


def _unquoted(field: str) -> str:
    return field[1:-1].replace('""', '"') if len(field) > 1 and _QUOTED.fullmatch(field) else field


def _quoted(line: str, width: int, plain: list[str], lines: Iterator[str], pending: list[str]) -> list[str]:
    """Returns the row by the rules of CSV, with as many further lines as it takes; else ``plain``.

    Lines that are looked at in vain go to ``pending``.
    """
    looked_at: list[str] = []
    while (row := _by_rules([line, *looked_at])) is None and len(looked_at) < _MOST_LINES:
        following = pending.pop(0) if pending else next(lines, None)
        if following is None:
            break
        looked_at.append(following)
        if len(_plain(following)) == width > 1 or width == 1:
            break  # a row by itself
    if row is not None and len(row) == width:
        return row
    pending[:0] = looked_at
    return plain


def _by_rules(lines: list[str]) -> list[str] | None:
    """Returns the fields of one whole row of CSV; None if a quoted field is still open, or it is none."""
    try:
        rows = list(csv.reader(lines, delimiter="\t", strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None
