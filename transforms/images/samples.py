"""Samples of a file as a codec's channels where they are not RGB; see :class:`vqgan.channels.ChannelsConfig`.

=========  =========================================================================================
channels   are taken from
=========  =========================================================================================
1          grey images, also those stored as RGB; alpha over white; colour only where it may become grey
2, 4       grey or RGB of any image with its alpha, which is opaque where it has none
1 to 16    TIFF (grey or RGB, with as many samples) and NumPy's ``.npy``, ``[H, W, C]`` or ``[H, W]``
=========  =========================================================================================

Samples become levels of 256 by the codec's ranges. Each channel is then resized by itself, alpha too.
"""

from typing import Any

import numpy as np
from PIL import Image, ImageChops

from transforms.images.color import to_rgb
from transforms.images.config import DecodeConfig
from transforms.images.layouts import LayoutImage, read_samples
from transforms.images.npy import ArrayImage, ChannelsError
from vqgan.channels import ChannelsConfig, Range

_DEEP_GREY = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


class Planes:
    """An image of any number of channels, with what resizing and cropping want of Pillow's images."""

    def __init__(self, planes: list[Image.Image]) -> None:
        """Takes channels of mode L, all of one size."""
        self._planes = planes
        self.width, self.height = self.size = planes[0].size

    def getbands(self) -> tuple[str, ...]:
        """Returns a name for each channel."""
        return tuple(str(number) for number in range(len(self._planes)))

    def resize(self, *arguments: Any) -> "Planes":
        """Resizes each channel by itself."""
        return Planes([plane.resize(*arguments) for plane in self._planes])

    def crop(self, box: tuple[int, int, int, int]) -> "Planes":
        """Cuts a part out."""
        return Planes([plane.crop(box) for plane in self._planes])

    def transpose(self, method: Image.Transpose) -> "Planes":
        """Turns or mirrors all channels."""
        return Planes([plane.transpose(method) for plane in self._planes])

    def padded(self, size: tuple[int, int], corner: tuple[int, int]) -> "Planes":
        """Puts the image on a larger one whose samples are all the highest."""
        grounds = [Image.new("L", size, 255) for _ in self._planes]
        for ground, plane in zip(grounds, self._planes, strict=True):
            ground.paste(plane, corner)
        return Planes(grounds)

    def close(self) -> None:
        """Frees the pixels."""
        for plane in self._planes:
            plane.close()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.stack([np.asarray(plane) for plane in self._planes], axis=-1).astype(dtype or np.uint8)


def to_planes(image: Image.Image, data: bytes, config: DecodeConfig) -> Planes:
    """Returns an opened image's channels, as stored: not yet upright.

    Args:
      image: opened, and loaded unless its samples are read from the file.
      data: the whole file.
      config: what channels are wanted.

    Raises:
      ChannelsError: the image has others.
      Exception: whatever decoders raise where the file is damaged.
    """
    channels = config.channels
    _check_number(image, config)
    samples, top = _samples(image, data, channels)
    if samples is None:
        planes = _from_colours(image, channels.count, config.colour)
        if not channels.ranges:
            return Planes(planes)
        samples, top = np.stack([np.asarray(plane) for plane in planes], axis=-1), 255
    return Planes([Image.fromarray(plane) for plane in levels_of(samples, channels, top)])


def levels_of(samples: np.ndarray, channels: ChannelsConfig, top: int = 0) -> list[np.ndarray]:
    """Returns the levels of samples ``[H, W, C]``: uint8 ``[H, W]`` for each channel.

    Args:
      samples: of any numbers.
      channels: their ranges.
      top: the most that they can be, for those without ranges; 0 if it is unknown.

    Raises:
      ChannelsError: no range is known, or samples are not finite.
    """
    if not channels.ranges and not top:
        raise ChannelsError(f"samples of type {samples.dtype}: state their range with model.channels.ranges")
    pairs = channels.ranges or ((0.0, float(top)),) * channels.count
    return [_to_levels(samples[..., number], pair) for number, pair in enumerate(pairs)]


def _check_number(image: Image.Image, config: DecodeConfig) -> None:
    """Refuses more samples than as many pixels of three have as there may be."""
    count = image.layout.samples if isinstance(image, LayoutImage) else config.channels.count
    if image.width * image.height * count > 3 * config.max_pixels:
        raise ChannelsError(f"{image.width}x{image.height} pixels of {count} samples: more than max_pixels")


def _samples(image: Image.Image, data: bytes, channels: ChannelsConfig) -> tuple[np.ndarray | None, int]:
    """Returns samples ``[H, W, C]`` and the most that they can be, 0 if unknown; None for colours."""
    if isinstance(image, ArrayImage):
        found = image.samples
        if found.shape[2] != channels.count:
            raise ChannelsError(f"an array of {found.shape[2]} channels where {channels.count} are wanted")
        return found, int(np.iinfo(found.dtype).max) if found.dtype.kind == "u" else 0
    if isinstance(image, LayoutImage):
        layout = image.layout
        kinds = ("grey", "rgb") if channels.count > 2 else ("grey",)
        if layout.samples == channels.count and layout.photometric in kinds:
            return read_samples(data, layout), (1 << layout.bits) - 1 if layout.kind == "u" else 0
        if channels.count in (2, 4) and layout.alpha is not None:
            raise ChannelsError(f"a TIFF of {layout.samples} samples where {channels.count} are wanted")
    elif image.mode in _DEEP_GREY and channels.count == 1:
        values = np.asarray(image)[..., None]
        return values, 0 if image.mode == "F" else 65535
    return None, 0


def _to_levels(values: np.ndarray, pair: Range) -> np.ndarray:
    """Spreads 256 levels over a range; uint8 of the same shape."""
    low, high = pair
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return np.ascontiguousarray(values)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ChannelsError("samples that are not finite")
    with np.errstate(over="ignore"):  # what is too large for the sum is beyond the range, too
        scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _from_colours(image: Image.Image, count: int, colour: str) -> list[Image.Image]:
    """Returns channels of an image that Pillow knows; alpha is opaque where it has none."""
    if count > 4:
        raise ChannelsError(f"a picture ({image.mode}) where {count} channels are wanted: give TIFF or .npy")
    if count in (1, 3):
        rgb = to_rgb(image)
        return [_to_grey(rgb, colour)] if count == 1 else list(rgb.split())
    plain = image.convert("LA") if image.mode == "La" else image
    has_alpha = image.has_transparency_data and image.mode not in _DEEP_GREY
    *colours, alpha = (plain if has_alpha else to_rgb(image)).convert("RGBA").split()
    return [*colours, alpha] if count == 4 else [_to_grey(Image.merge("RGB", colours), colour), alpha]


def _to_grey(rgb: Image.Image, colour: str) -> Image.Image:
    red, green, blue = rgb.split()
    if not any(ImageChops.difference(red, other).getbbox() for other in (green, blue)):
        return red
    if colour != "grey":
        raise ChannelsError(
            "a colour image where grey is wanted; colour=grey lets it become grey (ITU-R 601)"
        )
    return rgb.convert("L")
