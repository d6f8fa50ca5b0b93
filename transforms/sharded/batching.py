"""Keeping the device busy: one codec in a process, fixed batches, few of them under way, threads ahead.

What turns images into tokens and what turns tokens into images share these; none of them knows which of the
two it serves.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vqgan.engines.choice import JAX_ENGINE, EngineChoice
from vqgan.processor import available_cores

if TYPE_CHECKING:
    from vqgan.codec import Codec
    from vqgan.engines.agreement import PixelAgreement

BATCHES_IN_FLIGHT = 2
"""Batches handed to the device whose results were not fetched yet."""
MOST_PADDING = 1 / 8
"""Share of a job's rows that may be computed beside them to fill its last batches."""
LEAST_BATCH = 4
"""Smaller ones only for jobs of fewer rows: devices need some work at a time."""
THREAD_NICENESS = 10
"""Priority of worker threads, as ``nice`` counts: they get what the device's threads leave."""

T = TypeVar("T")
R = TypeVar("R")

_lock = threading.Lock()
_codecs: dict[tuple[str, int, str, EngineChoice], "Codec"] = {}


def fitted_batch_size(batch_size: int, slices: Sequence[int] | np.ndarray) -> int:
    """Returns the batch size of a job, so that little of its batches is padding, which costs what images do.

    All of a job's batches have one shape: another one for the rest of a slice would have to be compiled, and
    on some devices its numbers differ in their last digits, so which of the two is faster on a given day must
    not decide. The size follows from the plan alone: of the one asked for and powers of two it is the largest
    at which no more than :data:`MOST_PADDING` is padding; else the one with the least.

    Args:
      batch_size: as asked for.
      slices: number of rows of each slice.
    """
    counts = np.asarray(slices, np.int64)
    whole = 1 << max(0, int(counts.max(initial=0)) - 1).bit_length()  # holds the largest slice
    sizes = [batch_size] if batch_size <= whole else []
    sizes += [size for size in (whole >> n for n in range(whole.bit_length())) if size < batch_size]
    sizes = [size for size in sizes if size >= LEAST_BATCH] or sizes[:1]
    padding = {size: int((-counts % size).sum()) for size in sizes}
    fitting = (size for size in sizes if padding[size] <= MOST_PADDING * counts.sum())
    return next(fitting, min(sizes, key=lambda size: (padding[size], -size)))


def fill(pairs: Iterable[tuple[R, np.ndarray]], batch_size: int) -> Iterator[tuple[list[R], np.ndarray]]:
    """Yields fixed batches of rows with their arrays, in order.

    Yields:
      Rows, and a full batch ``[batch_size, …]`` whose first items are theirs; the last is padded with zeros.
    """
    rows: list[R] = []
    items: np.ndarray | None = None
    for row, item in pairs:
        if items is None:
            # Fresh memory for each batch: the device may still be reading the one before.
            items = np.zeros((batch_size, *item.shape), item.dtype)
        items[len(rows)] = item
        rows.append(row)
        if len(rows) == batch_size:
            yield rows, items
            rows, items = [], None
    if items is not None:
        yield rows, items


def on_device(
    filled: Iterable[tuple[list[R], np.ndarray]], start: Callable[[np.ndarray, int], Any]
) -> Iterator[tuple[list[R], Any]]:
    """Yields rows and what the device made of their items, batch by batch, without the padding.

    The next batches are filled while the device still works on the ones before.

    Args:
      filled: full batches with the rows of their first items.
      start: gives a batch to the device, and the number of its rows, and returns at once with a promise of
        the result, or a tuple of them.

    Yields:
      Rows, and an array of one item for each of them, or a tuple of such arrays.
    """
    in_flight: deque[tuple[list[R], Any]] = deque()
    for rows, items in filled:
        in_flight.append((rows, start(items, len(rows))))
        if len(in_flight) > BATCHES_IN_FLIGHT:
            done, result = in_flight.popleft()
            yield done, _fetched(result, len(done))
    for done, result in in_flight:
        yield done, _fetched(result, len(done))


def _fetched(result: Any, count: int) -> Any:
    if isinstance(result, tuple):
        return tuple(np.asarray(part)[:count] for part in result)
    return np.asarray(result)[:count]


def threads_here(threads: int | None) -> int:
    """Returns a number of threads; None stands for one per core of the machine that asks: a worker's own."""
    return available_cores() if threads is None else threads


def in_order(
    function: Callable[[T], R], items: Iterable[T], threads: int, window: int, name: str
) -> Iterator[R]:
    """Yields ``function`` of every item in order, by threads that are at most ``window`` items ahead.

    ``items`` itself is read in the caller's thread. ``name`` is that of the threads.
    """
    with ThreadPoolExecutor(threads, name, initializer=yield_to_device) as pool:
        ahead: deque[Future[R]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) >= window:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for pending in ahead:
                pending.cancel()


def yield_to_device() -> None:
    """Lowers the calling thread's priority, so that it fills the gaps that XLA's threads leave.

    Where the device is the CPU itself, an equal share would stall every parallel step of the model.
    """
    with contextlib.suppress(AttributeError, OSError):  # per thread on Linux only
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), THREAD_NICENESS)


def load_codec(path_or_name: str, batch_size: int, dtype: str, engine: EngineChoice = JAX_ENGINE) -> "Codec":
    """Gives the codec, loaded at the first call in this process and shared from then on.

    JAX is imported here and not at the top of a module, so that a launcher never loads it.
    """
    from vqgan.codec import Codec

    with _lock:
        wanted: Any = (path_or_name, batch_size, dtype, engine)
        if wanted not in _codecs:
            _codecs[wanted] = Codec.load(path_or_name, batch_size=batch_size, dtype=dtype, engine=engine)
        return _codecs[wanted]


def measure_pixel_agreement(
    codec_name: str, dtype: str, engine: EngineChoice, tokens: np.ndarray
) -> "PixelAgreement":
    """Decodes a few token grids ``[N, h, w]``, N at least 1, by an engine and by JAX in float32."""
    from vqgan.engines.agreement import SAMPLE, compare_pixels

    images = load_codec(codec_name, SAMPLE, dtype, engine).decode(tokens)
    return compare_pixels(load_codec(codec_name, SAMPLE, "float32"), tokens, images)
