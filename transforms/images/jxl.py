"""The head of JPEG XL: size, depth and extra channels, read before any pixel is decoded.

After ISO/IEC 18181-1, annex D.
"""

from collections.abc import Iterator
from typing import NamedTuple

JXL_CODESTREAM = b"\xff\x0a"
JXL_CONTAINER = b"\0\0\0\x0cJXL \x0d\x0a\x87\x0a"
_SIZES = ((9, 1), (13, 1), (18, 1), (30, 1))
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_ALPHA = 0
_MOST_EXTRA_CHANNELS = 16
_MOST_BITS = 16  # of an integer sample


class JxlHeader(NamedTuple):
    """What the head of a JPEG XL codestream says.

    Attributes:
      size: width and height as stored, before orientation.
      problem: what about its layout is not decoded; empty if all is.
    """

    size: tuple[int, int]
    problem: str


def read_jxl_header(data: bytes) -> JxlHeader:
    """Reads size and layout, as in ISO/IEC 18181-1, annex D.

    Raises:
      EOFError: the file ends before.
    """
    bits = _Bits(_codestream(data)[len(JXL_CODESTREAM) :])
    size = _size(bits)
    if bits.read(1):  # all by default: RGB of 8 bits
        return JxlHeader(size, "")
    if bits.read(1):
        bits.read(3)  # orientation, which the decoder applies
        if bits.read(1):
            _size(bits)  # at which to show it
        if bits.read(1):
            return JxlHeader(size, "with a preview")
        if bits.read(1):
            return JxlHeader(size, "with an animation")
    is_float, depth = _depth(bits)
    if not is_float and depth > _MOST_BITS:
        return JxlHeader(size, f"of {depth} bits")
    bits.read(1)  # the size of buffers
    count = bits.choose((0, 0), (0, 1), (4, 2), (12, 1))
    if count > _MOST_EXTRA_CHANNELS:
        return JxlHeader(size, f"with {count} extra channels")
    problems = [problem for problem in (_extra_channel(bits) for _ in range(count)) if problem]
    return JxlHeader(size, problems[0] if problems else "")


def _extra_channel(bits: "_Bits") -> str:
    """Says what is wrong with an extra channel; empty if it is alpha."""
    if bits.read(1):
        return ""
    kind = bits.choose((0, 0), (0, 1), (4, 2), (6, 18))
    _depth(bits)
    bits.choose((0, 0), (0, 3), (0, 4), (3, 1))
    for _ in range(bits.choose((0, 0), (4, 0), (5, 16), (10, 48))):
        bits.read(8)  # its name
    if kind != _ALPHA:
        return f"with an extra channel of kind {kind}"
    return "whose colours are multiplied by alpha" if bits.read(1) else ""


def _depth(bits: "_Bits") -> tuple[bool, int]:
    """Returns whether samples are floats, and their bits."""
    if not bits.read(1):
        return False, bits.choose((0, 8), (0, 10), (0, 12), (6, 1))
    depth = bits.choose((0, 32), (0, 16), (0, 24), (6, 1))
    bits.read(4)
    return True, depth


def _size(bits: "_Bits") -> tuple[int, int]:
    small = bits.read(1)
    height = 8 * (bits.read(5) + 1) if small else bits.choose(*_SIZES)
    ratio = bits.read(3)
    if ratio:
        across, down = _RATIOS[ratio - 1]
        return height * across // down, height
    return (8 * (bits.read(5) + 1) if small else bits.choose(*_SIZES)), height


class _Bits:
    """Numbers from the bits of bytes, the lowest first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data[:4096], "little")
        self._left = 8 * len(data[:4096])

    def read(self, count: int) -> int:
        """Takes ``count`` bits. Raises EOFError."""
        self._left -= count
        if self._left < 0:
            raise EOFError("the JPEG XL file ends in its header")
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        return value

    def choose(self, *ways: tuple[int, int]) -> int:
        """Takes a number of as many bits as one of four ways has, and adds what that way has."""
        count, more = ways[self.read(2)]
        return self.read(count) + more


def _codestream(data: bytes) -> bytes:
    """Returns the first bytes of the codestream, which may lie in boxes."""
    if data.startswith(JXL_CODESTREAM):
        return data
    parts = []
    for kind, body in _boxes(data):
        if kind == b"jxlc":
            return body
        if kind == b"jxlp":
            parts.append(body[4:])
    return b"".join(parts)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    while position + 8 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        start = position + 8
        if length == 1:
            length, start = int.from_bytes(data[start : start + 8], "big"), start + 8
        end = position + length if length else len(data)
        if end < start:
            return
        yield kind, data[start:end]
        position = end
