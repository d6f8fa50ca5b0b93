"""How far a run is: counted by workers, shown by the launcher while both share a process."""

import sys
import threading
import time
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
            if self._bar is not None:
                self._bar.set_postfix(rejects=self.rejects, refresh=False)
                self._bar.update(images + rejects)
            elif not self._quiet and time.monotonic() - self._last_line >= PLAIN_INTERVAL:
                self._last_line = time.monotonic()
                print(self.line(), file=self._stream, flush=True)

    def line(self) -> str:
        """Returns ``120 of 400 images, 35.2 images/s, 8 s left, 2 rejects``."""
        done = self.images + self.rejects
        rate = done / max(time.monotonic() - self._started, 1e-9)
        left = (self._total - done) / rate if rate else float("inf")
        rejects = counted(self.rejects, "reject")
        return f"{done} of {self._total} images, {rate:.1f} images/s, {left:.0f} s left, {rejects}"

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
