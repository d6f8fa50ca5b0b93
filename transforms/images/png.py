"""PNG: what pixels need is checked and kept, and what they do not need cannot stop them."""

import io
import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image
from PIL.IcoImagePlugin import IcoFile

from transforms.images.layouts import UnsupportedLayoutError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ICON = b"\0\0\1\0"
_NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"IEND")
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_ORIENTATION = (b"eXIf", *_ANIMATION)  # of use, but the pixels are there without them
_TEXTS = re.compile(rb"XML:com\.adobe\.xmp\0|Raw profile type (exif|APP1)\0")  # may hold the orientation
_MOST_TEXT = 1 << 20  # Pillow refuses the image beyond
_GREY, _RGB = 0, 2


class DamagedImageError(ValueError):
    """Bytes that the pixels depend on are not those that were written."""


def needed_chunks(data: bytes) -> bytes:
    """Returns the same PNG with the chunks alone that pixels and orientation need, their checksums verified.

    Texts, profiles, times and the like are left out unread, however large or damaged. What is no chunk any
    more, as in a file that is cut off, is passed on for the decoder to refuse.

    Raises:
      DamagedImageError: a wrong checksum in a chunk that the pixels need.
      UnsupportedLayoutError: a critical chunk that no standard knows.
    """
    kept, animated = [SIGNATURE], True
    chunks = list(_chunks(data))
    for name, start, end in chunks:
        if name in _ANIMATION and not _is_sound(data, start, end):
            animated = False  # Readers that do not know animations show the image without.
    for name, start, end in chunks:
        if end > len(data):  # cut off
            kept.append(data[start:])
        elif name in _NEEDED or not name[0] & 32:
            if name not in _NEEDED:
                raise UnsupportedLayoutError(
                    f"PNG with a critical chunk {name.decode('latin-1')} is not decoded"
                )
            if not _is_sound(data, start, end):
                raise DamagedImageError(f"PNG: a wrong checksum in chunk {name.decode('latin-1')}")
            kept.append(data[start:end])
        elif name in _ORIENTATION:
            if animated or name not in _ANIMATION:
                kept += [data[start:end]] if _is_sound(data, start, end) else []
        elif _TEXTS.match(data, start + 8, end) and end - start < _MOST_TEXT and _is_sound(data, start, end):
            kept += [data[start:end]] if _inflates(data[start + 8 : end - 4], name) else []
    return b"".join(kept)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields name, start and end of each chunk up to IEND; the last may end beyond the file."""
    start, name = len(SIGNATURE), b""
    while start < len(data) and name != b"IEND":
        name = data[start + 4 : start + 8]
        if not re.fullmatch(rb"[A-Za-z]{4}", name):
            yield b"\0\0\0\0", start, len(data) + 1  # no chunk: the rest is passed on
            return
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        yield name, start, end
        start = end


def _is_sound(data: bytes, start: int, end: int) -> bool:
    if end > len(data):
        return False
    return zlib.crc32(memoryview(data)[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")


def _inflates(body: bytes, name: bytes) -> bool:
    """Tells whether a text, if it is compressed, is no larger than Pillow takes."""
    keyword_end = body.index(b"\0")
    if name == b"tEXt" or (name == b"iTXt" and body[keyword_end + 1 : keyword_end + 2] == b"\0"):
        return True
    packed = body[keyword_end + 2 :] if name == b"zTXt" else body[keyword_end + 3 :].split(b"\0", 2)[-1]
    try:
        return len(zlib.decompressobj().decompress(packed, _MOST_TEXT)) < _MOST_TEXT
    except zlib.error:
        return False


def mend_transparency(image: Image.Image, data: bytes) -> None:
    """Gives the transparent colour of an opened PNG in the values that Pillow's pixels have.

    Raises:
      UnsupportedLayoutError: some of 48-bit RGB is transparent, which its upper bytes do not tell.
    """
    transparent = image.info.get("transparency")
    bits, colour = struct.unpack_from("BB", data, 24)
    if transparent is None:
        return
    if colour == _GREY and bits in (2, 4):
        image.info["transparency"] = (transparent % (1 << bits)) * (255 // ((1 << bits) - 1))
    elif colour == _RGB and bits == 16:
        del image.info["transparency"]
        image.load()
        upper = np.array([value >> 8 for value in transparent])
        if (np.asarray(image) == upper).all(-1).any():
            raise UnsupportedLayoutError("PNG of 16 bits with a transparent colour in use is not decoded")
    elif colour == _RGB:
        image.info["transparency"] = tuple(value & 255 for value in transparent)
    elif colour == _GREY and bits == 8:
        image.info["transparency"] = transparent & 255


def unwrapped(data: bytes) -> bytes:
    """Returns the PNG that an icon is, whose transparent colour Pillow would forget; any other file as it is.

    Raises:
      UnsupportedLayoutError: an Apple icon may be such a PNG, but which of several is not known.
    """
    if data.startswith(b"icns") and (b"tRNS" in data or b"PLTE" in data):
        raise UnsupportedLayoutError("ICNS with a palette or a transparent colour is not decoded")
    if not data.startswith(_ICON):
        return data
    try:
        entry = IcoFile(io.BytesIO(data)).entry[0]  # the largest
    except (SyntaxError, IndexError, struct.error):
        return data
    inner = data[entry.offset : entry.offset + entry.size]
    return inner if inner.startswith(SIGNATURE) else data
