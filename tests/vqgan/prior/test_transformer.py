"""The transformer of a prior against NumPy, what each position may see, and reading piece by piece."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from vqgan.functional import Arrays, Functional, take_apart
from vqgan.prior.building_blocks import apply_rotary, coordinates, rotary_table
from vqgan.prior.config import PriorConfig
from vqgan.prior.transformer import PriorTransformer

LLAMA = PriorConfig(
    codebook_size=7,
    grid=(2, 3),
    classes=3,
    condition_codebook_size=5,
    condition_grid=(1, 2),
    layers=1,
    heads=2,
    width=16,
    hidden=20,
)
GPT = dataclasses.replace(LLAMA, block="gpt")
MASKED = dataclasses.replace(LLAMA, kind="masked")
CONFIGS = {"llama": LLAMA, "gpt": GPT, "masked": MASKED}


def structure(config: PriorConfig, **options: Any) -> Functional[PriorTransformer]:
    return take_apart(lambda: PriorTransformer(config, rngs=nnx.Rngs(0), **options))


def random_params(config: PriorConfig) -> Arrays:
    """Weights large enough that every part matters; none is zero."""
    rng = np.random.default_rng(0)
    abstract = nnx.to_flat_state(structure(config).params)
    shapes = {".".join(map(str, path)): param.shape for path, param in abstract}
    return {
        name: jnp.asarray(rng.normal(size=shape) * 0.3 + name.endswith("scale"), jnp.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens, labels (the last is no class) and conditions."""
    rng = np.random.default_rng(1)
    tokens, condition = rng.integers(0, 7, (4, 6)), rng.integers(0, 5, (4, 2))
    return jnp.asarray(tokens), jnp.array([0, 1, 2, 3]), jnp.asarray(condition)


@pytest.fixture(params=sorted(CONFIGS))
def config(request: pytest.FixtureRequest) -> PriorConfig:
    return CONFIGS[request.param]


@functools.cache
def forward(config: PriorConfig, dtype: Any = jnp.float32) -> Callable[..., jax.Array]:
    """``(tokens, labels, condition)`` to logits with the random weights, compiled."""
    parts, params = structure(config, dtype=dtype), random_params(config)
    return jax.jit(lambda *inputs: parts.bind(params, {})(*inputs))


def numpy_logits(config: PriorConfig, params: Arrays, tokens: Any, labels: Any, condition: Any) -> np.ndarray:
    """The logits of one sample, position after position and head after head, in float64."""
    w = {name: np.asarray(x, np.float64) for name, x in params.items()}
    read = tokens[:-1] if config.is_causal else tokens
    embedded = [
        w["condition_embedding"][condition],
        w["class_embedding"][[labels]],
        w["token_embedding"][read],
    ]
    x = np.concatenate(embedded)
    if config.block == "gpt":
        x = x + w["position_embedding"][: len(x)]
    for n in range(config.layers):
        part = {k.removeprefix(f"blocks.{n}."): v for k, v in w.items() if k.startswith(f"blocks.{n}.")}
        x = x + numpy_attention(config, part, numpy_norm(config, part, "attention_norm", x))
        x = x + numpy_feed_forward(config, part, numpy_norm(config, part, "feed_forward_norm", x))
    return numpy_norm(config, w, "norm", x)[-config.length :] @ w["head.kernel"]


def numpy_norm(config: PriorConfig, w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    if config.block == "llama":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.scale"]
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return normal * w[f"{name}.scale"] + w[f"{name}.bias"]


def numpy_linear(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.kernel"] + w.get(f"{name}.bias", 0)


def numpy_rotated(config: PriorConfig, x: np.ndarray, position: int) -> np.ndarray:
    """Pair k of the first half of pairs as a complex number, turned by row / 10000^(k/n), then columns."""
    n = config.head_width // 4
    row, column = coordinates(config)[position]
    angles = np.array([at / 10_000 ** (k / n) for at in (row, column) for k in range(n)])
    z = (x[: 2 * n] + 1j * x[2 * n :]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag])


def numpy_attention(config: PriorConfig, w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    q, k, v = (numpy_linear(w, f"attention.{name}", x) for name in ("query", "key", "value"))
    heads = []
    for head in range(config.heads):
        columns = slice(head * config.head_width, (head + 1) * config.head_width)
        a, b = q[:, columns], k[:, columns]
        if config.block == "llama":
            a, b = (numpy_norm(config, w, f"attention.{s}_norm", y) for s, y in (("query", a), ("key", b)))
            a, b = (np.stack([numpy_rotated(config, row, n) for n, row in enumerate(y)]) for y in (a, b))
        scores = a @ b.T / math.sqrt(config.head_width)
        if config.is_causal:
            scores[np.triu_indices(len(x), 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, columns])
    return numpy_linear(w, "attention.out", np.concatenate(heads, axis=1))


def numpy_feed_forward(config: PriorConfig, w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    up = numpy_linear(w, "feed_forward.up", x)
    if config.block == "llama":
        gate = numpy_linear(w, "feed_forward.gate", x)
        return numpy_linear(w, "feed_forward.down", gate / (1 + np.exp(-gate)) * up)
    erf = np.vectorize(math.erf)
    return numpy_linear(w, "feed_forward.down", up * 0.5 * (1 + erf(up / math.sqrt(2))))


def test_logits_against_numpy(config: PriorConfig, inputs: tuple[jax.Array, ...]) -> None:
    logits = forward(config)(*inputs)
    assert logits.shape == (4, 6, 7)
    assert logits.dtype == jnp.float32
    params = random_params(config)
    for row, sample in zip(logits, zip(*(np.asarray(x) for x in inputs), strict=True), strict=True):
        np.testing.assert_allclose(row, numpy_logits(config, params, *sample), rtol=1e-4, atol=1e-4)


def test_a_causal_prior_sees_earlier_tokens_only(config: PriorConfig, inputs: tuple[jax.Array, ...]) -> None:
    tokens, labels, condition = inputs
    changed = forward(config)(tokens.at[:, 3].set((tokens[:, 3] + 1) % 7), labels, condition)
    differs = np.abs(np.asarray(changed - forward(config)(*inputs))).max(axis=(0, 2)) > 1e-5
    causal = [False, False, False, False, True, True]
    assert differs.tolist() == (causal if config.is_causal else [True] * 6)


def test_every_token_sees_label_and_condition(config: PriorConfig, inputs: tuple[jax.Array, ...]) -> None:
    tokens, labels, condition = inputs
    logits = forward(config)(*inputs)
    for others in ((tokens, (labels + 1) % 4, condition), (tokens, labels, (condition + 1) % 5)):
        assert (np.abs(np.asarray(forward(config)(*others) - logits)).max(axis=-1) > 1e-5).all()


def test_no_labels_mean_no_class(config: PriorConfig, inputs: tuple[jax.Array, ...]) -> None:
    tokens, _, condition = inputs
    np.testing.assert_array_equal(
        forward(config)(tokens, None, condition), forward(config)(tokens, jnp.full(4, 3), condition)
    )


@pytest.mark.parametrize("config", [LLAMA, GPT], ids=["llama", "gpt"])
def test_reading_in_pieces(config: PriorConfig, inputs: tuple[jax.Array, ...]) -> None:
    tokens, labels, condition = inputs
    prior = structure(config).bind(random_params(config), {})
    x = prior.prefix_inputs(4, labels, condition)
    decode = jax.jit(lambda x, start, cache: prior.decode_step(x, start, cache))
    logits, cache = decode(x, 0, prior.empty_cache(4))
    parts, position = [logits[:, -1:]], config.prefix
    for count in (1, 3, 1):
        start = position - config.prefix
        x = prior.token_inputs(tokens[:, start : start + count], start)
        logits, cache = decode(x, jnp.int32(position), cache)
        parts.append(logits)
        position += count
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), forward(config)(*inputs), rtol=1e-4, atol=1e-5)


def test_what_the_cache_holds_of_later_positions_does_not_count(inputs: tuple[jax.Array, ...]) -> None:
    prior = structure(LLAMA).bind(random_params(LLAMA), {})
    x = prior.prefix_inputs(4, *inputs[1:])
    clean = prior.empty_cache(4)
    dirty = jax.tree.map(lambda kept: kept + 100, clean)
    decode = jax.jit(lambda cache: prior.decode_step(x, 0, cache)[0])
    np.testing.assert_array_equal(decode(clean), decode(dirty))


def test_a_new_prior_finds_all_codes_equally_likely(inputs: tuple[jax.Array, ...]) -> None:
    params, _ = structure(LLAMA).initial()
    logits = jax.jit(lambda params: structure(LLAMA).bind(params, {})(*inputs))(params)
    assert not np.any(logits)


def test_initial_weights() -> None:
    """Standard deviation 0.02; of layers that end a branch, of which there are 2 * layers, its root less."""
    params, _ = structure(PriorConfig(width=128, layers=2, heads=2)).initial()
    assert float(params["blocks.0.attention.query.kernel"].std()) == pytest.approx(0.02, rel=0.03)
    for name in ("attention.out", "feed_forward.down"):
        assert float(params[f"blocks.1.{name}.kernel"].std()) == pytest.approx(0.02 / 2, rel=0.03)
    assert float(params["token_embedding"].std()) == pytest.approx(0.02, rel=0.03)


def test_remat_changes_nothing(inputs: tuple[jax.Array, ...]) -> None:
    params = random_params(LLAMA)

    def loss(params: Arrays, *, remat: bool) -> jax.Array:
        prior = structure(LLAMA, remat=remat).bind(params, {})
        return jnp.mean(jax.nn.logsumexp(prior(*inputs), axis=-1))

    plain, again = (
        jax.jit(jax.value_and_grad(functools.partial(loss, remat=remat)))(params) for remat in (False, True)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), plain, again)
    assert all(np.abs(x).max() > 0 for x in plain[1].values())


def test_bfloat16(inputs: tuple[jax.Array, ...]) -> None:
    exact, logits = forward(LLAMA)(*inputs), forward(LLAMA, jnp.bfloat16)(*inputs)
    assert logits.dtype == jnp.float32
    half = structure(LLAMA, dtype=jnp.bfloat16).bind(random_params(LLAMA), {})
    assert half.empty_cache(1)[0].keys.dtype == jnp.bfloat16
    assert 0 < np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


def test_dropout_acts_in_training_only(inputs: tuple[jax.Array, ...]) -> None:
    config = dataclasses.replace(LLAMA, dropout=0.5)
    parts, params = structure(config), random_params(config)
    train = jax.jit(lambda key: parts.bind(params, {}, key)(*inputs))
    assert np.abs(train(jax.random.key(0)) - train(jax.random.key(1))).max() > 1e-3

    def still() -> jax.Array:
        prior = parts.bind(params, {})
        prior.eval()
        return prior(*inputs)

    np.testing.assert_allclose(jax.jit(still)(), forward(LLAMA)(*inputs), rtol=1e-5, atol=1e-5)


def test_a_missing_or_unwanted_condition_is_refused(inputs: tuple[jax.Array, ...]) -> None:
    tokens, labels, condition = inputs
    with pytest.raises(ValueError, match="no condition given"):
        PriorTransformer(LLAMA, rngs=nnx.Rngs(0))(tokens, labels)
    plain = dataclasses.replace(LLAMA, condition_codebook_size=0, condition_grid=(0, 0))
    with pytest.raises(ValueError, match="a condition given"):
        PriorTransformer(plain, rngs=nnx.Rngs(0))(tokens, labels, condition)


def test_a_grid_of_one_token() -> None:
    config = dataclasses.replace(LLAMA, grid=(1, 1))
    logits = forward(config)(jnp.array([[2], [5]]), jnp.array([0, 0]), jnp.zeros((2, 2), jnp.int32))
    np.testing.assert_array_equal(logits[0], logits[1])  # nothing before it


# Positions against numbers worked out by hand


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
def test_a_condition_lies_over_the_image(
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
    turned = apply_rotary(x, jnp.array([[np.pi / 2, np.pi]]))
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
        a = apply_rotary(query, table[places[0] + down, places[1] + right][None])
        b = apply_rotary(key, table[places[2] + down, places[3] + right][None])
        return float(jnp.sum(a * b))

    assert product(*shift) == pytest.approx(product(0, 0), abs=1e-5)


def test_half_precision_stays_and_is_turned_in_float32() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 2, 8)), jnp.bfloat16)
    angles = jnp.asarray(np.random.default_rng(1).uniform(0, 200, (3, 4)), jnp.float32)
    turned = apply_rotary(x, angles)
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_array_equal(turned, apply_rotary(x.astype(jnp.float32), angles).astype(jnp.bfloat16))
