"""Pixels of all threads stay within a sum; a greedy image is told from a machine without memory."""

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from transforms.images import budget
from transforms.images import decode as module
from transforms.images.budget import PixelBudget
from transforms.images.config import DecodeConfig
from transforms.images.crops import Geometry
from transforms.images.decode import Decoded, Reject, decoding, prepare
from vqgan.faults import MachineError

CONFIG = DecodeConfig()
SMALL = Geometry(image_size=8)


def encoded(side: int, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()


class Watched:
    """Notes the largest sum of pixels held at once."""

    def __init__(self) -> None:
        self.most = self.now = 0
        self.lock = threading.Lock()

    def hold(self, pixels: int) -> None:
        with self.lock:
            self.now += pixels
            self.most = max(self.most, self.now)
        threading.Event().wait(0.001)  # time in which others could come in
        with self.lock:
            self.now -= pixels


@given(st.lists(st.integers(1, 25), min_size=1, max_size=30), st.integers(1, 20))
def test_the_sum_is_bounded_and_everybody_gets_a_turn(wanted: list[int], room: int) -> None:
    shared, watched = PixelBudget(room), Watched()

    def use(pixels: int) -> int:
        with shared.spending(pixels):
            watched.hold(min(pixels, room))
        return pixels

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(use, wanted)) == wanted
    assert watched.most <= room


def test_a_large_image_runs_alone_and_is_not_overtaken() -> None:
    shared, order = PixelBudget(10), []
    large_asks, finish = threading.Event(), threading.Event()

    def large() -> None:
        large_asks.set()
        with shared.spending(1000):
            order.append("large")

    def late() -> None:
        with shared.spending(1):
            order.append("late")

    with ThreadPoolExecutor(3) as pool, shared.spending(1):
        pool.submit(large)
        large_asks.wait(60)
        while not shared._first.locked():
            finish.wait(0.001)
        pool.submit(late)
        finish.wait(0.02)
        assert order == []  # there is room for the late one, but it waits for its turn
    assert order == ["large", "late"]


def test_an_error_gives_pixels_back() -> None:
    shared = PixelBudget(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), shared.spending(1):
            raise ZeroDivisionError


@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pixels that decoding has asked for, in order."""
    asked: list[int] = []

    class Asked(PixelBudget):
        def spending(self, pixels: int) -> Any:
            asked.append(pixels)
            return super().spending(pixels)

    shared = Asked()
    monkeypatch.setattr(budget, "AT_ONCE", shared)
    monkeypatch.setattr(module, "AT_ONCE", shared)
    return asked


@pytest.mark.parametrize(
    ("data", "cost"),
    [
        (encoded(40), 1600),
        (encoded(64, "JPEG"), 16 * 16),  # reduced in decoding
        (encoded(64, "JPEG", progressive=True), 64 * 64),  # but for its coefficients
    ],
)
def test_what_an_image_costs(data: bytes, cost: int, spent: list[int]) -> None:
    prepare(data, "", CONFIG, SMALL)
    assert spent == [cost]


def test_threads_wait_for_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve images of which three fit: never more at once, and the squares are those of one thread."""
    images = [encoded(30 + number % 3) for number in range(12)]
    alone = [prepare(data, "", CONFIG, SMALL).pixels for data in images]
    monkeypatch.setattr(module, "AT_ONCE", PixelBudget(3 * 32 * 32))
    watched, render = Watched(), module.render

    def rendered(image: Image.Image, *rest: Any) -> np.ndarray:
        watched.hold(image.width * image.height)
        return render(image, *rest)

    monkeypatch.setattr(module, "render", rendered)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: prepare(data, "", CONFIG, SMALL).pixels, images))
    assert 0 < watched.most <= 3 * 32 * 32
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def out_of_memory(times: int) -> Callable[[Decoded], str]:
    left: Iterator[int] = iter(range(times))

    def use(decoded: Decoded) -> str:
        if next(left, None) is not None:
            raise MemoryError
        return "done"

    return use


def test_memory_that_comes_back(spent: list[int]) -> None:
    """The second time nobody else decodes."""
    assert decoding(encoded(10), CONFIG, None, out_of_memory(1)) == "done"
    assert spent == [100, budget.PIXELS]


def test_an_image_that_asks_for_too_much_is_a_reject() -> None:
    with pytest.raises(Reject, match="more memory than its pixels do") as caught:
        decoding(encoded(10), CONFIG, None, out_of_memory(2))
    assert (caught.value.stage, caught.value.error) == ("decode", "MemoryError")


def test_a_machine_without_memory_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_has_memory", lambda pixels: False)
    with pytest.raises(MachineError, match="out of memory"):
        decoding(encoded(10), CONFIG, None, out_of_memory(2))


def test_descriptors_that_run_out_in_decoding_are_no_reject() -> None:
    def use(decoded: Decoded) -> None:
        raise OSError(24, "Too many open files")

    with pytest.raises(MachineError, match="Too many open files"):
        decoding(encoded(10), CONFIG, None, use)
