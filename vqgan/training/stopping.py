"""Stopping in good order: SIGTERM and SIGINT are remembered, and the loop ends after its step."""

import signal
from types import FrameType
from typing import Any


class Stopping:
    """Context in which the first SIGTERM or SIGINT sets :attr:`asked`; a second one acts as usual.

    Schedulers of clusters send SIGTERM some seconds before they take a machine away.
    """

    def __init__(self) -> None:
        self.asked = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._former[number] = signal.signal(number, self._ask)
            except ValueError:  # only the main thread may; elsewhere signals go to it as ever
                break
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._former[number])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
