"""How far a run is: counted by workers, shown by the launcher while both share a process."""

import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from vqgan.errors import counted
from vqgan.extras import progress_bar

PLAIN_INTERVAL = 10.0  # seconds between lines where nobody watches a terminal


class Progress:
    """Counts images and rejects, and shows rate and time left.

    On a terminal and in a notebook it is one line that changes; elsewhere a plain line now and then.
    """

    def __init__(self, total: int, stream: TextIO | None = None, quiet: bool = False):
        self.images = 0
        self.rejects = 0
        self._under_way = 0.0
        self._total = total
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._lock = threading.Lock()
        self._started = self._last_line = time.monotonic()
        self._bar = None if quiet else progress_bar(self._stream, total=total, unit="img")

    def __call__(self, images: int, rejects: int) -> None:
        """Counts what has been done since the last call."""
        with self._lock:
            self.images += images
            self.rejects += rejects
            self._under_way = 0.0
            if self._bar is not None:
                self._bar.set_postfix(rejects=self.rejects, refresh=False)
                self._bar.update(images + rejects)
            else:
                self._print_now_and_then(self.line)

    def under_way(self, images: int, unit: str, done: int, total: int) -> None:
        """Tells how far the images are that are counted next, where they take long.

        Args:
          images: how many they are.
          unit: what they consist of, such as ``tokens``.
          done: so many of each image are there.
          total: so many each will have.
        """
        what = f"{done} of {total} {unit} of the next {counted(images, 'image')}"
        with self._lock:
            self._under_way = images * done / total
            if self._bar is not None:
                self._bar.set_postfix_str(f"{what}, {self._seconds_left():.0f} s left")
            else:
                self._print_now_and_then(lambda: f"{self.line()}; {what}")

    def line(self) -> str:
        """Returns ``120 of 400 images, 35.2 images/s, 8 s left, 2 rejects``."""
        rate, left = self._rate(), self._seconds_left()
        rejects, done = counted(self.rejects, "reject"), self.images + self.rejects
        return f"{done} of {self._total} images, {rate:.1f} images/s, {left:.0f} s left, {rejects}"

    def _done(self) -> float:
        return self.images + self.rejects + self._under_way

    def _rate(self) -> float:
        return self._done() / max(time.monotonic() - self._started, 1e-9)

    def _seconds_left(self) -> float:
        rate = self._rate()
        return (self._total - self._done()) / rate if rate else float("inf")

    def _print_now_and_then(self, line: Callable[[], str]) -> None:
        if not self._quiet and time.monotonic() - self._last_line >= PLAIN_INTERVAL:
            self._last_line = time.monotonic()
            print(line(), file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the changing line."""
        if self._bar is not None:
            self._bar.close()


_lock = threading.Lock()
_current: Progress | None = None


def show(progress: Progress | None) -> None:
    """Makes ``progress`` the one that workers in this process report to."""
    global _current
    with _lock:
        _current = progress


def is_shown() -> bool:
    """Tells whether the launcher of a run is in this process."""
    return _current is not None


def report(images: int, rejects: int) -> None:
    """Reports to the process's progress, if there is one; on a remote worker there is none."""
    current = _current
    if current is not None:
        current(images, rejects)
