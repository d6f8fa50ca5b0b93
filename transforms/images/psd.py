"""PSD: the merged image, in bitmap, grey, duotone (as its grey), indexed, RGB, CMYK or Lab."""

import struct

import numpy as np
from PIL import Image

from transforms.images.layouts import COLOURS, Layout, LayoutImage, UnsupportedLayoutError

PREFIX = b"8BPS"
_PHOTOMETRICS = {0: "negative", 1: "grey", 2: "palette", 3: "rgb", 4: "inverse-cmyk"}
_PHOTOMETRICS |= {8: "grey", 9: "icclab"}
_LEAST_BYTES = 40  # header, three lengths, compression
_MOST_CHANNELS, _LONGEST_SIDE = 56, 30_000  # of the format
_PACKBITS = 32773
_MERGED_ALPHA = (b"8BIMMtrn", b"8BIMMt16", b"8BIMMt32")


def open_psd(data: bytes) -> Image.Image:
    """Opens the merged image of a PSD; pixels are not decoded yet.

    Raises:
      UnsupportedLayoutError: its layout is not decoded.
      EOFError: the file is cut off in its header.
    """
    if len(data) < _LEAST_BYTES:
        raise EOFError("the file ends in its header")
    version, channels, height, width, bits, mode = struct.unpack_from(">H6xHIIHH", data, 4)
    if version != 1 or mode not in _PHOTOMETRICS:
        what = "large documents (PSB)" if version == 2 else f"colour mode {mode}"
        raise UnsupportedLayoutError(f"PSD: {what} is not decoded")
    if channels > _MOST_CHANNELS or max(width, height) > _LONGEST_SIDE or not min(width, height):
        raise UnsupportedLayoutError(f"PSD: {channels} channels of {width}x{height} pixels are out of range")
    palette, position = _section(data, 26)
    _, position = _section(data, position)
    layers, position = _section(data, position)
    photometric = _PHOTOMETRICS[mode]
    colours = COLOURS[photometric]
    alpha = colours if channels > colours and _has_alpha(layers) else None
    (compression,) = struct.unpack_from(">H", data, position)
    offsets, counts = _rows(data, position + 2, compression, channels * height, -(-width * bits // 8))
    layout = Layout(
        width=width,
        height=height,
        photometric=photometric,
        bits=bits,
        samples=min(channels, colours + 1),
        offsets=offsets,
        counts=counts,
        rows=1,
        kind="f" if bits == 32 else "u",
        order=">",
        planar=min(channels, colours + 1) > 1,
        compression=_PACKBITS if compression else 1,
        alpha=alpha,
        palette=_palette(palette) if mode == 2 else None,
    )
    return LayoutImage(data, layout, "PSD", {})


def _section(data: bytes, position: int) -> tuple[bytes, int]:
    """Returns a section behind its length, and where the next one begins."""
    (length,) = struct.unpack_from(">I", data, position)
    end = position + 4 + length
    if end + 4 > len(data):
        raise EOFError("the file ends in a section before its pixels")
    return data[position + 4 : end], end


def _has_alpha(layers: bytes) -> bool:
    """Tells whether the first further channel is the merged image's alpha.

    Else it is a selection or a spot colour.

    A negative count of layers says so, in the format's own words.
    """
    (count,) = struct.unpack_from(">h", layers, 4) if len(layers) >= 6 and any(layers[:4]) else (0,)
    return count < 0 or any(mark in layers for mark in _MERGED_ALPHA)


def _rows(data: bytes, start: int, compression: int, rows: int, width: int) -> tuple[list[int], list[int]]:
    """Finds where each row of each channel lies, and its bytes."""
    if compression not in (0, 1):
        raise UnsupportedLayoutError(f"PSD: compression {compression} is not decoded")
    if compression == 0:
        return [start + width * row for row in range(rows)], [width] * rows
    table = data[start : start + 2 * rows]
    if len(table) < 2 * rows:
        raise EOFError("the file ends in its table of rows")
    counts = np.frombuffer(table, ">u2").astype(np.int64)
    return (start + 2 * rows + np.cumsum(counts) - counts).tolist(), counts.tolist()


def _palette(section: bytes) -> np.ndarray | None:
    """Returns 256 reds, then greens, then blues."""
    return np.frombuffer(section, np.uint8).reshape(3, 256).T if len(section) == 768 else None
