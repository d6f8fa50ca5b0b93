"""Samples of a file to RGB in any layout: depth, sign, byte order, planes, strips, tiles, photometric, alpha.

Pillow knows some combinations of these and gives wrong pixels for others without a word. Here it only
undoes the compression: the samples are shown to it as rows of grey bytes, and what they mean is decided by
NumPy. TIFF and PSD are read so; see :mod:`transforms.images.tiff` and :mod:`transforms.images.psd`.

=================  ==========================================================================
samples            become
=================  ==========================================================================
unsigned, n bits   value * 255 / (2**n - 1), rounded; n up to 16
signed             clipped to 0..65535, then as 16 bits
floating point     times 255 if all values lie in [0, 1], else clipped to 0..255
=================  ==========================================================================
"""

import dataclasses
import io
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from transforms.images.color import BAND, to_rgb

COLOURS = {"grey": 1, "negative": 1, "palette": 1, "rgb": 3, "ycbcr": 3, "cmyk": 4, "lab": 3}
COLOURS |= {"inverse-cmyk": 4, "icclab": 3}
"""Samples that each photometric interpretation needs.

``negative`` is grey where 0 is white, ``inverse-cmyk`` has 0 for full ink; a* and b* are signed in ``lab``,
and 128 more, unsigned, in ``icclab``.
"""
# Those that Pillow converts: its mode, and the bits of 8-bit samples to flip to have that mode's values.
_MODES = {"ycbcr": ("YCbCr", 0), "lab": ("LAB", 0), "icclab": ("LAB", [0, 128, 128])}
_MODES |= {"cmyk": ("CMYK", 0), "inverse-cmyk": ("CMYK", 255)}
_MOST_BITS = 256  # of a pixel
_WHOLE = (8, 16, 32, 64)  # bits of samples that are NumPy's numbers


class UnsupportedLayoutError(ValueError):
    """The file is an image in a layout whose pixels nobody has proven to be decoded right."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the samples of an image lie in its file, and what they mean.

    Attributes:
      width: in pixels.
      height: likewise.
      photometric: one of :data:`COLOURS`.
      bits: of a sample.
      samples: of a pixel, alpha and others included.
      offsets: of each strip or tile in the file, in the order of TIFF.
      counts: bytes of each, or empty where the file does not say.
      rows: of a strip.
      kind: ``u``, ``i`` or ``f``, of the samples.
      order: ``<`` or ``>``, of samples with several bytes.
      planar: one plane after another, in place of pixel by pixel.
      tile: width and height of tiles, None for strips.
      compression: TIFF's number for it.
      predictor: TIFF's number: 1 none, 2 differences, 3 differences of the bytes of floats.
      fill_order: 2 if the bits of each byte are reversed.
      alpha: number of the sample that is alpha, None if there is none.
      premultiplied: colours are multiplied by alpha.
      palette: uint8 ``[colours, 3]``.
    """

    width: int
    height: int
    photometric: str
    bits: int
    samples: int
    offsets: Sequence[int]
    counts: Sequence[int]
    rows: int
    kind: str = "u"
    order: str = "<"
    planar: bool = False
    tile: tuple[int, int] | None = None
    compression: int = 1
    predictor: int = 1
    fill_order: int = 1
    alpha: int | None = None
    premultiplied: bool = False
    palette: np.ndarray | None = None

    @property
    def planes(self) -> int:
        """Returns the number of planes that are stored one after another."""
        return self.samples if self.planar else 1

    @property
    def block(self) -> int:
        """Returns the width of a strip or tile in pixels."""
        return self.tile[0] if self.tile else self.width

    @property
    def block_bytes(self) -> int:
        """Returns the bytes of one row of a strip or tile of one plane."""
        return -(-self.block * (self.samples // self.planes) * self.bits // 8)

    @property
    def blocks(self) -> int:
        """Returns the number of tiles side by side; 1 for strips."""
        return -(-self.width // self.block)

    @property
    def plane_blocks(self) -> int:
        """Returns the number of strips or tiles of one plane."""
        return self.blocks * -(-self.height // (self.tile[1] if self.tile else self.rows))


class LayoutImage(Image.Image):
    """An image that is decoded by :func:`read_layout` when it is loaded. Mode RGB."""

    def __init__(self, data: bytes, layout: Layout, format: str, info: dict[Any, Any]) -> None:
        """Checks the layout; decodes nothing yet.

        Raises:
          UnsupportedLayoutError: it is none that :func:`read_layout` decodes.
        """
        super().__init__()
        check_layout(layout)
        self._data, self.layout, self.format = data, layout, format
        self._mode, self._size, self.info = "RGB", (layout.width, layout.height), info

    def load(self) -> Any:
        """Decodes the pixels, once."""
        if self._im is None:
            self._im = read_layout(self._data, self.layout).im
            self._data = b""
        return super().load()


def check_layout(layout: Layout) -> None:
    """Lets only layouts through that :func:`read_layout` decodes.

    Raises:
      UnsupportedLayoutError: names what is not decoded.
    """
    kind, bits, photometric, samples = layout.kind, layout.bits, layout.photometric, layout.samples
    depths = {"u": range(1, 17), "i": (16, 32), "f": (16, 32, 64)}[kind]
    what = {"u": "unsigned", "i": "signed", "f": "floating-point"}[kind]
    mixes = photometric in ("grey", "rgb")
    eight = photometric in ("ycbcr", "lab", "icclab")
    predicted = {1: True, 2: kind != "f" and bits in _WHOLE, 3: kind == "f"}.get(layout.predictor, False)
    refused = {
        f"{what} samples of {bits} bits": bits not in depths,
        f"{samples} samples for {photometric}": samples < COLOURS[photometric],
        f"{samples} samples of {bits} bits": samples * bits > _MOST_BITS,
        f"{what} samples as {photometric}": kind != "u" and not mixes,
        f"{photometric} of {bits} bits": (bits != 8 and eight) or (bits > 8 and photometric == "palette"),
        "an image without its palette": photometric == "palette" and layout.palette is None,
        f"premultiplied {photometric}": layout.premultiplied and not mixes,
        f"{what} samples with alpha": layout.alpha is not None and kind != "u",
        f"tiles {layout.block} wide": layout.tile is not None and layout.block * bits % 8 > 0,
        f"predictor {layout.predictor} of {what} samples of {bits} bits": not predicted,
        "an image that lacks strips or tiles": len(layout.offsets) < layout.plane_blocks * layout.planes,
    }
    for reason, wrong in refused.items():
        if wrong:
            raise UnsupportedLayoutError(f"not decoded: {reason}")


def read_layout(data: bytes, layout: Layout) -> Image.Image:
    """Decodes an image of a known layout.

    Args:
      data: the file.
      layout: accepted by :func:`check_layout`.

    Returns:
      An image of mode RGB, over white.

    Raises:
      OSError: the strips or tiles are damaged or cut off.
      ValueError: floating-point samples that are not finite.
    """
    planes = [_decompress(data, layout, plane) for plane in range(layout.planes)]
    scale = _float_scale(layout, planes) if layout.kind == "f" else 1.0
    result = Image.new("RGB", (layout.width, layout.height))
    for top, samples in _bands(layout, planes):
        result.paste(Image.fromarray(_to_rgb(samples, layout, scale)), (0, top))
    return result


def read_samples(data: bytes, layout: Layout) -> np.ndarray:
    """Returns the samples of an image as stored, ``[H, W, samples]``; raises as :func:`read_layout`."""
    planes = [_decompress(data, layout, plane) for plane in range(layout.planes)]
    return np.concatenate([samples for _, samples in _bands(layout, planes)])


def _decompress(data: bytes, layout: Layout, plane: int) -> np.ndarray:
    """Returns the bytes of one plane, ``[height, blocks * block_bytes]``, read as a grey TIFF of 8 bits."""
    part = slice(plane * layout.plane_blocks, (plane + 1) * layout.plane_blocks)
    offsets, counts = list(layout.offsets[part]), list(layout.counts[part])
    tags = {
        256: [layout.blocks * layout.block_bytes],
        257: [layout.height],
        258: [8],
        259: [layout.compression],
        262: [1],
        266: [layout.fill_order],
        277: [1],
    }
    if layout.tile:
        tags |= {322: [layout.block_bytes], 323: [layout.tile[1]], 324: offsets}
    else:
        tags |= {273: offsets, 278: [layout.rows]}
    if counts:
        tags[325 if layout.tile else 279] = counts
    # The header's place is free in every TIFF and PSD: no strip begins there.
    file = b"II*\0" + struct.pack("<I", len(data)) + data[8:] + _directory(tags, len(data))
    with TiffImagePlugin.TiffImageFile(io.BytesIO(file)) as image:
        return np.asarray(image)


def _directory(tags: dict[int, list[int]], place: int) -> bytes:
    """Returns a TIFF directory of LONG values that will lie at ``place``."""
    head, tail = struct.pack("<H", len(tags)), b""
    beyond = place + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            packed, tail = struct.pack("<I", beyond + len(tail)), tail + packed
        head += struct.pack("<HHI", tag, 4, len(values)) + packed
    return head + bytes(4) + tail


def _bands(layout: Layout, planes: list[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields first row and samples ``[rows, width, samples]`` of bands, so that copies stay small."""
    rows = max(1, BAND // (layout.width * layout.samples))
    for top in range(0, layout.height, rows):
        parts = [_unpack(plane[top : top + rows], layout) for plane in planes]
        yield top, np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]


def _unpack(rows: np.ndarray, layout: Layout) -> np.ndarray:
    """Turns bytes ``[rows, bytes]`` of a plane into its samples ``[rows, width, samples of the plane]``."""
    count = layout.samples // layout.planes
    shape = (len(rows), layout.blocks, layout.block, count)
    rows = np.ascontiguousarray(rows).reshape(len(rows), layout.blocks, layout.block_bytes)
    if layout.predictor == 3:
        values = _sum_float_bytes(rows, count, layout.bits // 8).reshape(shape)
    elif layout.bits in _WHOLE:
        values = rows.view(f"{layout.order}{layout.kind}{layout.bits // 8}").reshape(shape)
        if layout.predictor == 2:
            values = np.cumsum(values, axis=2, dtype=values.dtype.newbyteorder("="))
    else:
        bits = np.unpackbits(rows, axis=2, count=layout.block * count * layout.bits)
        bits = bits.reshape(*shape, layout.bits)
        values = np.zeros(shape, np.uint16)
        for bit in range(layout.bits):
            values = values << 1 | bits[..., bit]
    return values.reshape(len(rows), -1, count)[:, : layout.width]


def _sum_float_bytes(rows: np.ndarray, count: int, size: int) -> np.ndarray:
    """Undoes predictor 3: sums of bytes, then the bytes of each float, the highest of all floats first."""
    sums = np.cumsum(rows.reshape(*rows.shape[:2], -1, count), axis=2, dtype=np.uint8)
    floats = sums.reshape(*rows.shape[:2], size, -1).swapaxes(2, 3)
    return np.ascontiguousarray(floats).view(f">f{size}")


def _float_scale(layout: Layout, planes: list[np.ndarray]) -> float:
    low, high = np.inf, -np.inf
    for _, samples in _bands(layout, planes):
        colours = samples[..., : COLOURS[layout.photometric]]
        low, high = np.minimum(low, colours.min()), np.maximum(high, colours.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("floating-point pixels that are not finite")
    return 255.0 if low >= 0 and high <= 1 else 1.0


def _to_rgb(samples: np.ndarray, layout: Layout, scale: float) -> np.ndarray:
    """Samples ``[rows, width, samples]`` to uint8 ``[rows, width, 3]``."""
    colours = samples[..., : COLOURS[layout.photometric]]
    if layout.photometric == "palette":
        assert layout.palette is not None
        rgb = layout.palette[colours[..., 0]]
    elif layout.photometric in _MODES:
        mode, flips = _MODES[layout.photometric]
        rgb = _converted(_to_8_bits(colours, layout, scale) ^ np.asarray(flips, np.uint8), mode)
    else:
        grey_or_rgb = _to_8_bits(colours, layout, scale)
        if layout.photometric == "negative":
            grey_or_rgb = 255 - grey_or_rgb
        rgb = np.broadcast_to(grey_or_rgb, (*samples.shape[:2], 3))
    if layout.alpha is None:
        return np.ascontiguousarray(rgb)
    alpha = samples[..., layout.alpha, None] / np.float32((1 << layout.bits) - 1)
    inked = rgb if layout.premultiplied else rgb * alpha
    return np.rint(np.clip(inked + 255 * (1 - alpha), 0, 255)).astype(np.uint8)


def _to_8_bits(values: np.ndarray, layout: Layout, scale: float) -> np.ndarray:
    if layout.kind == "f":
        return np.rint(np.clip(values * np.float64(scale), 0, 255)).astype(np.uint8)
    bits, top = layout.bits, (1 << layout.bits) - 1
    if layout.kind == "i":
        values, bits, top = np.clip(values, 0, 65535), 16, 65535
    if bits == 8:
        return values
    # The sum before the division rounds; the table has an entry for each value there is.
    table = ((np.arange(top + 1, dtype=np.uint32) * 510 + top) // (2 * top)).astype(np.uint8)
    return table[values]


def _converted(values: np.ndarray, mode: str) -> np.ndarray:
    """Returns 8-bit samples ``[rows, width, channels]`` of a colour space that Pillow converts, as RGB."""
    height, width = values.shape[:2]
    image = Image.frombytes(mode, (width, height), np.ascontiguousarray(values).tobytes())
    return np.asarray(to_rgb(image))


_TGA_ALPHA_BITS = 15  # of byte 17, their number


def with_tga_alpha(image: Image.Image, data: bytes) -> Image.Image:
    """Loads a TGA; what lies where alpha would counts only if the header says so.

    Raises:
      UnsupportedLayoutError: alpha of one bit, of which decoders disagree whether 1 is opaque.
    """
    palette_bits, bits, has_alpha = data[7], data[16], data[17] & _TGA_ALPHA_BITS
    if has_alpha and 16 in (bits if image.mode == "RGBA" else 0, palette_bits):
        raise UnsupportedLayoutError("TGA with alpha of one bit is not decoded")
    image.load()
    return image if has_alpha or not image.has_transparency_data else image.convert("RGB")
