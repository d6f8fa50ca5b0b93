"""What was made last, kept for threads that ask for it again."""

import collections
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestResults(Generic[T]):
    """A function of a number that keeps the results used last, for many threads.

    One thread makes a result and others that want the same one wait for it; those that want another do not.
    What failed is tried again when it is asked for again.
    """

    def __init__(self, make: Callable[[int], T], kept: int) -> None:
        """``make`` is called for a number that is not at hand; ``kept`` results stay in memory."""
        self._make, self._kept = make, kept
        self._results: collections.OrderedDict[int, Future[T]] = collections.OrderedDict()  # last used last
        self._lock = threading.Lock()  # of the dictionary; never held while something is made

    def __call__(self, number: int) -> T:
        """Returns the result for a number. Raises what making it raises."""
        with self._lock:
            result = self._results.get(number)
            is_new = result is None
            if result is None:
                result = self._results[number] = Future()
            self._results.move_to_end(number)
            if len(self._results) > self._kept:
                self._results.popitem(last=False)
        if is_new:
            self._fill(number, result)
        return result.result()

    def _fill(self, number: int, result: "Future[T]") -> None:
        try:
            result.set_result(self._make(number))
        except BaseException as error:  # noqa: BLE001 - an interrupt, too: nobody may wait for ever
            with self._lock:
                # Meanwhile it may have been dropped, and made anew by another thread: that one stays.
                if self._results.get(number) is result:
                    del self._results[number]
            result.set_exception(error)
