"""Placing a codebook, and codes that are hardly used."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vqgan.training.codec import codebook


def test_k_means_finds_clusters() -> None:
    rng = np.random.default_rng(0)
    centres = np.asarray([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)
    points = (centres.repeat(50, axis=0) + rng.normal(0, 0.1, (200, 2))).astype(np.float32)
    found = np.asarray(codebook.k_means(points, 4, rng, least_share=0.1, rounds=20))
    assert sorted(map(tuple, np.round(found).astype(int))) == [(0, 0), (0, 10), (10, 0), (10, 10)]


def test_k_means_round_by_hand() -> None:
    points = jnp.asarray([[0.0], [2.0], [9.0]])
    centres = jnp.asarray([[0.5], [8.0], [100.0]])
    found = codebook._lloyd_round(points, centres, jnp.asarray([[7.0], [7.0], [7.0]]), 0.0)
    assert np.ravel(found).tolist() == [1.0, 9.0, 7.0]  # an empty cluster starts anew


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=50), st.floats(0, 0.99))
def test_unused_codes(usage: list[int], share: float) -> None:
    found = np.asarray(codebook.unused_codes(jnp.asarray(usage), share))
    bound = np.float32(share) * np.mean(np.asarray(usage, np.float32))
    clear = np.abs(np.asarray(usage) - bound) > 1e-3
    assert (found == (np.asarray(usage) <= bound))[clear].all()
    assert not found.all() or max(usage) == 0


def test_random_latents_are_latents() -> None:
    latents = jnp.arange(24, dtype=jnp.float32).reshape(2, 2, 2, 3)
    drawn = np.asarray(codebook.random_latents(latents, 50, jax.random.key(0)))
    rows = {tuple(row) for row in np.asarray(latents).reshape(-1, 3).tolist()}
    assert {tuple(row) for row in drawn.tolist()} == rows


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 20))
def test_no_two_codes_move_to_one_latent(unused: list[bool], latents: int) -> None:
    mask, numbers = map(np.asarray, codebook.within_supply(jnp.asarray(unused), latents))
    first = np.flatnonzero(unused)[:latents]
    assert np.flatnonzero(mask).tolist() == first.tolist()
    assert numbers[mask].tolist() == list(range(len(first)))


def test_large_codebooks_are_placed_by_fewer_latents_and_rounds() -> None:
    codes = (512, 1024, 4096, 16_384, 262_144)
    assert [codebook.latents_to_place(count) // count for count in codes] == [32, 32, 16, 4, 4]
    assert [codebook.rounds_to_place(count) for count in codes] == [10, 10, 10, 4, 2]
