"""Crop, resize and views: from an image of any size to squares or rectangles of one size.

:func:`views` says which part of the source each row shows, from the size alone;
:func:`transforms.images.resize.render` makes the pixels. Boxes are in pixels of the upright full-size
source, whatever the decoder reduced.
"""

import dataclasses
import functools
import hashlib
import math
from typing import NamedTuple

from vqgan.errors import UserError
from vqgan.image_sizes import ImageSize, check_image_size, largest_inside, shape_of_size, simplified_size

RESIZES = ("center-crop", "resize-crop", "stretch", "pad")
FILTERS = {"lanczos": 1, "bicubic": 3, "box": 4, "adm": 3}
"""Name to Pillow's number (``Image.Resampling``), so that reading a configuration does not load Pillow."""
VIEWS = ("none", "hflip", "ten-crop", "random-crops")

MOST_SIDE = 8192

Box = tuple[float, float, float, float]
"""left, top, right, bottom."""


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How an image becomes squares, or rectangles of one height and width.

    Attributes:
      image_size: side of the squares in pixels, or height and width of the rectangles.
      resize: ``center-crop`` resizes the largest centred square, or rectangle of that aspect;
        ``resize-crop`` resizes the shorter side, or what covers the rectangle, and then crops the centre
        (torchvision's Resize and CenterCrop); ``stretch`` ignores the aspect; ``pad`` fits the whole image
        inside, centred on white.
      filter: ``lanczos``, ``bicubic`` or ``box``, always antialiased, or ``adm``: halved with a box filter
        while both sides are at least twice the target, then bicubic, then cropped
        (``center_crop_arr`` of guided-diffusion, arXiv 2105.05233).
      views: rows per image. ``none``: 1. ``hflip``: 2, plain and mirrored. ``ten-crop``: 10, the four
        corners and the centre, then those of the mirrored image, as torchvision's TenCrop orders them.
        ``random-crops``: crops of that aspect, of random size and place, in place of ``resize``.
      crop_range: for ten-crop; the shorter side is first resized to ``int(image_size * crop_range)``.
        With center-crop the corners are those of the centred crop, with resize-crop those of the whole
        image. ``filter="adm"`` and center-crop give LlamaGen's ten-crop (arXiv 2406.06525).
      random_crops: number of random crops.
      min_crop: smallest random crop, as a share of the largest one's side: of squares the shorter side.
      seed: of the random crops.
    """

    image_size: ImageSize = 256
    resize: str = "center-crop"
    filter: str = "lanczos"
    views: str = "none"
    crop_range: float = 1.1
    random_crops: int = 4
    min_crop: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("resize", self.resize, RESIZES)
        _one_of("filter", self.filter, tuple(FILTERS))
        _one_of("views", self.views, VIEWS)
        check_image_size("geometry.image_size", self.image_size, MOST_SIDE)
        object.__setattr__(self, "image_size", simplified_size(self.image_size))
        _within("crop_range", self.crop_range, 1, 8)
        _within("random_crops", self.random_crops, 1, 256)
        if not 0 < self.min_crop <= 1:
            raise UserError(f"geometry.min_crop is {self.min_crop}: it must lie in (0, 1]")
        crops = self.resize in ("center-crop", "resize-crop")
        if self.filter == "adm" and not crops:
            raise UserError(f"geometry.filter 'adm' crops, so it does not go with resize {self.resize!r}")
        if self.views == "ten-crop" and not crops:
            raise UserError(f"geometry.views 'ten-crop' does not go with resize {self.resize!r}")
        if self.views == "random-crops" and (self.resize != "center-crop" or self.filter == "adm"):
            raise UserError(
                "geometry.views 'random-crops' replaces the resize: leave resize at 'center-crop' and choose "
                "a filter other than 'adm'"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Returns height and width of the views in pixels."""
        return shape_of_size(self.image_size)


class View(NamedTuple):
    """What one row shows of its image.

    Attributes:
      view: number of the view, 0 to 255.
      left: first column of the source that is shown; likewise ``top``.
      top: see ``left``.
      right: column after the last that is shown; likewise ``bottom``.
      bottom: see ``right``.
      mirrored: the row shows the box flipped left to right.
    """

    view: int
    left: int
    top: int
    right: int
    bottom: int
    mirrored: bool


class Crop(NamedTuple):
    """Where a view lies in the resized image, and whether it is flipped after cropping."""

    left: int
    top: int
    mirrored: bool


class CropLayout(NamedTuple):
    """One resize and the crops cut from it: ``region`` of the source becomes ``scaled`` pixels."""

    region: tuple[int, int, int, int]
    scaled: tuple[int, int]
    crops: list[Crop]


def count_views(geometry: Geometry) -> int:
    """Returns rows that one image gives."""
    counts = {"none": 1, "hflip": 2, "ten-crop": 10, "random-crops": geometry.random_crops}
    return counts[geometry.views]


def wanted_side(geometry: Geometry) -> int | None:
    """Returns the least shorter side that a whole image needs, which tells how far a decoder may reduce it.

    None asks for every pixel: the adm filter is chosen for the sake of exactly its pixels.
    """
    if geometry.filter == "adm":
        return None
    if geometry.views == "random-crops":
        return math.ceil(max(geometry.shape) / geometry.min_crop)
    return max(resized_size(geometry))


def views(width: int, height: int, geometry: Geometry, key: str) -> list[View]:
    """Returns the views of an image, from its size and key alone.

    For center-crop, stretch and random crops the box is exactly what is resized, so that
    ``image.resize((W, H), filter, box)`` gives the pixels again. With resize-crop, ten-crop or the adm
    filter the crop is cut after resizing: the box is its outline in the source, rounded to pixels. For pad
    it is the whole image.

    Args:
      width: of the upright source, in pixels.
      height: likewise.
      geometry: what to cut.
      key: of the example; random crops depend on it, the seed and the view number, and on nothing else.

    Returns:
      Views in order of their number. Boxes are never empty and never leave the image.
    """
    if geometry.views == "random-crops":
        return [_random_view(width, height, geometry, key, view) for view in range(geometry.random_crops)]
    layout = lay_out(width, height, geometry)
    if geometry.resize == "pad":
        return [View(n, 0, 0, width, height, crop.mirrored) for n, crop in enumerate(layout.crops)]
    return [
        View(n, *_whole_pixels(in_source(crop, layout, geometry.shape), width, height), crop.mirrored)
        for n, crop in enumerate(layout.crops)
    ]


@functools.lru_cache(maxsize=256)  # asked for twice an image, and images of a corpus are often of few sizes
def lay_out(width: int, height: int, geometry: Geometry) -> CropLayout:
    """Returns what is resized to which size, and the crops cut from it (all but random crops)."""
    target = resized_size(geometry)
    region, scaled = (0, 0, width, height), target
    if geometry.filter == "adm":
        scaled = _adm_size(width, height, target)
    elif geometry.resize == "center-crop":
        region = _centred(width, height, target[::-1])
    elif geometry.resize == "resize-crop":
        scaled = _covering(width, height, target)
    elif geometry.resize == "pad":
        scaled = _fit_inside(width, height, target)
    return CropLayout(region, scaled, _crops(scaled, geometry))


def _crops(scaled: tuple[int, int], geometry: Geometry) -> list[Crop]:
    (height, width), target = geometry.shape, resized_size(geometry)
    if geometry.views == "ten-crop":
        if geometry.resize == "resize-crop":
            return _ten_crop(*scaled, width, height)
        left, top = (scaled[0] - target[0]) // 2, (scaled[1] - target[1]) // 2
        return [Crop(left + x, top + y, mirrored) for x, y, mirrored in _ten_crop(*target, width, height)]
    if geometry.filter == "adm":
        left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    else:
        left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    return [Crop(left, top, mirrored) for mirrored in (False, True)[: count_views(geometry)]]


def _ten_crop(width: int, height: int, crop_width: int, crop_height: int) -> list[Crop]:
    """Returns torchvision's TenCrop: a mirrored crop is described where it lies before mirroring."""
    right, bottom = width - crop_width, height - crop_height
    five = [(0, 0), (right, 0), (0, bottom), (right, bottom), (round(right / 2), round(bottom / 2))]
    return [Crop(x, y, False) for x, y in five] + [Crop(right - x, y, True) for x, y in five]


def resized_size(geometry: Geometry) -> tuple[int, int]:
    """Returns the width and height that resizing has to fill."""
    height, width = geometry.shape
    if geometry.views == "ten-crop":
        return int(width * geometry.crop_range), int(height * geometry.crop_range)
    return width, height


def _centred(width: int, height: int, size: ImageSize) -> tuple[int, int, int, int]:
    crop_height, crop_width = largest_inside(height, width, size)
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def _covering(width: int, height: int, target: tuple[int, int]) -> tuple[int, int]:
    """Returns torchvision's rounding: the side that is cropped is truncated."""
    if width * target[1] <= height * target[0]:
        return target[0], int(target[0] * height / width)
    return int(target[1] * width / height), target[1]


def _fit_inside(width: int, height: int, target: tuple[int, int]) -> tuple[int, int]:
    if width * target[1] <= height * target[0]:
        return max(1, round(target[1] * width / height)), target[1]
    return target[0], max(1, round(target[0] * height / width))


def _adm_size(width: int, height: int, target: tuple[int, int]) -> tuple[int, int]:
    """Returns guided-diffusion's rounding, which starts from the size after halving."""
    for rung in halvings(width, height, target):
        width, height = rung
    scale = max(target[0] / width, target[1] / height)
    return round(width * scale), round(height * scale)


def halvings(width: int, height: int, target: tuple[int, int]) -> list[tuple[int, int]]:
    """Lists the sizes that an image takes while halving keeps both sides at those of ``target`` or more."""
    rungs = []
    while width >= 2 * target[0] and height >= 2 * target[1]:
        width, height = width // 2, height // 2
        rungs.append((width, height))
    return rungs


def in_source(crop: Crop, layout: CropLayout, shape: tuple[int, int]) -> Box:
    """Returns a crop of the resized image, of height and width ``shape``, in pixels of the source."""
    left, top, right, bottom = layout.region
    x, y = (right - left) / layout.scaled[0], (bottom - top) / layout.scaled[1]
    return (
        left + crop.left * x,
        top + crop.top * y,
        left + (crop.left + shape[1]) * x,
        top + (crop.top + shape[0]) * y,
    )


def _whole_pixels(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    left, right = _whole_interval(box[0], box[2], width)
    top, bottom = _whole_interval(box[1], box[3], height)
    return left, top, right, bottom


def _whole_interval(low: float, high: float, length: int) -> tuple[int, int]:
    """Returns both ends rounded, but at least one pixel and within 0 to ``length``."""
    first = min(max(round(low), 0), length - 1)
    return first, min(max(round(high), first + 1), length)


def _random_view(width: int, height: int, geometry: Geometry, key: str, view: int) -> View:
    """Gives a crop from a keyed hash: four independent 64-bit fractions give side, place and mirroring."""
    text = f"{geometry.seed}\0{view}\0{key}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(text, digest_size=32).digest()
    a, b, c, d = (int.from_bytes(digest[i : i + 8], "little") for i in range(0, 32, 8))
    share = geometry.min_crop + (1 - geometry.min_crop) * a / 2**64
    largest = largest_inside(height, width, geometry.shape)
    crop_height, crop_width = (min(max(1, round(side * share)), side) for side in largest)
    left, top = b * (width - crop_width + 1) >> 64, c * (height - crop_height + 1) >> 64
    return View(view, left, top, left + crop_width, top + crop_height, bool(d & 1))


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"geometry.{name} is {value!r}: choose one of {', '.join(known)}")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"geometry.{name} is {value}: it must lie in [{low}, {high}]")
