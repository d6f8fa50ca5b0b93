"""Text beside weights: configurations and indexes, read by their encoding; and what a file is instead.

People edit these files on any system and fetch them with tools that leave something else in their place. A
reader here gives the content or says why there is none; it never takes a damaged file for an absent one.
"""

import json
from pathlib import Path
from typing import Any

from vqgan.importers.tensors import DamagedError

_HEAD = 512
_SHOWN = 40
_LFS = b"version https://git-lfs"


def describe_unknown(path: Path) -> str:
    """Says what a file that is no container looks like, for an error."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    placeholder = _placeholder(head)
    if placeholder:
        return placeholder
    if head[257:262] == b"ustar":
        return "it is a tar archive (torch before 0.1.10?): save it again with a current torch"
    if head[:4] == b"PK\x03\x04":
        return "it is a zip archive without a torch checkpoint in it"
    text = head[:_SHOWN].decode("ascii", "replace")
    said = f", the text {text.strip()!r}" if text.isascii() and text.replace("\n", "").isprintable() else ""
    return f"its first bytes are {head[:8].hex(' ')}{said}"


def _placeholder(head: bytes) -> str:
    """Returns what stands in a file's place after a failed download; empty where it may be the file."""
    if not head.strip(b"\0 \t\r\n"):
        return "it is empty" if not head else "it holds nothing but zeros or blanks"
    if head.startswith(_LFS):
        return "it is a Git LFS pointer: fetch the real file with git lfs pull"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<":
        return "it is an HTML page, probably a failed download"
    return ""


def read_text(path: Path, most: int, what: str) -> str:
    """Reads a text in UTF-8, or in UTF-16 or UTF-32, with a byte order mark or without.

    Args:
      path: the file.
      most: bytes that it may have.
      what: it should be, for the error.

    Raises:
      DamagedError: larger, in no such encoding, or something else in its place.
      OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise DamagedError(f"it is too large for {what}: more than {most:,} bytes")
    placeholder = _placeholder(data[:_HEAD])
    if placeholder:
        raise DamagedError(placeholder)
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DamagedError(f"it is no {encoding} text; save it as UTF-8") from error


def parse_json(text: str, *, unique: bool = False) -> Any:
    """Parses JSON.

    Args:
      text: the document.
      unique: refuse an object that has a name twice.

    Raises:
      DamagedError: it is none, or nested without end.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except DamagedError:
        raise
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"it is no JSON: {' '.join(str(error).split())}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise DamagedError(f"it names {twice:.80} twice")
    return found
