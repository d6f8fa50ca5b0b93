"""What holds for every quantizer that a configuration can name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan.config import CODEBOOK_QUANTIZERS, QUANTIZERS, UNTRAINED_QUANTIZERS, ModelConfig
from vqgan.model.parameters import codec_parameter_shapes
from vqgan.quantizers import NearestQuantizer, QuantizeOptions, Quantizer, make_quantizer
from vqgan.token_layouts import ScalesConfig

GRIDS: dict[str, dict[str, Any]] = {
    "fsq": {"fsq_levels": (2, 2, 3, 4), "codebook_size": 48},
    "lfq": {"codebook_size": 16},
    "scales": {"scales": ScalesConfig((1, 2), 3)},
}
KEY = jax.random.key(0)


def config(name: str) -> ModelConfig:
    fields = {"codebook_size": 32, **GRIDS.get(name, {})}
    return ModelConfig(quantizer=name, embed_dim=4, **fields)


TRAINED = [name for name in QUANTIZERS if name not in UNTRAINED_QUANTIZERS]


@pytest.fixture(params=TRAINED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def quantizer(name: str) -> Quantizer:
    return make_quantizer(config(name), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def latents() -> jax.Array:
    values = np.random.default_rng(1).standard_normal((2, 3, 5, 4))
    return jnp.asarray(values, jnp.bfloat16)


def test_result_is_consistent(name: str, quantizer: Quantizer, latents: jax.Array) -> None:
    result = quantizer(latents)
    assert result.codes.dtype == jnp.float32
    assert result.tokens.dtype == jnp.int32
    assert {(loss.dtype, loss.shape) for loss in result[2:]} == {(np.dtype("float32"), ())}
    np.testing.assert_array_equal(result.tokens, quantizer.tokens(latents))
    np.testing.assert_allclose(result.codes, quantizer.lookup(result.tokens), atol=1e-6)
    assert 0 <= np.min(result.tokens) <= np.max(result.tokens) < config(name).codebook_size
    assert result.entropy_loss == 0


@pytest.mark.parametrize("name", QUANTIZERS)
def test_parameters_are_those_listed_without_jax(name: str) -> None:
    quantizer = make_quantizer(config(name), rngs=nnx.Rngs(0))
    flat = nnx.to_flat_state(nnx.state(quantizer, nnx.Param))
    found = {".".join(map(str, path)): tuple(param.shape) for path, param in flat}
    assert found == codec_parameter_shapes(config(name))["quantizer"]


def test_who_has_a_codebook(name: str, quantizer: Quantizer) -> None:
    assert quantizer.has_codebook == isinstance(quantizer, NearestQuantizer) == (name in CODEBOOK_QUANTIZERS)


def test_rotation_is_for_codebooks(name: str, quantizer: Quantizer, latents: jax.Array, refused: Any) -> None:
    if quantizer.has_codebook:
        result = quantizer(latents, QuantizeOptions(rotation=True))
        np.testing.assert_allclose(result.codes, quantizer.lookup(result.tokens), atol=1e-6)
    else:
        with refused(f"rotation trick is on and model.quantizer is {name}"):
            quantizer(latents, QuantizeOptions(rotation=True))


def test_entropy_loss_where_there_is_one(name: str, quantizer: Quantizer, latents: jax.Array) -> None:
    loss = float(quantizer(latents, QuantizeOptions(entropy_temperature=1.0)).entropy_loss)
    assert (loss < 0) == (name not in ("gumbel", "fsq"))


def test_only_moving_averages_observe(name: str, quantizer: Quantizer, latents: jax.Array) -> None:
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(quantizer))]
    quantizer.observe(latents, quantizer.tokens(latents), 0.9)
    after = jax.tree.leaves(nnx.state(quantizer))
    same = all(np.array_equal(left, right) for left, right in zip(before, after, strict=True))
    assert same == (name != "ema")


def test_codes_are_replaced_where_the_mask_is_true(latents: jax.Array) -> None:
    for name in CODEBOOK_QUANTIZERS:
        quantizer = make_quantizer(config(name), rngs=nnx.Rngs(0))
        assert isinstance(quantizer, NearestQuantizer)
        before = np.asarray(quantizer.codebook[...])
        codes = 2 + np.arange(128, dtype=np.float32).reshape(32, 4)
        mask = np.arange(32) % 3 == 0
        quantizer.replace_codes(jnp.asarray(mask), jnp.asarray(codes))
        np.testing.assert_array_equal(quantizer.codebook[...], np.where(mask[:, None], codes, before))


def test_arithmetic_is_float32_at_highest_precision(
    quantizer: Quantizer, latents: jax.Array, matrix_products: Callable[[Any], list[Any]]
) -> None:
    graph, state = nnx.split(quantizer)

    def everything(state: Any, latents: jax.Array) -> Any:
        merged = nnx.merge(graph, state)
        options = {"rotation": True} if merged.has_codebook else {"key": KEY}
        return merged(latents, QuantizeOptions(entropy_temperature=1.0, **options)), merged.tokens(latents)

    found = _exact_products(matrix_products(jax.make_jaxpr(everything)(state, latents)))
    assert found >= 1 or quantizer.__class__.__name__ == "FSQQuantizer"


@pytest.mark.parametrize("name", [name for name in UNTRAINED_QUANTIZERS if name != "scales"])
def test_tokens_of_imported_codecs_are_exact_as_well(
    name: str, latents: jax.Array, matrix_products: Callable[[Any], list[Any]]
) -> None:
    graph, state = nnx.split(make_quantizer(config(name), rngs=nnx.Rngs(0)))
    traced = jax.make_jaxpr(lambda state, latents: nnx.merge(graph, state).tokens(latents))(state, latents)
    assert _exact_products(matrix_products(traced)) == 1


def _exact_products(found: list[Any]) -> int:
    for product in found:
        assert product.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2
        assert {str(variable.aval.dtype) for variable in product.invars} == {"float32"}
    return len(found)
