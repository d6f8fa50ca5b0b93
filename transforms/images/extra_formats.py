"""HEIF (HEIC) and JPEG XL, decoded by packages of the extras ``heic`` and ``jxl``.

==========  ========================================================================================
HEIF        HEVC of 8, 10 or 12 bits, grey, RGB or YCbCr, with alpha; turned and mirrored as the file says
JPEG XL     grey or RGB of 1 to 16 bits or floats, with alpha; a JPEG that was packed without losses
==========  ========================================================================================

Neither format takes its orientation from EXIF. Of several images the primary one counts; animations, inks
and colours multiplied by alpha are refused by name. Further depth than 8 bits keeps its upper bits alone, but
in grey.
"""

import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from PIL import Image

from transforms.images.layouts import UnsupportedLayoutError
from vqgan.extras import require_extra

JXL_CODESTREAM = b"\xff\x0a"
JXL_CONTAINER = b"\0\0\0\x0cJXL \x0d\x0a\x87\x0a"
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_SIZES = ((9, 1), (13, 1), (18, 1), (30, 1))
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_ALPHA = 0
_MOST_EXTRA_CHANNELS = 16
_MOST_BITS = 16  # of an integer sample
_MODES = ("L", "LA", "RGB", "RGBA", "I;16", "F")


class ExtraImage(Image.Image):
    """An image that a package of an extra decodes when it is loaded."""

    def __init__(self, format: str, size: tuple[int, int], decode: Callable[[], Image.Image]) -> None:
        """Decodes nothing yet.

        Args:
          format: name of it.
          size: as the header has it; loading may tell another.
          decode: gives the pixels, upright unless EXIF comes along.
        """
        super().__init__()
        self.format, self._mode, self._size, self._decode = format, "RGB", size, decode

    def load(self) -> Any:
        """Decodes the pixels, once."""
        if self._im is None:
            decoded = self._decode()
            self._im, self._mode, self._size, self.info = (
                decoded.im,
                decoded.mode,
                decoded.size,
                decoded.info,
            )
        return super().load()


def is_heif(data: bytes) -> bool:
    """Returns whether a file is HEIF of other codings than AV1, as far as its first bytes tell."""
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


def is_jxl(data: bytes) -> bool:
    """Returns whether a file is JPEG XL."""
    return data.startswith((JXL_CODESTREAM, JXL_CONTAINER))


def open_heif(data: bytes) -> Image.Image:
    """Opens the primary image of a HEIF file; pixels are not decoded yet.

    Raises:
      UserError: the extra is not installed.
      UnsupportedLayoutError: its colours are multiplied by alpha.
      Exception: whatever the package raises where the file is damaged.
    """
    require_extra("heic", "HEIF")
    import pillow_heif

    heif = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=True, hdr_to_16bit=True)
    primary = heif[heif.primary_index]
    if primary.premultiplied_alpha:
        raise UnsupportedLayoutError("HEIF whose colours are multiplied by alpha is not decoded")

    def decode() -> Image.Image:
        image: Image.Image = primary.to_pillow()
        image.info = {}  # EXIF repeats an orientation that is already applied
        return image

    return ExtraImage("HEIF", primary.size, decode)


def open_jxl(data: bytes) -> Image.Image:
    """Opens a JPEG XL file; pixels are not decoded yet.

    Raises:
      UserError: the extra is not installed.
      UnsupportedLayoutError: its layout is not decoded.
      EOFError: it is cut off in its header.
    """
    require_extra("jxl", "JPEG XL")
    header = read_jxl_header(data)
    if header.problem:
        raise UnsupportedLayoutError(f"JPEG XL {header.problem} is not decoded")
    return ExtraImage("JXL", header.size, lambda: _decode_jxl(data))


def _decode_jxl(data: bytes) -> Image.Image:
    import pillow_jxl

    try:
        is_jpeg, info, pixels, *_ = pillow_jxl.Decoder(num_threads=0)(data)
    except RuntimeError as error:  # its text is about building the package
        raise OSError("the JPEG XL file is truncated or damaged") from error
    if is_jpeg:
        image: Image.Image = Image.open(io.BytesIO(pixels), formats=("JPEG",))
        image.load()
        return image  # with its EXIF, since its pixels lie as they did in the JPEG
    if info.mode not in _MODES:
        raise UnsupportedLayoutError(f"JPEG XL in mode {info.mode} is not decoded")
    return Image.frombytes(info.mode, (info.width, info.height), pixels)


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
