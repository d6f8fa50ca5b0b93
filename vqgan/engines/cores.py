"""A batch spread over the cores of a processor: groups of a few images, each computed on one core.

XLA cuts each operation for all cores and waits for the slowest part before the next one begins, which keeps
two cores hardly busier than one where a model is small (``benchmarks/cores.py``). Images need nothing of
each other, so here a core has an image, or a few small ones, for itself from the first operation to the last;
what those leave between two layers stays in its caches. Groups of two batches under way take turns, so no
core waits for the end of a batch. Few groups, and large images, are left to all cores, one after the other.

The size of groups follows from those of batch and images alone. So whatever the number of cores, the same
program makes the same bytes, and what is left of a last batch is neither compiled nor computed.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from vqgan.model.winograd import with_fewer_products
from vqgan.processor import available_cores

PIXELS_AT_ONCE = 1 << 16
"""Of a group, one image of 256x256 pixels: more leave the caches, fewer do not pay for a call."""
LEAST_GROUPS = 8
"""That a batch of so many small images is cut into, so that there is work for several cores."""
MOST_PIXELS = 384 * 384
"""Of an image that gets one core: what larger ones leave between two layers is much to hold for each core,
and their operations are large enough to be cut."""
ONE_CORE: dict[str, str | bool] = {"xla_cpu_multi_thread_eigen": False}

Leaves = list[np.ndarray]


class StartedGroups:
    """Groups that were handed to the cores; those that nobody waits for any more are not begun.

    Else a run that has failed would compute what is left of its batches before its process could end.
    """

    def __init__(self, groups: Sequence["Future[Leaves]"]) -> None:
        self._groups = groups

    def __del__(self) -> None:
        for group in self._groups:
            group.cancel()

    def join(self, leaf: int) -> np.ndarray:
        """Waits for all groups; returns one of their results."""
        return np.concatenate([group.result()[leaf] for group in self._groups])


class PendingGroups:
    """One result of all groups, joined when ``np.asarray`` asks for it, and waited for then."""

    def __init__(self, groups: StartedGroups, leaf: int) -> None:
        self._groups = groups
        self._leaf = leaf

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._groups.join(self._leaf), dtype)


class CoreProgram:
    """A function of weights and a batch, compiled for groups and run on the cores of this machine.

    Attributes:
      function: jitted.
      weights: its first argument.
    """

    def __init__(self, function: Callable[[Any, jax.Array], Any], weights: Any) -> None:
        self.function = jax.jit(function)
        self._function = function
        self.weights = weights
        self._lock = threading.Lock()
        self._compiled: dict[tuple[Any, ...], tuple[Any, ThreadPoolExecutor]] = {}

    def __call__(self, batch: np.ndarray, pixels: int, count: int) -> Any:
        """Starts computing and returns at once, except for compilations.

        Args:
          batch: a full batch.
          pixels: of each of its images.
          count: images, from the first, whose results are wanted; the groups of no others are computed.

        Returns:
          What the function returns, each array of it a :class:`PendingGroups` of at least ``count`` items.
        """
        size = images_at_once(len(batch), pixels)
        program, pool = self._program(batch, size, pixels)

        def compute(start: int) -> Leaves:
            done = program(self.weights, batch[start : start + size])
            return [np.asarray(array) for array in jax.tree.leaves(done)]

        groups = StartedGroups([pool.submit(compute, start) for start in range(0, count, size)])
        tree = program.out_tree
        return jax.tree.unflatten(tree, [PendingGroups(groups, leaf) for leaf in range(tree.num_leaves)])

    def _program(self, batch: np.ndarray, size: int, pixels: int) -> tuple[Any, ThreadPoolExecutor]:
        """Returns the program for groups of ``size`` items, and the threads that run it.

        There is a thread for each core, or one where a group is left to all cores.
        """
        shape = jax.ShapeDtypeStruct((size, *batch.shape[1:]), batch.dtype)
        with self._lock:
            key = (len(batch), shape.shape, shape.dtype)
            if key not in self._compiled:
                # What could change a byte follows from the size of images alone
                ordinary = pixels <= MOST_PIXELS
                spread = ordinary and fills_cores(len(batch) // size)
                traced = jax.jit(with_fewer_products(self._function, spread)) if ordinary else self.function
                lowered = traced.lower(self.weights, shape)
                compiled = lowered.compile(compiler_options=ONE_CORE if spread else None)
                self._compiled[key] = compiled, _pool(available_cores() if spread else 1)
            return self._compiled[key]


def images_at_once(batch: int, pixels: int) -> int:
    """Returns the size of groups: a divisor of the batch's.

    Args:
      batch: number of images.
      pixels: of each.
    """
    most = max(1, min(PIXELS_AT_ONCE // pixels, batch // LEAST_GROUPS))
    return max(size for size in range(1, most + 1) if batch % size == 0)


def fills_cores(groups: int) -> bool:
    """Tells whether groups on one core each keep this machine busy, two batches being under way."""
    return groups > 1 and 2 * groups >= available_cores()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "vqgan-core")
