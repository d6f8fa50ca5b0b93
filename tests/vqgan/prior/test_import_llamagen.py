"""Checkpoints of LlamaGen's GPT give the logits of its published code.

``tests/testdata/priors`` holds small seeded ones and what that code has computed with them: of whole
sequences, and token by token with its cache.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan.errors import UserError
from vqgan.functional import take_apart
from vqgan.prior.attention import PriorCache
from vqgan.prior.import_llamagen import HEADS, import_llamagen_prior, is_llamagen
from vqgan.prior.import_taming import ImportedPrior, PriorSpec
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.request import Request
from vqgan.prior.sampling.sampler import PriorSampler
from vqgan.prior.text import Text
from vqgan.prior.transformer import PriorTransformer

FOLDER = Path(__file__).parents[2] / "testdata" / "priors"
SPEC = PriorSpec(codebook_size=64, grid=(4, 4), heads=2)
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["llamagen-c2i", "llamagen-t2i"])
def case(request: pytest.FixtureRequest) -> tuple[ImportedPrior, dict[str, np.ndarray]]:
    folder = FOLDER / request.param
    with np.load(folder / "expected.npz") as arrays:
        return import_llamagen_prior(str(folder / "gpt.pt"), SPEC), dict(arrays)


def bound(found: ImportedPrior) -> PriorTransformer:
    structure = take_apart(lambda: PriorTransformer(found.config, rngs=nnx.Rngs(0)))
    return structure.bind({name: jnp.asarray(value) for name, value in found.weights.items()}, {})


def conditions(expected: dict[str, np.ndarray]) -> tuple[jax.Array | None, Text | None]:
    """Labels or a text, as the published code was given them."""
    if "labels" in expected:
        return jnp.asarray(expected["labels"]), None
    return None, Text(jnp.asarray(expected["captions"]), jnp.asarray(expected["mask"]))


def test_logits_of_whole_sequences(case: tuple[ImportedPrior, dict[str, np.ndarray]]) -> None:
    found, expected = case
    labels, text = conditions(expected)
    prior = bound(found)
    logits = jax.jit(lambda tokens: prior(tokens, labels, None, text))(jnp.asarray(expected["tokens"]))
    np.testing.assert_allclose(logits, expected["whole"], atol=TOLERANCE)


def step_by_step(
    prior: PriorTransformer, tokens: jax.Array, labels: jax.Array | None, text: Text | None
) -> np.ndarray:
    def steps(tokens: jax.Array) -> jax.Array:
        whole = prior.complete_text(text, len(tokens))
        x = prior.prefix_inputs(len(tokens), labels, None, whole)
        features, cache = prior.prefill(x, prior.empty_cache(len(tokens)), whole)
        first = prior.logits(features[:, -1:])

        def step(cache: PriorCache, k: jax.Array) -> tuple[PriorCache, jax.Array]:
            x = prior.token_inputs(jax.lax.dynamic_slice_in_dim(tokens, k, 1, axis=1), k)
            logits, cache = prior.decode_step(x, prior.config.prefix + k, cache, whole)
            return cache, logits[:, 0]

        _, others = jax.lax.scan(step, cache, jnp.arange(tokens.shape[1] - 1))
        return jnp.concatenate([first, others.swapaxes(0, 1)], axis=1)

    return np.asarray(jax.jit(steps)(tokens))


def test_logits_of_prefill_and_cached_steps(case: tuple[ImportedPrior, dict[str, np.ndarray]]) -> None:
    found, expected = case
    labels, text = conditions(expected)
    logits = step_by_step(bound(found), jnp.asarray(expected["tokens"]), labels, text)
    np.testing.assert_allclose(logits, expected["steps"], atol=TOLERANCE)


def test_no_text_is_what_was_learned_for_none() -> None:
    """In the places of the caption, as its guidance has it."""
    with np.load(FOLDER / "llamagen-t2i" / "expected.npz") as arrays:
        expected = dict(arrays)
    prior = bound(import_llamagen_prior(str(FOLDER / "llamagen-t2i"), SPEC))
    assert prior.text is not None
    given = conditions(expected)[1]
    assert given is not None
    text = prior.text.drop(given, jnp.ones(3, bool))
    logits = step_by_step(prior, jnp.asarray(expected["tokens"]), None, text)
    np.testing.assert_allclose(logits, expected["without"], atol=TOLERANCE)


def test_samples_with_guidance(case: tuple[ImportedPrior, dict[str, np.ndarray]]) -> None:
    """The most probable tokens with guidance are those of logits that are guided by hand."""
    found, expected = case
    labels, text = conditions(expected)
    sampler = PriorSampler(found.config, found.weights, batch_size=3)
    request = Request(
        np.arange(3),
        None if labels is None else np.where(labels == found.config.classes, -1, labels),
        text=None if text is None else Text(*map(np.asarray, text)),
    )
    tokens = sampler.sample(request, SamplingConfig(temperature=0, guidance=2.0)).reshape(3, -1)
    prior = bound(found)

    @jax.jit
    def guided(tokens: jax.Array) -> jax.Array:
        without = text
        if text is not None and prior.text is not None:
            without = prior.text.drop(text, jnp.ones(3, bool))
        return 2 * prior(tokens, labels, None, text) - prior(tokens, None, None, without)

    np.testing.assert_array_equal(tokens, jnp.argmax(guided(jnp.asarray(tokens)), axis=-1))


def test_what_a_file_does_not_say(case: tuple[ImportedPrior, dict[str, np.ndarray]]) -> None:
    found, expected = case
    assert found.config.hidden == 96
    assert found.config.classes == (10 if "labels" in expected else 0)
    assert found.config.prefix == (1 if "labels" in expected else 120)
    assert HEADS[768] == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": None}, "its width, 32, is of no published size; give --heads"),
        ({"codebook_size": 65}, "it has 64 codes, --codec 65; give the codec that it was trained with"),
        ({"classes": 7}, "this prior was trained with 10 classes; give --classes 10"),
        ({"condition_codebook_size": 3}, "a prior of LlamaGen has no condition grid"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, object], message: str) -> None:
    spec = PriorSpec(**{"codebook_size": 64, "grid": (4, 4), "heads": 2, **changes})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        import_llamagen_prior(str(FOLDER / "llamagen-c2i" / "gpt.pt"), spec)


def test_how_a_checkpoint_is_known() -> None:
    assert is_llamagen(str(FOLDER / "llamagen-t2i" / "gpt.pt"))
    tokenizer = FOLDER.parent / "golden" / "llamagen" / "vq_model.pt"
    assert not is_llamagen(str(tokenizer))
    with pytest.raises(UserError, match="no transformer of LlamaGen in it"):
        import_llamagen_prior(str(tokenizer), SPEC)
