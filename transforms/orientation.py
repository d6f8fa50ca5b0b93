"""EXIF orientation: which way up a photograph is meant to be seen (CIPA DC-008, tag 0x0112)."""

from PIL import ExifTags, Image

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
    """Orientation 1 to 8 that is left to apply to a loaded image, from EXIF or else XMP.

    Damaged metadata counts as upright, as do values that the standard does not define: they say nothing
    about the pixels. TIFF images are upright already, since Pillow turns them in loading.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def turn_upright(image: Image.Image, extent: Extent, orientation: int) -> tuple[Image.Image, Extent]:
    """Turns stored pixels, and an extent in them, upright. The given image is closed if it is replaced.

    Args:
      image: pixels as stored.
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
