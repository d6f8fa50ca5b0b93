"""Pixels of the views of an image: the resizing that :mod:`transforms.images.crops` laid out."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from transforms.images.crops import FILTERS, Box, Geometry, View, halvings, in_source, lay_out, resized_side

# An image at most this many times as long as it is wide is resized whole, as torchvision does; of a longer
# one only the crops are, since 1x100000 pixels at size 256 would become 256x25600000.
_WHOLE = 8


def render(
    image: Image.Image,
    source_size: tuple[int, int],
    geometry: Geometry,
    views: list[View],
    extent: Box | None = None,
) -> np.ndarray:
    """Returns the pixels of some or all views of an image.

    Args:
      image: upright, mode RGB; may be smaller than the source if the decoder reduced it, as far as
        :func:`~transforms.images.crops.wanted_side` allows.
      source_size: width and height of the source, in pixels.
      geometry: as given to :func:`views`.
      views: what :func:`views` gave, or some of them.
      extent: part of ``image`` that the source covers, in its pixels; None for all of it.

    Returns:
      uint8 ``[len(views), S, S, 3]``.
    """
    canvas = _Canvas(image, source_size, extent or (0.0, 0.0, float(image.width), float(image.height)))
    out = np.empty((len(views), geometry.image_size, geometry.image_size, 3), np.uint8)
    for pixels, view, square in zip(out, views, _squares(canvas, geometry, views), strict=True):
        square_pixels = np.asarray(square)
        pixels[:] = square_pixels[:, ::-1] if view.mirrored else square_pixels
    return out


class _Canvas(NamedTuple):
    """An image whose pixels are addressed in those of its source."""

    image: Image.Image
    source_size: tuple[int, int]
    extent: Box

    def resize(self, size: tuple[int, int], resample: Image.Resampling, box: Box) -> Image.Image:
        """Resizes ``box``, in pixels of the source."""
        left, top, right, bottom = self.extent
        x, y = (right - left) / self.source_size[0], (bottom - top) / self.source_size[1]
        inside = (
            max(0.0, left + box[0] * x),
            max(0.0, top + box[1] * y),
            min(float(self.image.width), left + box[2] * x),
            min(float(self.image.height), top + box[3] * y),
        )
        return self.image.resize(size, resample, inside)


def _squares(canvas: _Canvas, geometry: Geometry, chosen: list[View]) -> list[Image.Image]:
    """Returns the squares of the chosen views, not yet mirrored."""
    size, resample = geometry.image_size, Image.Resampling(FILTERS[geometry.filter])
    if geometry.views == "random-crops":
        return [canvas.resize((size, size), resample, view[1:5]) for view in chosen]
    layout = lay_out(*canvas.source_size, geometry)
    if geometry.filter == "adm":
        canvas = _halved(canvas, resized_side(geometry))
    crops = [layout.crops[view.view] for view in chosen]
    if max(layout.scaled) > _WHOLE * min(layout.scaled) and geometry.resize != "pad":
        return [canvas.resize((size, size), resample, in_source(crop, layout, size)) for crop in crops]
    resized = canvas.resize(layout.scaled, resample, layout.region)
    if geometry.resize == "pad":
        return [_centred_on_white(resized, size)] * len(crops)
    return [resized.crop((left, top, left + size, top + size)) for left, top, _ in crops]


def _halved(canvas: _Canvas, size: int) -> _Canvas:
    """Halves with a box filter while the shorter side is at least twice ``size``."""
    source = canvas.source_size
    for rung in halvings(*source, size):
        image = canvas.resize(rung, Image.Resampling.BOX, (0, 0, *source))
        canvas = _Canvas(image, source, (0, 0, *rung))
    return canvas


def _centred_on_white(image: Image.Image, size: int) -> Image.Image:
    square = Image.new("RGB", (size, size), (255, 255, 255))
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square
