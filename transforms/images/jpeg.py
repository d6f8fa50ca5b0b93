"""JPEG: which layouts pass, and a file without its end that may still be whole.

Baseline, extended and progressive JPEG of 8 bits pass, with Huffman or arithmetic coding, in grey, YCbCr and
RGB, and in CMYK or YCCK if Adobe's marker says how inks are stored; without losses, grey alone. Scans are
counted before time is spent on them.

JPEG 2000 of other depths than 8 bits, which Pillow scales wrongly: it shifts samples to 8 bits, so that those
of fewer bits never reach 255, and of more bits the brightest are rounded to 256, which it stores as 0. Which
zeros are white is found by decoding once more, after a change in the header that keeps every value off the
ends of the range. Grey keeps 16 bits in Pillow, and loses nothing.
"""

import hashlib
import io
import re
import struct
from typing import NamedTuple

import numpy as np
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


def check_jpeg(data: bytes) -> None:
    """Refuses a JPEG whose pixels nobody has proven to be decoded right, or which takes too long.

    Raises:
      UnsupportedLayoutError: names what is not decoded.
    """
    structure = read_structure(data)
    count = len(structure.components)
    refused = {
        f"more than {MOST_SCANS} scans (each costs time)": len(structure.scans) > MOST_SCANS,
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
    """Returns the same JPEG, with the EOI if it lacked that: the same object if it did not.

    Args:
      data: a JPEG.
      partial: also where pixels are missing; they turn grey.

    Raises:
      OSError: there is nothing of an image or, unless ``partial``, pixels are missing.
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
    """Tells whether every coefficient of every component came, down to its last bit."""
    if not structure.progressive:
        return {number for scan in structure.scans for number in scan.components} >= set(structure.components)
    missing = {(number, k) for number in structure.components for k in range(_COEFFICIENTS)}
    for scan in structure.scans:
        if scan.low == 0:
            missing -= {(number, k) for number in scan.components for k in range(scan.first, scan.last + 1)}
    return not missing


def _has_all_data(body: bytes) -> bool:
    """Tells whether the last scan is whole: what follows it changes nothing, and its last bytes count."""
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


_SIZ, _COD, _QCD, _SOT = 0xFF51, 0xFF52, 0xFF5C, 0xFF90
_OVERRIDES = {0xFF53: "COC", 0xFF5D: "QCC"}
_PLAIN, _SIGNED, _MOST_BITS = 7, 0x80, 16  # 7 is written for 8 unsigned bits
_GREY_MODES, _COLOUR_MODES = ("I;16",), ("L", "LA", "RGB", "RGBA")


class Codestream(NamedTuple):
    """What the main header of a codestream says.

    Attributes:
      depths: where the depth of each component stands in the file.
      coding: where the parameters of COD stand.
      quantization: where those of QCD stand, and their length.
      overrides: names of segments that say otherwise for single components.
    """

    depths: list[int]
    coding: int
    quantization: tuple[int, int]
    overrides: list[str]


def load_deep(image: Image.Image, data: bytes) -> Image.Image:
    """Returns the opened image as 8-bit samples, if it has others.

    The same image, not loaded yet, if it has not.

    Raises:
      UnsupportedLayoutError: a depth, sign or colour space that is not decoded right.
    """
    stream = _read_codestream(data)
    bits = [(data[place] & 0x7F) + 1 for place in stream.depths]
    if {data[place] for place in stream.depths} == {_PLAIN}:
        return image
    what = f"JPEG 2000 of {'/'.join(str(depth) for depth in bits)} bits"
    if any(data[place] & _SIGNED for place in stream.depths):
        raise UnsupportedLayoutError(f"{what} with signs is not decoded")
    subsampled = any(data[place + 1 : place + 3] != b"\1\1" for place in stream.depths)
    if max(bits) > _MOST_BITS or subsampled or image.mode not in (*_GREY_MODES, *_COLOUR_MODES):
        raise UnsupportedLayoutError(f"{what}, {'subsampled' if subsampled else image.mode}, is not decoded")
    if image.mode in _GREY_MODES:
        values = np.asarray(image) >> (16 - bits[0])
        return Image.fromarray(_scaled(1 << bits[0], (1 << bits[0]) - 1)[values])
    if len(bits) != len(image.getbands()):
        raise UnsupportedLayoutError(f"{what} in mode {image.mode} is not decoded")
    return _to_8_bits(image, data, stream, bits)


def _scaled(count: int, top: float) -> np.ndarray:
    """Returns a table of ``count`` entries from 0 to 255, where 255 stands for ``top``."""
    return np.rint(np.minimum(np.arange(count) * 255 / top, 255)).astype(np.uint8)


def _to_8_bits(image: Image.Image, data: bytes, stream: Codestream, bits: list[int]) -> Image.Image:
    samples = np.atleast_3d(np.asarray(image)).astype(np.uint16)
    deep = [number for number, depth in enumerate(bits) if depth > 8]
    if deep and not samples[..., deep].all():
        moved = Image.open(io.BytesIO(_moved_to_the_middle(data, stream, deep)), formats=("JPEG2000",))
        white = (samples == 0) & (np.atleast_3d(np.asarray(moved)) >= 128)
        samples[..., deep] += 256 * white[..., deep].astype(np.uint16)
    result = np.empty(samples.shape, np.uint8)
    for number, depth in enumerate(bits):
        step = 2.0 ** (depth - 8)  # between the values that Pillow tells apart
        values = samples[..., number] if depth > 8 else samples[..., number] >> (8 - depth)
        table = _scaled(257, (2.0**depth - 1) / step) if depth > 8 else _scaled(1 << depth, (1 << depth) - 1)
        result[..., number] = table[values]
    return Image.fromarray(result[..., 0] if len(bits) == 1 else result)


def _read_codestream(data: bytes) -> Codestream:
    start = data.find(b"\xff\x4f\xff\x51")
    depths, coding, quantization, overrides = list[int](), 0, (0, 0), list[str]()
    position = start + 2
    while 0 < position < len(data) - 4:
        marker, length = struct.unpack_from(">HH", data, position)
        body = position + 4
        if marker == _SOT or marker < 0xFF00 or length < 2:
            break
        if marker == _SIZ:
            (count,) = struct.unpack_from(">H", data, body + 34)
            depths = [body + 36 + 3 * number for number in range(count)]
        elif marker == _COD:
            coding = body
        elif marker == _QCD:
            quantization = (body, length - 2)
        elif marker in _OVERRIDES:
            overrides.append(_OVERRIDES[marker])
        position += 2 + length
    if not depths or not coding or not quantization[0] or depths[-1] + 3 > len(data):
        raise UnsupportedLayoutError("JPEG 2000 without a whole main header")
    return Codestream(depths, coding, quantization, overrides)


def _moved_to_the_middle(data: bytes, stream: Codestream, deep: list[int]) -> bytes:
    """Returns the same file, whose deep components decode to values in the middle half of the range.

    Without losses (5/3) a depth of one bit more moves the zero level and nothing else. With losses (9/7) the
    steps of quantization follow the depth, so they are halved instead, with a guard bit less to keep the
    number of bit planes.
    """
    changed = bytearray(data)
    reversible = data[stream.coding + 9] == 1
    if reversible:
        for number in deep:
            changed[stream.depths[number]] += 1
        return bytes(changed)
    start, length = stream.quantization
    guards, style = data[start] >> 5, data[start] & 0x1F
    tile_overrides = b"\xff\x5c" in data[start + length :]
    exponents = range(start + 1, start + length, 2)
    movable = style in (1, 2) and guards >= 1 and all(data[place] >> 3 < 31 for place in exponents)
    if stream.overrides or tile_overrides or not movable:
        raise UnsupportedLayoutError("JPEG 2000 of more than 8 bits with such a quantization is not decoded")
    changed[start] -= 1 << 5
    for place in exponents:
        changed[place] += 1 << 3
    return bytes(changed)
