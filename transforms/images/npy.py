"""NumPy's arrays in files (``.npy``) as images of any number of channels, ``[H, W, C]`` or ``[H, W]``.

The layout is that of NumPy's enhancement proposal 1. Nothing of a header is evaluated: it is compared with
the form that NumPy writes. Objects, which would be pickles, are no numbers and refused like all else.
"""

import io
import math
import re
from typing import Any

import numpy as np
from PIL import Image

from vqgan.channels import ChannelsConfig

ARRAY_PREFIX = b"\x93NUMPY"
_LONGEST_HEADER = 1 << 12
_HEADER = re.compile(
    r"\{'descr': '([<>|=])([uif])([1248])', 'fortran_order': (True|False), "
    r"'shape': \((\d{1,9}), (\d{1,9})(?:, (\d{1,3}))?,?\),? *\} *\n"
)


class ChannelsError(ValueError):
    """The image has other channels than the codec, or samples without a known range."""


class ArrayImage(Image.Image):
    """A NumPy array, not copied until its samples are asked for. It has no colours that Pillow knows."""

    def __init__(self, data: bytes) -> None:
        """Reads the header.

        Raises:
          ChannelsError: it is damaged, of no numbers, or tells of another length than the file's.
        """
        super().__init__()
        start, dtype, shape, order = _read_header(data)
        if len(data) - start != math.prod(shape) * dtype.itemsize or not math.prod(shape):
            raise ChannelsError("a NumPy array whose header tells of another length than the file has")
        values = np.frombuffer(data, dtype, offset=start).reshape(shape, order=order)
        self.samples = values.reshape(*shape[:2], -1) if len(shape) == 2 else values
        self.format, self._mode, self._size = "NPY", "L", (shape[1], shape[0])

    def load(self) -> Any:
        """Refuses to be a picture."""
        raise ChannelsError("a NumPy array has samples and no colours")


def _read_header(data: bytes) -> tuple[int, np.dtype[Any], tuple[int, ...], Any]:
    """Returns where the values begin, their type, shape, and ``C`` or ``F`` order."""
    version, width = data[6:7], 2 if data[6:7] == b"\1" else 4
    length = int.from_bytes(data[8 : 8 + width], "little")
    start = 8 + width + length
    found = (
        _HEADER.fullmatch(data[8 + width : start].decode("latin-1")) if length <= _LONGEST_HEADER else None
    )
    if version not in (b"\1", b"\2", b"\3") or found is None or start > len(data):
        raise ChannelsError("a NumPy array of another kind than numbers [H, W] or [H, W, C]")
    byte_order, kind, size, is_fortran, *sides = found.groups()
    if kind == "f" and size == "1":
        raise ChannelsError("a NumPy array of floats of 8 bits")
    shape = tuple(int(side) for side in sides if side is not None)
    return start, np.dtype(f"{byte_order}{kind}{size}"), shape, "F" if is_fortran == "True" else "C"


def write_array(pixels: np.ndarray) -> bytes:
    """Returns an array as a ``.npy`` file's bytes."""
    sink = io.BytesIO()
    np.lib.format.write_array(sink, np.ascontiguousarray(pixels), allow_pickle=False)
    return sink.getvalue()


def to_values(levels: np.ndarray, channels: ChannelsConfig) -> np.ndarray:
    """Returns levels ``[..., C]`` as the source's values, float32, if ranges say which, else as they are."""
    if not channels.ranges:
        return levels
    low, high = np.asarray(channels.ranges, np.float64).T
    return (levels * ((high - low) / 255) + low).astype(np.float32)
