import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqgan.prior.config import MASK_SCHEDULES
from vqgan.prior.mask_schedules import (
    decoding_mask_counts,
    lowest_mask,
    mask_ratio,
    random_mask,
    training_mask_counts,
)

marked_lowest = jax.jit(lowest_mask)


@pytest.mark.parametrize(
    ("schedule", "progress", "share"),
    [
        ("cosine", 1 / 3, 3**0.5 / 2),
        ("cosine", 2 / 3, 0.5),
        ("linear", 0.25, 0.75),
        ("square", 0.5, 0.75),
        ("cubic", 0.5, 0.875),
    ],
)
def test_share_by_hand(schedule: str, progress: float, share: float) -> None:
    assert mask_ratio(schedule, np.array(progress)) == pytest.approx(share)
    np.testing.assert_allclose(mask_ratio(schedule, jnp.float32(progress)), share, rtol=1e-6)


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
def test_share_falls_from_all_to_nothing(schedule: str) -> None:
    shares = mask_ratio(schedule, np.linspace(0, 1, 101))
    assert shares[0] == 1
    assert shares[-1] == pytest.approx(0, abs=1e-12)
    assert (np.diff(shares) < 0).all()


def test_training_counts_round_up() -> None:
    progress = jnp.array([0, 0.05, 0.5, 0.72, 0.999])
    counts = training_mask_counts("linear", progress, 10)
    assert counts.tolist() == [10, 10, 5, 3, 1]
    assert counts.dtype == jnp.int32


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
def test_training_hides_at_least_one_and_no_more_than_all(schedule: str) -> None:
    progress = jnp.array([0, np.nextafter(np.float32(1), 0), 1], jnp.float32)
    assert training_mask_counts(schedule, progress, 7).tolist() == [7, 1, 1]


def test_decoding_counts_by_hand() -> None:
    counts = decoding_mask_counts("linear", np.array([10, 4, 0]), 4)
    assert counts.tolist() == [[7, 3, 0], [5, 2, 0], [2, 1, 0], [0, 0, 0]]
    assert counts.dtype == np.int32
    # cos of 22.5, 45 and 67.5 degrees: 0.924, 0.707, 0.383
    assert decoding_mask_counts("cosine", np.array([16]), 4).ravel().tolist() == [14, 11, 6, 0]


def test_decoding_counts_do_not_lose_a_token_to_rounding() -> None:
    assert decoding_mask_counts("linear", np.array([10]), 10).ravel().tolist() == list(range(9, -1, -1))


def test_one_step_fills_in_everything() -> None:
    assert decoding_mask_counts("cosine", np.array([5, 0]), 1).tolist() == [[0, 0]]


def test_more_steps_than_tokens_fill_in_one_at_a_time() -> None:
    assert decoding_mask_counts("cosine", np.array([3]), 6).ravel().tolist() == [2, 1, 0, 0, 0, 0]


@given(st.sampled_from(MASK_SCHEDULES), st.integers(0, 300), st.integers(1, 40))
def test_decoding_counts_fall_until_nothing_is_hidden(schedule: str, unknown: int, steps: int) -> None:
    before, counts = unknown, decoding_mask_counts(schedule, np.array([unknown]), steps).ravel().tolist()
    for count in counts:
        assert 0 <= count < max(before, 1)
        before = count
    assert counts[-1] == 0


@given(st.lists(st.integers(-2, 2), min_size=6, max_size=6), st.integers(0, 6))
def test_lowest_marks_as_many_as_asked_and_of_equals_the_first(values: list[int], count: int) -> None:
    scores = np.array([values, values[::-1]], np.float32)
    marked = np.asarray(marked_lowest(scores, np.array([count, 6 - count])))
    for row, number, marks in zip(scores, (count, 6 - count), marked, strict=True):
        assert np.flatnonzero(marks).tolist() == sorted(np.argsort(row, kind="stable")[:number].tolist())


def test_random_places_are_as_many_as_asked_and_even() -> None:
    keys = jax.random.split(jax.random.key(0), 4000)
    counts = jnp.arange(4000) % 9
    places = np.asarray(random_mask(keys, counts, 8))
    np.testing.assert_array_equal(places.sum(axis=1), counts)
    # Each place is marked half of the time; the standard error is below 0.008.
    np.testing.assert_allclose(places.mean(axis=0), counts.mean() / 8, atol=0.03)


def test_random_places_of_a_row_follow_from_its_key() -> None:
    keys = jax.random.split(jax.random.key(0), 5)
    counts = jnp.full(5, 4)
    together = random_mask(keys, counts, 32)
    np.testing.assert_array_equal(random_mask(keys[3:4], counts[3:4], 32), together[3:4])
    assert len({tuple(row) for row in together.tolist()}) == 5
