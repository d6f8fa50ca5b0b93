"""Results of a function of a number that threads share."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from vqgan.caching import LatestResults
from vqgan.errors import UserError


def in_threads(count: int, call: Any) -> list[Any]:
    """Calls with 0 to ``count - 1``, all at once."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


def test_those_used_last_are_kept() -> None:
    made: list[int] = []
    latest = LatestResults(lambda number: made.append(number) or number * 10, 2)
    assert [latest(number) for number in (0, 1, 0, 2, 0, 1)] == [0, 10, 0, 20, 0, 10]
    assert made == [0, 1, 2, 1]


def test_one_thread_makes_a_result_for_all() -> None:
    makes: list[int] = []
    begun = threading.Semaphore(0)

    def make(number: int) -> Any:
        for _ in range(4):
            assert begun.acquire(timeout=60)
        makes.append(number)
        return number * 10

    latest = LatestResults(make, 2)

    def ask(_: int) -> Any:
        begun.release()
        return latest(7)

    assert in_threads(4, ask) == [70] * 4
    assert makes == [7]


def test_what_failed_is_tried_again() -> None:
    failing = [True]

    def make(number: int) -> Any:
        if failing[0]:
            raise UserError("gone")
        return number

    latest = LatestResults(make, 2)
    for _ in range(2):
        with pytest.raises(UserError, match="gone"):
            latest(3)
    failing[0] = False
    assert latest(3) == 3


def test_a_late_failure_leaves_what_another_thread_has_made_since() -> None:
    made: list[int] = []
    begun, fail = threading.Event(), threading.Event()

    def make(number: int) -> int:
        made.append(number)
        if made == [0]:
            begun.set()
            assert fail.wait(60)
            raise UserError("gone")
        return number * 10

    latest = LatestResults(make, 1)
    with ThreadPoolExecutor(1) as pool:
        failing = pool.submit(latest, 0)
        assert begun.wait(60)
        assert [latest(1), latest(0)] == [10, 0]  # the first 0 is dropped, and 0 made anew
        fail.set()
        with pytest.raises(UserError, match="gone"):
            failing.result()
    assert latest(0) == 0
    assert made == [0, 1, 0]
