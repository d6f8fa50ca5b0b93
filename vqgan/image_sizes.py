"""Sizes of images: squares by their side, rectangles by height and width; and buckets of such sizes.

A size is one whole number where it is a square, and ``(height, width)`` where it is not, in memory as in
documents: what was written of squares before there were rectangles stays as it was. As a text a rectangle is
``HxW``, height first, as in the shape of an array. Only the standard library is imported here.
"""

import numbers
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from vqgan.errors import UserError

ImageSize = int | tuple[int, int]
"""Side of a square in pixels, or height and width of a rectangle."""
MOST_BUCKETS = 64
_MOST_DIGITS = 9


def shape_of_size(size: ImageSize) -> tuple[int, int]:
    """Returns height and width."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def simplified_size(size: ImageSize) -> ImageSize:
    """Returns a size as it is written: a square as one number."""
    height, width = shape_of_size(size)
    return height if height == width else (height, width)


def check_image_size(name: str, size: ImageSize, most: int) -> None:
    """Checks that both sides lie between 1 and ``most``.

    Raises:
      UserError: one does not; begins with ``name``.
    """
    if not all(1 <= side <= most for side in shape_of_size(size)):
        raise UserError(f"{name} is {describe_size(size)}: it must lie in [1, {most}]")


def describe_size(size: ImageSize) -> str:
    """Returns a size as text: ``256``, or ``256x384`` for 256 rows of 384 pixels."""
    height, width = shape_of_size(size)
    return str(height) if height == width else f"{height}x{width}"


def describe_pixels(size: ImageSize) -> str:
    """Returns a size as part of a message; of a rectangle it says which side is which."""
    height, width = shape_of_size(size)
    return f"{height}x{width} pixels" + ("" if height == width else " (height x width)")


def read_size(name: str, value: Any) -> ImageSize:
    """Reads a size from a number, from height and width in a list, or from a text such as ``256x384``.

    Args:
      name: of the setting, for the message.
      value: as it was given.

    Raises:
      UserError: it is anything else.
    """
    items: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
    if isinstance(value, str):
        items = [_whole_number(part.strip()) for part in value.lower().replace("×", "x").split("x")]
    whole = all(isinstance(item, numbers.Integral) and not isinstance(item, bool) for item in items)
    if not whole or len(items) not in (1, 2):
        raise UserError(
            f"{name} {value!r}: give the side of a square such as 256, or HEIGHTxWIDTH such as 256x384"
        )
    return simplified_size((int(items[0]), int(items[-1])))


def _whole_number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


def sizes_that_fit(height: int, width: int, multiple: int) -> list[ImageSize]:
    """Lists the nearest sizes whose sides are multiples of a number, the smaller ones first."""
    near = [
        sorted({max(multiple, side // multiple * multiple), max(multiple, -(-side // multiple) * multiple)})
        for side in (height, width)
    ]
    if height == width:
        return list(near[0])
    return sorted({(first, second) for first in near[0] for second in near[1]})


def largest_inside(height: int, width: int, size: ImageSize) -> tuple[int, int]:
    """Returns height and width of the largest part of an image that has the aspect of ``size``, rounded."""
    rows, columns = shape_of_size(size)
    if width * rows >= height * columns:
        return height, max(1, round(height * columns / rows))
    return max(1, round(width * rows / columns)), width


# Buckets of aspect ratios


def parse_buckets(name: str, value: Any) -> tuple[ImageSize, ...]:
    """Reads sizes from a list, or from a text such as ``256x256,256x384,384x256``; none from None.

    Args:
      name: of the setting, for messages.
      value: as it was given.

    Raises:
      UserError: one is no size, two have the same aspect, or there are too many.
    """
    if value is None:
        return ()
    items = value.split(",") if isinstance(value, str) else value
    items = list(items) if isinstance(items, (list, tuple)) else [items]
    if len(items) > 1 and items[-1] == "":
        items.pop()  # after a comma at the end
    try:
        sizes = tuple(read_size(name, item) for item in items)
    except UserError as error:
        raise UserError(f"{error}; and a comma between sizes") from error
    if len(sizes) > MOST_BUCKETS:
        raise UserError(f"{name}: {len(sizes)} sizes; give at most {MOST_BUCKETS}")
    for number, size in enumerate(sizes):
        for other in sizes[:number]:
            if _same_aspect(size, other):
                both = f"{describe_bucket(other)} and {describe_bucket(size)}"
                raise UserError(
                    f"{name}: {both} have one aspect ratio, so an image could go to either; leave one out"
                )
    return sizes


def _same_aspect(one: ImageSize, other: ImageSize) -> bool:
    (a, b), (c, d) = shape_of_size(one), shape_of_size(other)
    return a * d == b * c


def describe_bucket(size: ImageSize) -> str:
    """Returns the name of a bucket and of its folder: always ``HxW``, also of a square."""
    return "{}x{}".format(*shape_of_size(size))


def nearest_bucket(width: int, height: int, buckets: Sequence[ImageSize]) -> int:
    """Returns the position of the bucket whose aspect ratio is nearest to that of an image.

    Near by the difference of the logarithms, so that 2:1 is as far from a square as 1:2. Compared as whole
    numbers, so that no rounding decides; of two that are equally near the first one is taken.

    Args:
      width: of the upright image, in pixels.
      height: likewise.
      buckets: at least one size.
    """
    return min(range(len(buckets)), key=lambda number: _distance(width, height, buckets[number]))


def _distance(width: int, height: int, bucket: ImageSize) -> Fraction:
    """Returns how many times longer for its height the one is than the other, at least 1."""
    rows, columns = shape_of_size(bucket)
    sides = (width * rows, height * columns)
    return Fraction(max(sides), min(sides))
