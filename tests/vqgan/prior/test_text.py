"""Texts of a prior: words and vectors, padding, no text, guidance, and likelihoods."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan.errors import UserError
from vqgan.functional import take_apart
from vqgan.prior.config import ObjectiveConfig, PriorConfig, prior_parameter_shapes
from vqgan.prior.losses import training_loss
from vqgan.prior.sampling.config import MaskedSamplingConfig, SamplingConfig
from vqgan.prior.sampling.request import Request
from vqgan.prior.sampling.sampler import PriorSampler
from vqgan.prior.text import Text, build_vocabulary, encode_prompts, pad_texts, pad_vectors, split_words
from vqgan.prior.transformer import PriorTransformer

WORDS = PriorConfig(
    codebook_size=9,
    grid=(2, 3),
    classes=2,
    layers=1,
    heads=2,
    width=16,
    hidden=16,
    text_length=4,
    text_words=6,
)
VECTORS = dataclasses.replace(WORDS, text_words=0, text_width=5, classes=0)
GPT = dataclasses.replace(WORDS, block="gpt")
MASKED = dataclasses.replace(WORDS, kind="masked")
CONFIGS = {"words": WORDS, "vectors": VECTORS, "gpt": GPT, "masked": MASKED}


def prior_of(config: PriorConfig) -> PriorTransformer:
    rng = np.random.default_rng(0)
    shapes = prior_parameter_shapes(config)
    params = {
        name: jnp.asarray(rng.normal(size=shape) * 0.5 + name.endswith("scale"), jnp.float32)
        for name, shape in shapes.items()
    }
    return take_apart(lambda: PriorTransformer(config, rngs=nnx.Rngs(0))).bind(params, {})


def compiled(prior: PriorTransformer) -> Callable[[Text], jax.Array]:
    """The logits of some tokens, compiled once: one by one, operations are compiled each by itself."""
    return jax.jit(lambda text: prior(TOKENS, None, None, text))


def some_text(config: PriorConfig, lengths: tuple[int, ...] = (4, 2, 0)) -> Text:
    rng = np.random.default_rng(1)
    if config.text_words:
        return pad_texts([rng.integers(1, config.text_words, length) for length in lengths], config)
    return pad_texts([rng.normal(size=(length, config.text_width)) for length in lengths], config)


TOKENS = jnp.asarray(np.random.default_rng(2).integers(0, 9, (3, 6)), jnp.int32)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_names_and_shapes_are_those_of_the_module(config: PriorConfig) -> None:
    abstract = take_apart(lambda: PriorTransformer(config, rngs=nnx.Rngs(0))).params
    shapes = {".".join(map(str, path)): value.shape for path, value in nnx.to_flat_state(abstract)}
    assert shapes == prior_parameter_shapes(config)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_padding_is_not_seen(config: PriorConfig) -> None:
    """Whatever stands in it; what stands in the text is seen; and no text is one that is all padding."""
    prior, text = prior_of(config), some_text(config)
    other = some_text(config, (4, 4, 4))
    dirty = Text(np.where(text.mask.reshape(text.mask.shape + (1,) * (text.values.ndim - 2)), *(
        text.values, other.values)), text.mask)  # fmt: skip
    forward = compiled(prior)
    logits = forward(text)
    np.testing.assert_allclose(forward(dirty), logits, rtol=1e-5, atol=1e-6)
    changed = np.abs(forward(other) - logits).max(axis=(1, 2))
    assert (changed[1:] > 1e-3).all()
    np.testing.assert_allclose(forward(Text.absent(config, 3))[2], logits[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["words", "gpt"])
def test_the_cache_gives_what_whole_sequences_give(name: str) -> None:
    prior, text = prior_of(CONFIGS[name]), some_text(CONFIGS[name])

    def steps(text: Text) -> jax.Array:
        x = prior.prefix_inputs(3, None, None, text)
        features, cache = prior.prefill(x, prior.empty_cache(3), text)
        parts = [prior.logits(features[:, -1:])]
        for k in range(5):
            step = prior.token_inputs(TOKENS[:, k : k + 1], k)
            logits, cache = prior.decode_step(step, prior.config.prefix + k, cache, text)
            parts.append(logits)
        return jnp.concatenate(parts, axis=1)

    np.testing.assert_allclose(jax.jit(steps)(text), compiled(prior)(text), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [WORDS, MASKED], ids=["words", "masked"])
def test_guidance_is_between_text_and_none(config: PriorConfig) -> None:
    """With scale 0 a text (and class) changes nothing: what is drawn is what is drawn without them."""
    prior = prior_of(config)
    params = take_apart(lambda: prior).values_of(prior)[0]
    sampler = PriorSampler(config, params, batch_size=3)
    seeds, masked = np.arange(3), MaskedSamplingConfig(steps=2 if config.kind == "masked" else 12)
    asked = Request(seeds, np.array([0, 1, 0]), text=some_text(config, (4, 2, 3)))
    without = sampler.sample(Request(seeds), SamplingConfig(masked=masked))
    np.testing.assert_array_equal(sampler.sample(asked, SamplingConfig(guidance=0, masked=masked)), without)
    assert not np.array_equal(sampler.sample(asked, SamplingConfig(masked=masked)), without)


def test_a_larger_grid_with_a_text() -> None:
    """A sliding window, guided; the first window's beginning is that of the trained grid."""
    config = dataclasses.replace(VECTORS, grid=(2, 2))
    prior = prior_of(config)
    sampler = PriorSampler(config, take_apart(lambda: prior).values_of(prior)[0], batch_size=2)
    request = Request(np.arange(2), text=some_text(config, (4, 2)))
    settings = SamplingConfig(guidance=2)
    found = sampler.sample(request, settings, grid=(3, 2))
    np.testing.assert_array_equal(found[:, 0], sampler.sample(request, settings)[:, 0])


def test_dropped_conditions_are_class_and_text_together() -> None:
    prior, text = prior_of(WORDS), some_text(WORDS, (4, 2, 3))
    labels, key = jnp.array([0, 1, 1]), jax.random.key(0)

    def losses() -> list[jax.Array]:
        found = []
        for share, given, asked in ((0.0, jnp.full(3, -1), None), (1.0, labels, text), (0.0, labels, text)):
            config = ObjectiveConfig(class_dropout=share)
            found.append(training_loss(prior, TOKENS, given, None, key, config, asked).loss)
        return found

    nothing, dropped, kept = map(float, jax.jit(losses)())
    assert dropped == pytest.approx(nothing, rel=1e-5)
    assert abs(kept - nothing) > 1e-4


def test_the_likelihoods_of_all_grids_sum_to_one() -> None:
    config = dataclasses.replace(WORDS, codebook_size=2, grid=(1, 3), classes=0)
    prior = prior_of(config)
    sampler = PriorSampler(config, take_apart(lambda: prior).values_of(prior)[0], batch_size=3)
    grids = np.array(np.meshgrid(*[[0, 1]] * 3, indexing="ij")).reshape(3, -1).T
    text = some_text(config, (3,) * 8)
    found = sampler.log_likelihoods(Request(np.zeros(8, int), known=grids, text=text.take([0] * 8)))
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="give all tokens"):
        sampler.log_likelihoods(Request(np.zeros(8, int), known=grids - 1))


def test_words() -> None:
    assert split_words("A red circle, isn't it?") == ["a", "red", "circle", ",", "isn't", "it", "?"]
    assert build_vocabulary(["b a b", "c B"]) == ("b", "a", "c")
    text = encode_prompts(["b c", None, ""], ("b", "a", "c"), WORDS)
    np.testing.assert_array_equal(text.values, [[0, 0, 1, 3], [0] * 4, [0] * 4])
    np.testing.assert_array_equal(text.mask.sum(axis=1), [2, 0, 0])


@pytest.mark.parametrize(
    ("prompt", "config", "message"),
    [
        ("a rad circle", WORDS, "prompt 'a rad circle': .* without the word 'rad'; did you mean red?"),
        ("a red red red red", WORDS, "it has 5 words, but the prior was trained on 4 at most; shorten it"),
        ("a red", VECTORS, "not trained on words but on vectors: give them as condition embeddings"),
        ("a red", PriorConfig(), "not trained on words but on classes or nothing"),
    ],
)
def test_refused_prompts(prompt: str, config: PriorConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        encode_prompts([prompt], ("a", "red", "circle"), config)


def test_refused_vectors() -> None:
    with pytest.raises(UserError, match=r"of shape \[2, 4\]: the prior takes up to 4 of 5"):
        pad_vectors([np.zeros((2, 4))], VECTORS)
    with pytest.raises(UserError, match="not trained on such"):
        pad_vectors([np.zeros((2, 5))], WORDS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_length": 3}, "give a length and one of the others"),
        ({"text_words": 3, "text_width": 3, "text_length": 2}, "give a length and one of the others"),
        ({"text_words": 3, "text_length": 2, "text_null": True}, "only a prior whose texts are vectors"),
        ({"text_words": 3, "text_length": 2000}, "at most 1024"),
        ({"block": "gpt", "blank_prefix": True}, "it is of block llama"),
        ({"start_token": False}, "of block llama with text_null"),
    ],
)
def test_refused_configurations(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PriorConfig(**fields)  # type: ignore[arg-type]
