"""Rows of tab-separated text, in which a quotation mark may be just that.

There is no standard: some writers quote a field as in CSV where it holds a tab, a newline or a quotation
mark, others write every field as it is. A file of the second kind, read as one of the first, loses rows.
"""

import csv
import re
from collections.abc import Iterator

_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_MOST_LINES = 100


def split_tabs(lines: Iterator[str]) -> Iterator[list[str]]:
    """The fields of each row; the first row is the header, which says how many a row has.

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
    """The row by the rules of CSV, with as many further lines as it takes; else ``plain``.

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
    """The fields of one whole row of CSV; None if a quoted field is still open, or it is none."""
    try:
        rows = list(csv.reader(lines, delimiter="\t", strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None
