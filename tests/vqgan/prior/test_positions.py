"""Where tokens are, and how rotary positions turn features, against numbers worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqgan.prior.config import PriorConfig
from vqgan.prior.positions import coordinates, rotary_table, rotate


def test_coordinates_are_rows_and_columns_after_the_start() -> None:
    expected = [[-1, -1], [0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    np.testing.assert_array_equal(coordinates(PriorConfig(grid=(2, 3))), expected)


@pytest.mark.parametrize(
    ("condition_grid", "expected"),
    [
        ((2, 2), [[0, 0], [0, 1], [1, 0], [1, 1]]),  # the same grid lies on the tokens
        ((1, 1), [[0.5, 0.5]]),  # one cell over four tokens: in their middle
        ((1, 4), [[0.5, -0.25], [0.5, 0.25], [0.5, 0.75], [0.5, 1.25]]),  # halves of each token
    ],
)
def test_a_condition_lies_over_the_picture(
    condition_grid: tuple[int, int], expected: list[list[float]]
) -> None:
    config = PriorConfig(grid=(2, 2), condition_codebook_size=4, condition_grid=condition_grid)
    found = coordinates(config)
    np.testing.assert_allclose(found[: config.condition_length], expected)
    np.testing.assert_array_equal(found[config.condition_length], [-1, -1])


def test_angles() -> None:
    table = rotary_table(
        PriorConfig(grid=(2, 3), width=16, heads=2)
    )  # heads of 8: two frequencies, 1 and 0.01
    assert table.dtype == np.float32
    assert table.shape == (7, 4)
    np.testing.assert_allclose(table[6], [1, 0.01, 2, 0.02], rtol=1e-6)  # row 1, column 2
    np.testing.assert_allclose(table[0], [-1, -0.01, -1, -0.01], rtol=1e-6)


def test_pairs_turn() -> None:
    x = jnp.array([1.0, 0.0, 0.0, 2.0]).reshape(1, 1, 1, 4)  # the pairs are (1, 0) and (0, 2)
    turned = rotate(x, jnp.array([[np.pi / 2, np.pi]]))
    np.testing.assert_allclose(turned.ravel(), [0, 0, 1, -2], atol=1e-6)


@given(st.tuples(*[st.integers(0, 5)] * 4), st.tuples(*[st.integers(0, 5)] * 2))
def test_products_depend_on_the_distance_only(
    places: tuple[int, int, int, int], shift: tuple[int, int]
) -> None:
    """Query and key at two places give the same product when both move together."""
    config = PriorConfig(grid=(11, 11), width=8, heads=1)
    table = rotary_table(config)[config.prefix :].reshape(11, 11, -1)
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def product(down: int, right: int) -> float:
        a = rotate(query, table[places[0] + down, places[1] + right][None])
        b = rotate(key, table[places[2] + down, places[3] + right][None])
        return float(jnp.sum(a * b))

    assert product(*shift) == pytest.approx(product(0, 0), abs=1e-5)


def test_half_precision_stays_and_is_turned_in_float32() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 2, 8)), jnp.bfloat16)
    angles = jnp.asarray(np.random.default_rng(1).uniform(0, 200, (3, 4)), jnp.float32)
    turned = rotate(x, angles)
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_array_equal(turned, rotate(x.astype(jnp.float32), angles).astype(jnp.bfloat16))
