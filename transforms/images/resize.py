"""Pixels of the views of an image: the resizing that :mod:`transforms.images.crops` laid out."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from transforms.images.crops import FILTERS, Box, Geometry, View, halvings, in_source, lay_out, resized_size
from transforms.images.samples import Planes

Picture = Image.Image | Planes

# An image that becomes at most this many times what is wanted of it is resized whole, as torchvision does; of
# a longer one only the crops are, since 1x100000 pixels at size 256 would become 256x25600000.
_WHOLE = 8


def render(
    image: Picture,
    source_size: tuple[int, int],
    geometry: Geometry,
    views: list[View],
    extent: Box | None = None,
) -> np.ndarray:
    """Returns the pixels of some or all views of an image.

    Args:
      image: upright, mode RGB or channels; may be smaller than the source if the decoder reduced it, as far
        as :func:`~transforms.images.crops.wanted_side` allows.
      source_size: width and height of the source, in pixels.
      geometry: as given to :func:`views`.
      views: what :func:`views` gave, or some of them.
      extent: part of ``image`` that the source covers, in its pixels; None for all of it.

    Returns:
      uint8 ``[len(views), H, W, C]``.
    """
    canvas = _Canvas(image, source_size, extent or (0.0, 0.0, float(image.width), float(image.height)))
    out = np.empty((len(views), *geometry.shape, len(image.getbands())), np.uint8)
    for pixels, view, crop in zip(out, views, _crops(canvas, geometry, views), strict=True):
        cropped = np.asarray(crop)
        pixels[:] = cropped[:, ::-1] if view.mirrored else cropped
    return out


class _Canvas(NamedTuple):
    """An image whose pixels are addressed in those of its source."""

    image: Picture
    source_size: tuple[int, int]
    extent: Box

    def resize(self, size: tuple[int, int], resample: Image.Resampling, box: Box) -> Picture:
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


def _crops(canvas: _Canvas, geometry: Geometry, chosen: list[View]) -> list[Picture]:
    """Returns the pixels of the chosen views, not yet mirrored."""
    (height, width), resample = geometry.shape, Image.Resampling(FILTERS[geometry.filter])
    if geometry.views == "random-crops":
        return [canvas.resize((width, height), resample, view[1:5]) for view in chosen]
    layout, target = lay_out(*canvas.source_size, geometry), resized_size(geometry)
    if geometry.filter == "adm":
        canvas = _halved(canvas, target)
    crops = [layout.crops[view.view] for view in chosen]
    if math.prod(layout.scaled) > _WHOLE * math.prod(target) and geometry.resize != "pad":
        boxes = [in_source(crop, layout, geometry.shape) for crop in crops]
        return [canvas.resize((width, height), resample, box) for box in boxes]
    resized = canvas.resize(layout.scaled, resample, layout.region)
    if geometry.resize == "pad":
        return [_centred_on_white(resized, (width, height))] * len(crops)
    return [resized.crop((left, top, left + width, top + height)) for left, top, _ in crops]


def _halved(canvas: _Canvas, target: tuple[int, int]) -> _Canvas:
    """Halves with a box filter while both sides are at least twice those of ``target``."""
    source = canvas.source_size
    for rung in halvings(*source, target):
        image = canvas.resize(rung, Image.Resampling.BOX, (0, 0, *source))
        canvas = _Canvas(image, source, (0, 0, *rung))
    return canvas


def _centred_on_white(image: Picture, size: tuple[int, int]) -> Picture:
    corner = (size[0] - image.width) // 2, (size[1] - image.height) // 2
    if isinstance(image, Planes):
        return image.padded(size, corner)
    white = Image.new("RGB", size, (255, 255, 255))
    white.paste(image, corner)
    return white
