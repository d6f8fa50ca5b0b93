"""Bytes of any image file to RGB pixels, without trusting the file.

What is decoded, and how, is the same everywhere:

* *Formats*: an allow-list. Left out are formats whose plugin would run another program (EPS, WMF), is
  only a stub (BUFR, GRIB, HDF5, MPEG), hands its content to whatever format it claims to be (IPTC),
  inflates a stream of unknown length (FITS), or takes any bytes for an image (SPIDER, IMT, MCIDAS).
* *Orientation*: EXIF (or XMP) orientation is applied. One that cannot be read counts as upright.
* *Animations and pages*: the first frame. *ICC profiles*: ignored; LAB alone is colour-managed.
* *Truncated files*: refused, as long as nobody sets ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES``. A JPEG that
  lacks nothing but its end is whole; see :mod:`transforms.images.jpeg`.
* *Extras*: HEIF and JPEG XL; see :mod:`transforms.images.extra_formats`.
* *Layouts*: those that are proven. TIFF and PSD are read by :mod:`transforms.images.layouts`, and what Pillow
  gets wrong in PNG and JPEG 2000 is corrected. *Channels* other than RGB: :mod:`transforms.images.samples`.

Everything here may run in many threads at once, whose pixels are kept within a budget. That memory does not
suffice is no reject: it is raised as :class:`vqgan.faults.MachineError`, like every fault of the machine.
"""

import contextlib
import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from transforms.images import jpeg, png, psd, tiff
from transforms.images.budget import AT_ONCE, with_memory
from transforms.images.color import Extent, read_orientation, to_rgb, turn_upright
from transforms.images.config import DecodeConfig
from transforms.images.crops import Geometry, View, views, wanted_side
from transforms.images.extra_formats import is_heif, is_jxl, name_unread, open_heif, open_jxl
from transforms.images.layouts import LayoutImage, with_tga_alpha
from transforms.images.npy import ARRAY_PREFIX, ArrayImage
from transforms.images.resize import Picture, render
from transforms.images.samples import to_planes
from vqgan.errors import UserError
from vqgan.faults import MachineError, raise_machine_fault

_ALLOWED = (
    *("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "ICO", "CUR", "ICNS"),
    *("PSD", "DDS", "BLP", "PCX", "DCX", "SGI", "SUN", "QOI", "MSP", "FLI", "FTEX", "GBR", "XBM", "XPM"),
    *("XVTHUMB", "PIXAR", "PCD", "IM", "TGA"),  # the last three have no signature in their first bytes
)
# Pillow keeps a pointer and padding for every row: a column of a few million pixels takes ten times its area.
_LONGEST_SIDE = 1_000_000
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags
_PILLOW = re.compile(r"PIL\.")  # modules whose warnings are silenced
_lock = threading.Lock()

T = TypeVar("T")

Image.init()  # Registers every plugin now, since doing it on demand is not thread-safe.
_FORMATS = tuple(name for name in _ALLOWED if name in Image.OPEN)


class Reject(Exception):  # noqa: N818 -- a verdict on one image rather than a fault
    """This image gives no row. Survives pickling.

    Attributes:
      stage: ``read``, ``decode`` or ``filter``.
      error: class of the error, that of the library which refused it where there is one.
      message: one line, the same in every run.
    """

    def __init__(self, stage: str, error: str, message: str) -> None:
        super().__init__(stage, error, message)
        self.stage = stage
        self.error = error
        self.message = message

    def __str__(self) -> str:
        return self.message


class Decoded(NamedTuple):
    """Upright pixels and what part of the source they show.

    Attributes:
      image: mode RGB, or channels; smaller than the source by 1, 2, 4 or 8 if a JPEG was reduced in decoding.
      width: of the upright source.
      height: of the upright source.
      extent: left, top, right, bottom of the source's content in ``image``, in its pixels. The last
        pixel of a reduced image may lie partly outside.
    """

    image: Picture
    width: int
    height: int
    extent: Extent


class Prepared(NamedTuple):
    """One image, ready for the encoder.

    Attributes:
      pixels: uint8 ``[V, S, S, C]``, one square per view.
      views: what each square shows, in the same order.
      width: of the upright source, in pixels.
      height: likewise.
    """

    pixels: np.ndarray
    views: list[View]
    width: int
    height: int


def reject_reason(error: Exception, stage: str) -> Reject:
    """Returns the reject that stands for ``error``: its class name and its message on one line.

    Addresses of objects are removed, so that the same file gives the same reject in every run.
    """
    if isinstance(error, Reject):
        return error
    if isinstance(error, Image.DecompressionBombError):  # its text depends on Pillow's process-wide limit
        return Reject(stage, type(error).__name__, "the image, or one inside it, has more than max_pixels")
    message = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the file", str(error)) or "no message"
    message = " ".join(message.encode("utf-8", "replace").decode().split())
    return Reject(stage, type(error).__name__, message[:500])


@contextlib.contextmanager
def rejecting(stage: str) -> Iterator[None]:
    """Turns any exception of the block into a :class:`Reject`; exits and interrupts pass.

    Decoders fail with OSError, ValueError, SyntaxError, struct.error and many more, so no shorter list
    would do.

    Raises:
      MachineError: not the image is at fault.
    """
    try:
        yield
    except (Reject, MachineError):
        raise
    except Exception as error:
        if str(error).startswith("out of memory"):  # what Pillow's decoders say, as an OSError
            error = MemoryError(str(error))
        raise_machine_fault(error, "an image cannot be decoded")
        raise reject_reason(error, stage) from error


def configure(config: DecodeConfig) -> None:
    """Prepares Pillow's process-wide state for ``config``; cheap, repeatable, called by :func:`open_image`.

    Pillow's own limit guards frames inside containers (ICO, ICNS, GIF, BLP). It only ever rises, so that
    threads with different configurations cannot refuse each other's images. Warnings that Pillow gives
    about a file are silenced for good: ``warnings.catch_warnings`` is not thread-safe.
    """
    silenced = any(entry[0] == "ignore" and entry[3] == _PILLOW for entry in warnings.filters)
    if silenced and (Image.MAX_IMAGE_PIXELS or 0) >= config.max_pixels:
        return
    with _lock:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, config.max_pixels)
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)


def prepare(data: bytes, key: str, decode_config: DecodeConfig, geometry: Geometry) -> Prepared:
    """Decodes, crops and resizes one image. May run in many threads at once.

    Args:
      data: the whole file, in any format.
      key: of the example; random crops depend on it.
      decode_config: what is accepted.
      geometry: what the squares show.

    Raises:
      Reject: the image gives no rows.
      MachineError: not the image is at fault.
    """

    def crop(decoded: Decoded) -> Prepared:
        image, width, height, extent = decoded
        with contextlib.closing(image):  # frees the pixels now, also where a plugin left reference cycles
            chosen = views(width, height, geometry, key)
            pixels = render(image, (width, height), geometry, chosen, extent)
        return Prepared(pixels, chosen, width, height)

    return decoding(data, decode_config, wanted_side(geometry), crop)


def decoding(data: bytes, config: DecodeConfig, wanted: int | None, use: Callable[[Decoded], T]) -> T:
    """Decodes like :func:`decode_image`, and has the pixels used within the budget of all threads.

    Args:
      data: the whole file.
      config: limits.
      wanted: see :func:`decode_image`.
      use: what to do with the pixels; closes them where they are not kept.

    Raises:
      Reject: with every reason there is, those of ``use`` included.
      MachineError: not the image is at fault.
    """

    def attempt(least: int) -> T:
        opened = _open_for(data, config, wanted)
        with AT_ONCE.spending(max(least, opened.cost)), rejecting("decode"):
            return use(_decode(opened, config))

    try:
        return with_memory(attempt, lambda: _stated_pixels(data))
    except MemoryError as error:
        raise Reject("decode", "MemoryError", str(error)) from None


def _stated_pixels(data: bytes) -> int:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return image.width * image.height
    except Exception:  # noqa: BLE001 - it states nothing
        return 0


def open_image(data: bytes, config: DecodeConfig) -> Image.Image:
    """Opens an encoded image and checks its size; pixels are not decoded yet (icons excepted).

    Args:
      data: the whole file.
      config: limits.

    Returns:
      An image whose ``size`` is as stored, before orientation.

    Raises:
      Reject: stage ``read`` for the file's length, ``filter`` for the filters on its size, else ``decode``.
    """
    if not data:
        raise Reject("read", "EmptyFile", "the file is empty")
    if len(data) > config.max_bytes:
        raise Reject("read", "FileTooLarge", f"{len(data):,} bytes; the limit is {config.max_bytes:,}")
    configure(config)
    with rejecting("decode"):
        image = _open(data, config)
    _check_size(*image.size, config)
    _check_tiles(image, config)
    return image


def _open(data: bytes, config: DecodeConfig) -> Image.Image:
    data = png.unwrapped(data)
    if data.startswith(ARRAY_PREFIX) and not config.channels.is_rgb:
        return ArrayImage(data)
    if data.startswith(tiff.PREFIXES):
        return tiff.open_tiff(data)
    if data.startswith(psd.PREFIX):
        return psd.open_psd(data)
    if data.startswith(png.SIGNATURE):
        data = png.needed_chunks(data)
    if data.startswith(jpeg.SIGNATURE):
        jpeg.check_jpeg(data)
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        return _open_with_extras(data)


def _open_with_extras(data: bytes) -> Image.Image:
    """Opens what only packages of extras decode. Raises Reject where nothing does."""
    for is_one, open_one in ((is_heif, open_heif), (is_jxl, open_jxl)):
        if is_one(data):
            try:
                return open_one(data)
            except UserError as error:  # the extra is not installed
                raise Reject("decode", "UnsupportedFormat", str(error)) from None
    raise Reject("decode", *name_unread(data, _FORMATS))


def decode_image(data: bytes, config: DecodeConfig, wanted: int | None = None) -> Decoded:
    """Decodes an image file to upright RGB.

    Args:
      data: the whole file.
      config: limits.
      wanted: shorter side that the image will be resized to. A JPEG may then be reduced in decoding,
        with its shorter side at least twice that (Pillow's ``reducing_gap=2``). None decodes in full.

    Raises:
      Reject: with every reason there is.
      MachineError: not the image is at fault.
    """
    return decoding(data, config, wanted, lambda decoded: decoded)


def upright_size(data: bytes, config: DecodeConfig) -> tuple[int, int]:
    """Returns width and height of an image as it is shown; pixels are decoded only where a PNG needs it.

    Raises:
      Reject: not an image, or not one that is accepted.
    """
    with contextlib.closing(open_image(data, config)) as image, rejecting("decode"):
        width, height = image.size
        # Pillow would decode any PNG in search of an orientation behind its pixels.
        told = image.format != "PNG" or b"eXIf" in data
        return (height, width) if told and read_orientation(image) >= 5 else (width, height)


class _Opened(NamedTuple):
    """An image about to be loaded.

    Attributes:
      image: opened and checked.
      data: the whole file.
      size: as stored.
      draft: what Pillow says of a JPEG that is reduced in decoding.
      cost: about how many pixels decoding takes in memory.
    """

    image: Image.Image
    data: bytes
    size: tuple[int, int]
    draft: tuple[str, Extent] | None
    cost: int


def _open_for(data: bytes, config: DecodeConfig, wanted: int | None) -> _Opened:
    """Opens an image whose shorter side will be ``wanted`` or None. Raises Reject and MachineError."""
    image = open_image(data, config)
    with rejecting("decode"):
        data, size = png.unwrapped(data), image.size
        image, draft = _drafted(image, data, config, wanted)
        whole = image.info.get("progressive")  # the coefficients of all pixels are kept until the last scan
        width, height = size if whole else image.size
        return _Opened(image, data, size, draft, width * height * -(-config.channels.count // 3))


def _decode(opened: _Opened, config: DecodeConfig) -> Decoded:
    size, draft, raw = opened.size, opened.draft, isinstance(opened.image, (ArrayImage, LayoutImage))
    image = opened.image if raw and not config.channels.is_rgb else _load(opened.image, opened.data)
    if draft is None and image.size != size:  # an icon's directory told another size
        size = image.size
        _check_size(*size, config)
    extent = draft[1] if draft else (0.0, 0.0, float(size[0]), float(size[1]))
    orientation = read_orientation(image)
    rgb = to_rgb(image) if config.channels.is_rgb else to_planes(image, opened.data, config)
    if rgb is not image:
        image.close()
    upright, extent = turn_upright(rgb, extent, orientation)
    return Decoded(upright, *(size if orientation < 5 else size[::-1]), extent)


def _drafted(
    image: Image.Image, data: bytes, config: DecodeConfig, wanted: int | None
) -> tuple[Image.Image, tuple[str, Extent] | None]:
    """Has a large JPEG reduced in decoding; returns it, perhaps opened anew, and what ``draft`` says."""
    if image.format in ("JPEG", "MPO"):
        # Pillow takes what stands in place of missing data, zeros for example, for the data.
        mended = jpeg.with_end(data, config.on_truncated == "decode")
        if mended is not data:
            image.close()
            image = Image.open(io.BytesIO(mended), formats=("JPEG",))
    draft = image.draft(None, (2 * wanted, 2 * wanted)) if wanted and config.jpeg_draft else None
    return image, draft


def _load(image: Image.Image, data: bytes) -> Image.Image:
    """Decodes the pixels of an opened image, and corrects those that Pillow gets wrong."""
    if image.format == "PNG":
        png.mend_transparency(image, data)
    if image.format == "TGA":
        image = with_tga_alpha(image, data)
    if image.format == "JPEG2000":
        image = jpeg.load_deep(image, data)
    image.load()
    return image


def _check_size(width: int, height: int, config: DecodeConfig) -> None:
    """Limits and filters; all are the same for an image and its transpose."""
    area, short, long = width * height, min(width, height), max(width, height)
    size = f"{width}x{height} pixels"
    if area > config.max_pixels:
        raise Reject("decode", "DecompressionBombError", f"{size}; max_pixels is {config.max_pixels:,}")
    if long > _LONGEST_SIDE:
        raise Reject(
            "decode", "DecompressionBombError", f"{size}; no side may have more than {_LONGEST_SIDE:,}"
        )
    if short < config.min_side:
        raise Reject("filter", "TooSmall", f"{size}; min_side is {config.min_side}")
    if config.max_area is not None and area > config.max_area:
        raise Reject("filter", "TooLarge", f"{size}; max_area is {config.max_area:,}")
    if config.max_aspect is not None and long > config.max_aspect * short:
        raise Reject("filter", "TooElongated", f"{size}; max_aspect is {config.max_aspect:g}")


def _check_tiles(image: Image.Image, config: DecodeConfig) -> None:
    """Limits TIFF tiles: one is allocated whole, however small the image that it covers."""
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(_TILE_WIDTH, 1), tags.get(_TILE_LENGTH, 1)
    if isinstance(image, LayoutImage):
        width, height = image.layout.tile or (1, 1)
    if not (isinstance(width, int) and isinstance(height, int) and width * height <= config.max_pixels):
        limit = f"max_pixels is {config.max_pixels:,}"
        raise Reject("decode", "DecompressionBombError", f"tiles of {width}x{height} pixels; {limit}")
