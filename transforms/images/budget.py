"""How many pixels are being decoded at once, over all threads of a process, and what if memory runs out."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from vqgan.faults import MachineError

PIXELS = 178_956_970
"""As many as the largest image may have by default; decoding takes about 4 to 12 bytes for each."""
_PIXEL_BYTES = 16
_SMALL = 1 << 22

T = TypeVar("T")


class PixelBudget:
    """Lets threads decode as long as their pixels together stay within a sum; others wait.

    Whoever asks for more than there is at all waits until nobody else decodes, and gets all of it. Nobody is
    overtaken for ever: one thread waits for pixels at a time, the others wait for it.
    """

    def __init__(self, pixels: int = PIXELS) -> None:
        self.pixels = pixels
        self._free = pixels
        self._first = threading.Lock()
        self._returned = threading.Condition()

    @contextlib.contextmanager
    def spending(self, pixels: int) -> Iterator[None]:
        """Holds so many pixels while the block lasts; the block must not ask for more."""
        wanted = min(pixels, self.pixels)
        with self._first, self._returned:
            self._returned.wait_for(lambda: self._free >= wanted)
            self._free -= wanted
        try:
            yield
        finally:
            with self._returned:
                self._free += wanted
                self._returned.notify()


AT_ONCE = PixelBudget()
"""What the threads of this process share."""


def with_memory(attempt: Callable[[int], T], stated: Callable[[], int]) -> T:
    """Decodes, and once more while nobody else does where memory has run out.

    If it runs out again, though there is memory for several times the pixels that the image states, the image
    asks for what it does not state.

    Args:
      attempt: decodes with at least so many pixels of the budget.
      stated: gives the number of pixels that the image states.

    Raises:
      MemoryError: the image is at fault.
      MachineError: the machine is.
    """
    try:
        return attempt(0)
    except MachineError as error:
        if not isinstance(error.__cause__, MemoryError):
            raise
    try:
        return attempt(AT_ONCE.pixels)
    except MachineError as error:
        if not isinstance(error.__cause__, MemoryError) or not _has_memory(stated()):
            raise
    raise MemoryError("it takes more memory than its pixels do")


def _has_memory(pixels: int) -> bool:
    try:
        np.empty(_PIXEL_BYTES * max(pixels, _SMALL), np.uint8)
    except MemoryError:
        return False
    return True
