"""JPEG: which layouts pass, and a file without its end that may still be whole.

Baseline, extended and progressive JPEG of 8 bits pass, with Huffman or arithmetic coding, in grey, YCbCr and
RGB, and in CMYK or YCCK if Adobe's marker says how inks are stored; without losses, grey alone. Scans are
counted before time is spent on them.
"""

import hashlib
import io
import re
from typing import NamedTuple

from PIL import Image

from transforms.images.layouts import UnsupportedLayoutError

SIGNATURE = b"\xff\xd8\xff"
MOST_SCANS = 100
"""Scans of one image; encoders write some ten. Each costs a pass over all pixels, and may take no bytes."""
_END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")  # the next marker behind entropy-coded data
_SOS, _EOI, _APP14 = 0xDA, 0xD9, 0xEE
_STANDALONE = {0x01, 0xD8, *range(0xD0, 0xD8)}
_JPEG_LS = 0xF7
_FRAMES = {*range(0xC0, 0xD0), _JPEG_LS} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}
_HIERARCHICAL = {0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF}
_COEFFICIENTS = 64
# What may follow the data: bits of either value in every place. A whole image is the same with each.
_TAILS = tuple(bytes([byte]) * 64 for byte in (0x00, 0x55, 0xAA, 0xFE))
_LAST_BYTES = 4
_PADDING = bytes(8)  # what a file is filled with that was not written to its end


class Scan(NamedTuple):
    """What a scan brings: of these components, coefficients ``first`` to ``last``, down to bit ``low``."""

    components: bytes
    first: int
    last: int
    low: int


class Structure(NamedTuple):
    """The segments of a JPEG.

    Attributes:
      frame: the marker of its frame, 0 without any.
      bits: of a sample.
      adobe: it has Adobe's marker.
      components: of the frame.
      scans: in order.
      ended: there is an EOI.
      end: bytes up to here are whole segments, or entropy-coded data.
      data_bytes: bytes of entropy-coded data.
    """

    frame: int
    bits: int
    adobe: bool
    components: bytes
    scans: list[Scan]
    ended: bool
    end: int
    data_bytes: int

    @property
    def progressive(self) -> bool:
        """Whether coefficients come in several scans."""
        return self.frame in _PROGRESSIVE


def check_layout(data: bytes) -> None:
    """Refuses a JPEG whose pixels nobody has proven to be decoded right, or which takes too long.

    Raises:
      UnsupportedLayoutError: names what is not decoded.
    """
    structure = read_structure(data)
    count = len(structure.components)
    refused = {
        f"more than {MOST_SCANS} scans, each of which costs time": len(structure.scans) > MOST_SCANS,
        f"samples of {structure.bits} bits": structure.frame > 0 and structure.bits != 8,
        "several frames (hierarchical coding)": structure.frame in _HIERARCHICAL,
        f"{count} components without losses": structure.frame in _LOSSLESS and count > 1,
        f"{count} components": structure.frame > 0 and count not in (1, 3, 4),
        "four components and no word of Adobe's on what 0 means": count == 4 and not structure.adobe,
        "the coding of JPEG-LS": structure.frame == _JPEG_LS,
    }
    for what, wrong in refused.items():
        if wrong:
            raise UnsupportedLayoutError(f"JPEG with {what} is not decoded")


def read_structure(data: bytes) -> Structure:
    """Walks through the segments; through those behind the first scan only where more scans are to come."""
    position, end, frame, bits, adobe = 2, 2, 0, 0, False
    components, scans, size = b"", list[Scan](), 0
    while len(scans) <= MOST_SCANS:
        if data[position : position + 1] != b"\xff":
            break
        while data[position : position + 1] == b"\xff":
            position += 1
        marker = data[position] if position < len(data) else -1
        if marker == _EOI:
            return Structure(frame, bits, adobe, components, scans, True, position + 1, size)
        if marker in _STANDALONE:
            position += 1
            continue
        length = int.from_bytes(data[position + 1 : position + 3], "big")
        body, position = data[position + 3 : position + 1 + length], position + 1 + length
        if marker < 0 or length < 2 or position > len(data):
            break
        end = position
        if marker in _FRAMES:
            frame, bits, components = marker, *_frame(body)
        elif marker == _APP14:
            adobe = adobe or body.startswith(b"Adobe")
        elif marker == _SOS:
            scans.append(_scan(body))
            if frame not in _PROGRESSIVE and len(scans[0].components) == len(components):
                break  # All is in one scan; decoders do not look at what follows.
            found = _MARKER.search(data, position)
            end = found.start() if found else len(data)
            size, position = size + end - position, end
            if not found:
                break
    return Structure(frame, bits, adobe, components, scans, False, end, size)


def _frame(body: bytes) -> tuple[int, bytes]:
    """Bits of a sample, and the components."""
    return (body[0], body[6::3][: body[5]]) if len(body) > 5 else (0, b"")


def _scan(body: bytes) -> Scan:
    count = body[0] if body else 0
    first, last, bits = (body[1 + 2 * count :] + b"\0\0\0")[:3]
    return Scan(body[1 : 1 + 2 * count : 2], first, last, bits & 15)


def with_end(data: bytes, partial: bool) -> bytes:
    """The same JPEG, with the EOI if it lacked that: the same object if it did not.

    Args:
      data: a JPEG.
      partial: also where pixels are missing; they turn grey.

    Raises:
      OSError: there is nothing of a picture or, unless ``partial``, pixels are missing.
    """
    structure = read_structure(data)
    if not structure.scans or structure.ended or data.rfind(_END, structure.end) >= 0:
        return data
    in_one = not structure.progressive and len(structure.scans[0].components) == len(structure.components)
    body = data[: len(data) if in_one else structure.end].rstrip(b"\xff")
    something = structure.data_bytes or len(body) > structure.end
    if something and (partial or (_has_all_scans(structure) and _has_all_data(body))):
        return body + _END
    raise OSError("the image file is truncated: pixels are missing")


def _has_all_scans(structure: Structure) -> bool:
    """Whether every coefficient of every component came, down to its last bit."""
    if not structure.progressive:
        return {number for scan in structure.scans for number in scan.components} >= set(structure.components)
    missing = {(number, k) for number in structure.components for k in range(_COEFFICIENTS)}
    for scan in structure.scans:
        if scan.low == 0:
            missing -= {(number, k) for number in scan.components for k in range(scan.first, scan.last + 1)}
    return not missing


def _has_all_data(body: bytes) -> bool:
    """Whether the last scan is whole: what follows it changes nothing, and its last bytes count."""
    if body.endswith(_PADDING):
        return False
    whole = _digest(body + _END)
    if any(_digest(body + tail + _END) != whole for tail in _TAILS):
        return False
    shorter = body[:-_LAST_BYTES].rstrip(b"\xff")
    return any(_digest(shorter + tail + _END) != whole for tail in _TAILS)


def _digest(data: bytes) -> bytes:
    """Sums up the pixels of a JPEG."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        sums = hashlib.blake2b()
        rows = max(1, (1 << 22) // image.width)
        for top in range(0, image.height, rows):
            sums.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
        return sums.digest()
