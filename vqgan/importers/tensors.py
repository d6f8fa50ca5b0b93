"""Tensors of foreign files: described at once, read only when asked for."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from vqgan.errors import UserError

# A tensor that repeats few numbers (stride 0) may claim more memory than its file has; up to here it may.
MAX_REPEATED_BYTES = 64 << 20
MAX_DIMENSIONS = 8


class DamagedError(ValueError):
    """A file says something that no such file can say. The message goes on from "it"."""


@dataclass(frozen=True)
class Tensor:
    """One array of a checkpoint.

    Attributes:
      shape: its shape.
      dtype: type of the stored numbers.
      read: reads it; nothing is kept.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], np.ndarray]


def in_memory(array: np.ndarray) -> Tensor:
    """Wraps an array that is held already."""
    return Tensor(array.shape, array.dtype, lambda: array)


def dtype_named(name: str) -> np.dtype[Any]:
    """Returns NumPy's type of that name, ``bfloat16`` included.

    Raises:
      DamagedError: no type of plain numbers has that name.
    """
    if name == "bfloat16":
        return np.dtype(ml_dtypes.bfloat16)
    try:
        dtype = np.dtype(name)
    except Exception as error:  # NumPy's parser of names raises many types
        raise DamagedError(f"no number type {name!r:.60}") from error
    if dtype.kind not in "fiubc" or dtype.fields is not None or dtype.subdtype is not None:
        raise DamagedError(f"{name!r:.60} is no type of plain numbers")
    return dtype


def check_shape(shape: Any, strides: Any = None) -> tuple[int, ...]:
    """Checks that ``shape`` is one of non-negative integers and returns it as a tuple.

    Raises:
      DamagedError: it is none, or ``strides`` do not go with it.
    """
    for numbers in (shape, () if strides is None else strides):
        if not isinstance(numbers, (tuple, list)) or len(numbers) > MAX_DIMENSIONS:
            raise DamagedError(f"{shown(numbers)} is no shape")
        if any(type(number) is not int or not 0 <= number < 1 << 48 for number in numbers):
            raise DamagedError(f"{', '.join(map(shown, numbers))} is no shape")
    if strides is not None and len(strides) != len(shape):
        raise DamagedError("shape and strides differ in length")
    return tuple(shape)


def strided_extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Counts the numbers from the first to the last one that a strided tensor touches."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def check_repeats(shape: tuple[int, ...], extent: int, itemsize: int) -> None:
    """Refuses a shape that claims far more memory than the numbers it is made of.

    Raises:
      DamagedError: it does.
    """
    count = math.prod(shape)
    if count > extent and count * itemsize > MAX_REPEATED_BYTES:
        raise DamagedError(f"shape {shape} repeats {extent} numbers into {count}")


def shown(value: Any) -> str:
    """Returns a value in a message: short, and never by way of something that may be nested without end."""
    return f"{value!r:.40}" if isinstance(value, (int, float, str, bytes)) else type(value).__name__


def as_float32(array: np.ndarray, name: str, where: str) -> np.ndarray:
    """Converts an array to contiguous float32.

    Raises:
      UserError: a number is not finite; the file is damaged, or training had diverged.
    """
    if array.dtype.kind == "c":
        raise UserError(f"{where}: {name} holds complex numbers; a VQGAN has none")
    with np.errstate(over="ignore", invalid="ignore"):
        result = np.ascontiguousarray(array, dtype=np.float32)
        # A sum is finite only if all terms are, but for overflow, which the slow way then rules out.
        finite = bool(np.isfinite(np.sum(result)))
    if not finite and not np.isfinite(result).all():
        raise UserError(f"{where}: {name} holds numbers that are not finite; download the file again")
    return result
