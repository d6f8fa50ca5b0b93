"""Every Pillow mode to RGB, in one defined way, and which way up an image is meant to be seen (EXIF).

=====================================  =====================================================
mode                                   becomes
=====================================  =====================================================
RGB, RGBX, L, 1, P                     itself; grey repeated; palette looked up
alpha (RGBA, LA, PA, RGBa, La, tRNS)   composited over white
CMYK, YCbCr, HSV                       Pillow's conversion (no profile)
LAB                                    sRGB through LittleCMS, perceptual, D50
I;16 (all byte orders)                 value / 257, rounded
I                                      clipped to 0..65535, then as I;16
F                                      times 255 if all values lie in [0, 1], else clipped to 0..255
=====================================  =====================================================
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin

# Conversions with several intermediate copies run on bands of about this many pixels, so that an image as
# large as the decoder allows takes little more memory than itself and its RGB form.
BAND = 1 << 22


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns a loaded image of any mode as RGB of the same size; the same object if it is plain RGB already.

    Raises:
      ValueError: floating-point pixels that are not finite, or a mode without a conversion.
    """
    convert = _band_conversion(image)
    if convert is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    rows = max(1, BAND // image.width)
    if rows >= image.height:
        return convert(image)
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(convert(band), (0, top))
    return result


def _band_conversion(image: Image.Image) -> Callable[[Image.Image], Image.Image] | None:
    """Gives the conversion of a mode that Pillow's ``convert("RGB")`` does not treat as promised here."""
    if image.mode == "F":
        return functools.partial(_from_float, scale=_float_scale(image))
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_deep_grey
    if image.mode == "LAB":
        return _from_lab
    return _over_white if image.has_transparency_data else None


def _over_white(image: Image.Image) -> Image.Image:
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
    return white


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Turns 16-bit values to L; the one value that a PNG may declare transparent turns white."""
    values = np.asarray(image)
    if image.mode == "I":
        values = np.clip(values, 0, 65535)
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _float_scale(image: Image.Image) -> float:
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("floating-point pixels that are not finite")
    return 255.0 if low >= 0 and high <= 1 else 1.0


def _from_float(image: Image.Image, scale: float) -> Image.Image:
    values = np.clip(np.asarray(image) * np.float32(scale), 0, 255)
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")


def _from_lab(image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, _lab_to_srgb())
    assert converted is not None
    return converted


@functools.cache
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")


Extent = tuple[float, float, float, float]
"""left, top, right, bottom, in pixels of an image."""

# The transposition that turns pixels stored with each orientation upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_orientation(image: Image.Image) -> int:
    """Returns orientation 1 to 8 that is left to apply to a loaded image, from EXIF or else XMP.

    Damaged metadata counts as upright, as do values that the standard does not define: they say nothing
    about the pixels. TIFF images are upright already, since Pillow turns them in loading.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - damaged metadata makes Pillow raise almost anything
        return 1
    # The standard wants a SHORT, but writers store bytes and other numbers, and viewers follow them.
    if isinstance(value, bytes) and len(value) == 1:
        value = value[0]
    whole = isinstance(value, (int, float, TiffImagePlugin.IFDRational)) and value in _UPRIGHT
    return int(value) if whole else 1


def turn_upright(image: Any, extent: Extent, orientation: int) -> tuple[Any, Extent]:
    """Turns stored pixels, and an extent in them, upright. The given image is closed if it is replaced.

    Args:
      image: pixels as stored, Pillow's or channels.
      extent: a box in ``image``.
      orientation: 1 to 8.
    """
    if orientation == 1:
        return image, extent
    left, top, right, bottom = extent
    if orientation in (2, 3, 7, 8):
        left, right = image.width - right, image.width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = image.height - bottom, image.height - top
    turned = image.transpose(_UPRIGHT[orientation])
    image.close()
    return turned, (left, top, right, bottom) if orientation < 5 else (top, left, bottom, right)
