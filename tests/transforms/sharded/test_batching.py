"""Fixed batches, results in order, and threads that run ahead only so far."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.sharded.batching import (
    BATCHES_IN_FLIGHT,
    MOST_PADDING,
    fill,
    fitted_batch_size,
    in_order,
    on_device,
)


def pairs(count: int) -> Iterator[tuple[int, np.ndarray]]:
    return ((number, np.full((2, 3), number + 1, np.int32)) for number in range(count))


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (4, [4]), (9, [4, 4, 1])])
def test_fill(count: int, sizes: list[int]) -> None:
    filled = list(fill(pairs(count), 4))
    assert [len(rows) for rows, _ in filled] == sizes
    assert all(items.shape == (4, 2, 3) and items.dtype == np.int32 for _, items in filled)
    values = [int(items[place, 0, 0]) for rows, items in filled for place in range(4)]
    assert values == [*range(1, count + 1), *[0] * (4 * len(sizes) - count)]


def test_each_batch_has_memory_of_its_own() -> None:
    """The device may still read one while the next is filled."""
    batches = [items for _, items in fill(pairs(8), 4)]
    assert not np.shares_memory(*batches)


def test_device_is_kept_busy_but_not_flooded() -> None:
    waiting = 0
    most = 0
    counts = []

    class Promise:
        def __init__(self, items: np.ndarray):
            self._items = items

        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            nonlocal waiting
            waiting -= 1
            return self._items * 10

    def start(items: np.ndarray, count: int) -> Promise:
        nonlocal waiting, most
        counts.append(count)
        waiting += 1
        most = max(most, waiting)
        return Promise(items)

    found = [
        (row, int(value[0, 0]))
        for rows, values in on_device(fill(pairs(18), 4), start)
        for row, value in zip(rows, values, strict=True)
    ]
    assert found == [(number, 10 * number + 10) for number in range(18)]
    assert counts == [4, 4, 4, 4, 2]
    assert most == BATCHES_IN_FLIGHT + 1
    assert waiting == 0


def test_in_order() -> None:
    """The first item ends last; results come in the order of the items all the same."""
    first = threading.Event()

    def square(number: int) -> int:
        if number == 0:
            assert first.wait(60)
        elif number == 3:
            first.set()
        return number * number

    assert list(in_order(square, range(20), 2, 6, "test")) == [number * number for number in range(20)]


def test_threads_do_not_run_away() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(100):
            taken = number + 1
            yield number

    results = in_order(lambda number: number, items(), 2, 5, "test")
    for number in range(10):
        assert next(results) == number
        assert taken == number + 5
    results.close()  # type: ignore[attr-defined]
    assert taken == 14


def test_an_error_reaches_the_caller() -> None:
    def fail(number: int) -> int:
        if number == 2:
            raise ValueError("number two")
        return number

    results = in_order(fail, range(50), 2, 4, "test")
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="number two"):
        next(results)


@pytest.mark.parametrize(
    ("asked", "slices", "expected"),
    [
        (32, [1], 1),
        (32, [2], 2),
        (32, [3], 4),
        (32, [9], 4),  # 12 are computed, not 16
        (32, [10], 4),
        (32, [16], 16),
        (32, [17], 4),
        (32, [40], 8),
        (32, [96], 32),
        (32, [5000], 32),
        (32, [4096, 100], 32),
        (32, [40] * 1000, 8),
        (12, [9], 12),
        (12, [100], 12),
        (1, [100], 1),
        (3, [100], 3),
        (4, [0], 1),
        (32, [], 1),
    ],
)
def test_batches_leave_little_to_padding(asked: int, slices: list[int], expected: int) -> None:
    assert fitted_batch_size(asked, slices) == expected


@given(st.integers(1, 300), st.lists(st.integers(0, 5000), max_size=8))
def test_no_batch_size_computes_much_more_than_it_must(asked: int, slices: list[int]) -> None:
    size = fitted_batch_size(asked, slices)
    assert 1 <= size <= asked
    computed = sum(-(-rows // size) * size for rows in slices)
    assert computed <= max(sum(slices) * (1 + MOST_PADDING), sum(slices) + 3 * len(slices))
