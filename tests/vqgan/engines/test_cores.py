"""A batch on the cores of a processor: the same bytes whatever the cores, and nothing computed in vain."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqgan import processor
from vqgan.codec import Codec
from vqgan.engines import cores
from vqgan.engines.cores import (
    LEAST_GROUPS,
    MOST_PIXELS,
    PIXELS_AT_ONCE,
    CoreProgram,
    fills_cores,
    images_at_once,
)

BATCH = 8
LARGE = PIXELS_AT_ONCE  # pixels of an image that is a group by itself


@pytest.fixture(autouse=True)
def _fresh_pool() -> Iterator[None]:
    """Threads of other numbers of cores end with the test."""
    cores._pool.cache_clear()
    yield
    cores._pool.cache_clear()


@given(batch=st.integers(1, 200), pixels=st.integers(1, 1 << 20))
def test_groups_are_equal_and_small(batch: int, pixels: int) -> None:
    size = images_at_once(batch, pixels)
    assert batch % size == 0
    assert size == 1 or size * pixels <= PIXELS_AT_ONCE
    assert size == 1 or batch // size >= LEAST_GROUPS


@pytest.mark.parametrize(("batch", "side", "size"), [(32, 256, 1), (32, 64, 4), (50, 32, 5), (4, 32, 1)])
def test_size_of_groups(batch: int, side: int, size: int) -> None:
    assert images_at_once(batch, side * side) == size


@pytest.mark.parametrize(("count", "few", "enough"), [(2, 1, 2), (16, 7, 8), (64, 31, 32)])
def test_few_groups_get_all_cores(count: int, few: int, enough: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: count)
    assert not fills_cores(few)
    assert fills_cores(enough)


@pytest.mark.parametrize("count", [1, 3, 64])
def test_number_of_cores_changes_no_byte(
    count: int, toy_path: Path, toy_images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are 64, eight groups do not fill them, and each is computed by all cores."""
    here = Codec.load(toy_path, batch_size=BATCH)
    tokens, latents = here.encode(toy_images), here.latents(toy_images)
    images = here.decode(tokens)
    monkeypatch.setattr(cores, "available_cores", lambda: count)
    there = Codec.load(toy_path, batch_size=BATCH)
    np.testing.assert_array_equal(there.encode(toy_images), tokens)
    np.testing.assert_array_equal(there.latents(toy_images), latents)
    np.testing.assert_array_equal(there.decode(tokens), images)


@pytest.mark.parametrize(("pixels", "threads"), [(MOST_PIXELS, 8), (MOST_PIXELS + 1, 1)])
def test_large_images_get_all_cores(pixels: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, pool = [], cores._pool
    monkeypatch.setattr(cores, "available_cores", lambda: 8)
    monkeypatch.setattr(cores, "_pool", lambda threads: asked.append(threads) or pool(threads))
    doubled, _ = CoreProgram(double, jnp.float32(2))(np.ones((BATCH, 2), np.float32), pixels, BATCH)
    assert np.asarray(doubled).shape == (BATCH, 2)
    assert asked == [threads]


@pytest.mark.parametrize(
    ("said", "cores_there"), [("max 100000\n", 6), ("150000 100000\n", 2), ("5000 100000\n", 1), ("", 6)]
)
def test_quota_of_a_container(
    said: str, cores_there: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(said)
    monkeypatch.setattr(processor, "QUOTA_FILE", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert processor.available_cores() == cores_there


def double(weights: jax.Array, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
    return batch * weights, batch + weights


def test_every_result_is_joined() -> None:
    batch = np.arange(BATCH * 3, dtype=np.float32).reshape(BATCH, 3)
    doubled, added = CoreProgram(double, jnp.float32(2))(batch, LARGE, BATCH)
    np.testing.assert_array_equal(np.asarray(doubled), batch * 2)
    np.testing.assert_array_equal(np.asarray(added, np.float64), batch + 2.0)


@pytest.mark.parametrize(("pixels", "count", "length"), [(LARGE, 3, 3), (LARGE, 8, 8), (1, 3, 4), (1, 1, 2)])
def test_groups_that_nobody_wants_are_not_computed(pixels: int, count: int, length: int) -> None:
    """Of 16 small images two are a group."""
    batch = np.ones((BATCH if pixels == LARGE else 2 * BATCH, 2), np.float32)
    doubled, _ = CoreProgram(double, jnp.float32(2))(batch, pixels, count)
    assert len(np.asarray(doubled)) == length


def test_what_is_dropped_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: 1)
    free, begun = threading.Event(), []
    cores._pool(1).submit(free.wait)  # the only core is at work

    class Watched(CoreProgram):
        def _program(self, batch: np.ndarray, size: int, pixels: int) -> tuple[Any, ThreadPoolExecutor]:
            program, pool = super()._program(batch, size, pixels)

            def run(*given: object) -> object:
                begun.append(given)
                return program(*given)

            run.out_tree = program.out_tree  # type: ignore[attr-defined]
            return run, pool

    program, batch = Watched(double, jnp.float32(2)), np.ones((BATCH, 2), np.float32)
    dropped, kept = program(batch, LARGE, BATCH), program(batch, LARGE, 2)
    del dropped
    free.set()
    assert len(np.asarray(kept[0])) == 2
    assert len(begun) == 2
