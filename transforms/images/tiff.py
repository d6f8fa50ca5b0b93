"""TIFF: which layouts pass, and where their samples lie.

====================================  ===================================================================
compression                           what passes
====================================  ===================================================================
none, LZW, Deflate, PackBits, LZMA,   grey (0 black or 0 white), RGB, palette, CMYK, YCbCr without
Zstandard                             subsampling, CIELAB; see :func:`~transforms.images.layouts.check_layout`
CCITT (Huffman, group 3, group 4)     one bit, decoded by Pillow
JPEG                                  8 bits, grey, RGB or YCbCr, pixel by pixel, decoded by Pillow
====================================  ===================================================================

Of several pages the first counts, unless it is only a small copy of another, as in camera raw. Classic TIFF
and BigTIFF, in both byte orders.
"""

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from transforms.images.layouts import COLOURS, Layout, LayoutImage, UnsupportedLayoutError

PREFIXES = tuple(TiffImagePlugin.PREFIXES)
"""First bytes of a TIFF, classic or BigTIFF."""

_PHOTOMETRICS = {
    0: "negative",
    1: "grey",
    2: "rgb",
    3: "palette",
    5: "cmyk",
    6: "ycbcr",
    8: "lab",
    9: "icclab",
}
_SAMPLES = {1, 5, 8, 32773, 32946, 34925, 50000}  # compressions of plain bytes
_BILEVEL = {2, 3, 4}
_JPEG, _JPEG_PHOTOMETRICS = 7, (1, 2, 6)
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
_ORIENTATION, _XMP, _DNG = 274, 700, 50706
_BIG_MOTOROLA = re.compile(rb"MM\0\x2b")
_MOST_DIRECTORY_VALUES = 1 << 22
_DEFAULT_BLACK_WHITE = (0, 255, 128, 255, 128, 255)

Tags = TiffImagePlugin.ImageFileDirectory_v2


def open_tiff(data: bytes) -> Image.Image:
    """Opens the first page of a TIFF; pixels are not decoded yet.

    Raises:
      UnsupportedLayoutError: its layout is not decoded.
      ValueError: the directory is cut off.
      Exception: whatever Pillow raises where the directory is damaged.
    """
    tags = _read_tags(data)
    if _number(tags, 254, 0) & 1:
        raise UnsupportedLayoutError(
            "TIFF: the first page is a small copy of another (camera raw?): convert it"
        )
    compression = _number(tags, 259, 1)
    if compression in _SAMPLES:
        return _open_samples(data, tags, compression)
    photometric, bits = _number(tags, 262, -1), _numbers(tags, 258, (1,))
    planar = _number(tags, 284, 1) == 2 and len(bits) > 1
    known = compression in _BILEVEL and photometric in (0, 1) and set(bits) == {1}
    known |= compression == _JPEG and photometric in _JPEG_PHOTOMETRICS and set(bits) == {8} and not planar
    if not known or _BIG_MOTOROLA.match(data):  # which Pillow does not open
        planes = " in planes" if planar else " in a BigTIFF of this byte order" if known else ""
        raise UnsupportedLayoutError(
            f"TIFF with compression {compression}, photometric {photometric} and samples of {bits[0]} bits"
            f"{planes} is not decoded"
        )
    return Image.open(io.BytesIO(data), formats=("TIFF",))


def _read_tags(data: bytes) -> Tags:
    file = io.BytesIO(data)
    header = file.read(8)
    if header[2:4] in (b"\x2b\0", b"\0\x2b"):
        header += file.read(8)
    # Pillow looks for BigTIFF's number in the place that it has in the other byte order.
    tags = Tags(b"II\x2b\0" + header[4:], prefix=b"MM") if _BIG_MOTOROLA.match(header) else Tags(header)
    if tags.next >= len(data):
        raise ValueError("the directory of the TIFF lies beyond the end of the file")
    file.seek(tags.next)
    tags.load(file)
    return tags


def _open_samples(data: bytes, tags: Tags, compression: int) -> Image.Image:
    photometric = _PHOTOMETRICS.get(_number(tags, 262, -1))
    if photometric is None or _DNG in tags:
        what = (
            "camera raw (DNG)" if _DNG in tags else f"photometric interpretation {tags.get(262, 'missing')}"
        )
        raise UnsupportedLayoutError(f"TIFF: {what} is not decoded")
    _check_colours(tags, photometric)
    width, height = _number(tags, 256, 0), _number(tags, 257, 0)
    tile = (_number(tags, 322, 0), _number(tags, 323, 0)) if 322 in tags else None
    if min(width, height, *(tile or (1, 1))) < 1:
        raise UnsupportedLayoutError("TIFF: a page, or a tile, without pixels")
    samples = _number(tags, 277, 1)
    bits, kinds = (_numbers(tags, tag, (1,))[: max(samples, 1)] for tag in (258, 339))
    if len(set(bits)) > 1 or len(set(kinds)) > 1 or kinds[0] not in _KINDS:
        raise UnsupportedLayoutError("TIFF: samples of several kinds or of an unknown one are not decoded")
    alpha, premultiplied = _alpha(_numbers(tags, 338, ()), samples, photometric)
    layout = Layout(
        width=width,
        height=height,
        photometric=photometric,
        bits=bits[0],
        samples=samples,
        offsets=_numbers(tags, 324 if tile else 273, ()),
        counts=_numbers(tags, 325 if tile else 279, ()),
        rows=min(_number(tags, 278, height) or height, height),
        kind=_KINDS[kinds[0]],
        order="<" if data[:1] == b"I" else ">",
        planar=_number(tags, 284, 1) == 2 and samples > 1,
        tile=tile,
        compression=compression,
        # Pages without compression, or with PackBits, have no predictor, whatever the tag says.
        predictor=1 if compression in (1, 32773) else _number(tags, 317, 1),
        fill_order=_number(tags, 266, 1),
        alpha=alpha,
        premultiplied=premultiplied,
        palette=_palette(tags) if photometric == "palette" else None,
    )
    image = LayoutImage(data, layout, "TIFF", {"xmp": tags[_XMP]} if _XMP in tags else {})
    if _ORIENTATION in tags:
        image.getexif()[_ORIENTATION] = tags[_ORIENTATION]
    return image


def _check_colours(tags: Tags, photometric: str) -> None:
    """Refuses inks that are not CMYK, and YCbCr that is not the usual one."""
    if photometric == "cmyk" and _number(tags, 332, 1) != 1:
        raise UnsupportedLayoutError("TIFF: inks other than CMYK are not decoded")
    if photometric != "ycbcr":
        return
    if tuple(_numbers(tags, 530, (2, 2))) != (1, 1):
        raise UnsupportedLayoutError("TIFF: subsampled YCbCr is decoded from JPEG alone")
    levels = tuple(float(value) for value in tags.get(532, _DEFAULT_BLACK_WHITE))
    weights = [round(float(value), 3) for value in tags.get(529, (0.299, 0.587, 0.114))]
    if levels != _DEFAULT_BLACK_WHITE or weights != [0.299, 0.587, 0.114]:
        raise UnsupportedLayoutError("TIFF: YCbCr with coefficients of its own is not decoded")


def _alpha(extra: Sequence[int], samples: int, photometric: str) -> tuple[int | None, bool]:
    """Returns the number of the alpha sample and whether colours are multiplied by it.

    RGB may leave it undeclared.
    """
    colours = COLOURS[photometric]
    if samples > colours and not extra:
        if photometric == "rgb" and samples == 4:
            return 3, False
        raise UnsupportedLayoutError(f"TIFF: {samples} samples for {photometric} without ExtraSamples")
    if samples != colours + len(extra):
        raise UnsupportedLayoutError(
            f"TIFF: {samples} samples for {photometric} and {len(extra)} ExtraSamples"
        )
    for number, meaning in enumerate(extra, colours):
        if meaning in (1, 2, 999):  # 999 is CorelDRAW's
            return number, meaning == 1
    return None, False


def _palette(tags: Tags) -> np.ndarray | None:
    values = np.asarray(_numbers(tags, 320, ()), np.uint32)
    if values.size != 3 << _numbers(tags, 258, (1,))[0]:
        return None
    colours = values.reshape(3, -1).T
    # Some writers fill 8 bits of the 16; no palette of that many dark colours is meant.
    return (colours if colours.max() < 256 else colours // 256).astype(np.uint8)


def _number(tags: Tags, tag: int, default: int) -> int:
    (value, *_) = _numbers(tags, tag, (default,)) or (default,)
    return value


def _numbers(tags: Tags, tag: int, default: Sequence[int]) -> tuple[int, ...]:
    values: Any = tags.get(tag, default)
    values = values if isinstance(values, (tuple, list, bytes)) else (values,)
    if len(values) > _MOST_DIRECTORY_VALUES or not all(
        isinstance(value, int) and value >= 0 for value in values
    ):
        raise UnsupportedLayoutError(f"TIFF: tag {tag} is damaged")
    return tuple(values)
