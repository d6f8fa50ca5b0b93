"""The decoding loops of both kinds of prior.

An autoregressive one draws token after token, with a cache of keys and values. What a sample becomes follows
from its own seed: token k is drawn with the seed's key folded with k.

A masked one draws all tokens at once, in few passes, of which each keeps what it is surest of: the parallel
decoding of MaskGIT (arXiv 2202.04200, section 3.2). Given tokens may stand anywhere, so the same passes fill
in a missing part of an image.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from vqgan.prior.mask_schedules import decoding_mask_counts, lowest_mask
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.logits import (
    LogitsParams,
    SamplingVariant,
    filter_logits,
    fold_keys,
    guidance_scales,
    gumbel_noise,
    sample_keys,
    sample_tokens,
)
from vqgan.prior.sampling.request import BATCH_AXIS, SampleInputs
from vqgan.prior.text import Text
from vqgan.prior.transformer import PriorCache, PriorTransformer


class RasterNumbers(NamedTuple):
    """Numbers by which tokens are drawn one by one; others of them do not compile anew.

    Attributes:
      params: temperature and truncation.
      scales: float32 ``[L]``, guidance at each token.
    """

    params: LogitsParams
    scales: jax.Array


@dataclasses.dataclass(frozen=True)
class RasterLoop:
    """What the loops that draw token after token share.

    Attributes:
      variant: of the computation.
      given: number n of tokens known from the start, the first ones of every sample.
    """

    variant: SamplingVariant
    given: int
    layout: ClassVar[Any] = PartitionSpec()

    def raster_numbers(self, settings: SamplingConfig, known: np.ndarray) -> RasterNumbers:
        """Returns the numbers for a batch with known tokens ``[B, L]``."""
        scales = guidance_scales(settings, known.shape[1])
        return RasterNumbers(LogitsParams.of(settings), jnp.asarray(scales))

    def prefix_inputs(
        self, prior: PriorTransformer, labels: jax.Array, condition: jax.Array | None, text: Text | None
    ) -> jax.Array:
        """Returns inputs ``[B or 2B, P, D]`` before the first token; the second half is without a class.

        The text is of the model's batch already.
        """
        labels, condition = self.variant.double_conditions(labels, condition, prior.config.classes)
        return prior.prefix_inputs(len(labels), labels, condition, text)

    def next_tokens(
        self, logits: jax.Array, keys: jax.Array, k: int | jax.Array, numbers: RasterNumbers
    ) -> jax.Array:
        """Draws token k of each sample, int32 ``[B]``, from logits ``[B or 2B, K]``."""
        logits = self.variant.guide(logits, numbers.scales[k])  # (B, K)
        logits = filter_logits(logits, numbers.params, truncates=self.variant.truncates)
        return sample_tokens(logits, fold_keys(keys, k), numbers.params.temperature)


@dataclasses.dataclass(frozen=True)
class AutoregressiveLoop(RasterLoop):
    """Token after token over the grid that the prior was trained on."""

    def numbers(self, settings: SamplingConfig, known: np.ndarray) -> list[RasterNumbers]:
        """Returns the numbers of the one call for a batch with known tokens ``[B, L]``."""
        return [self.raster_numbers(settings, known)]

    def __call__(self, prior: PriorTransformer, inputs: SampleInputs, numbers: RasterNumbers) -> jax.Array:
        """Decodes a batch, int32 ``[B, L]``."""
        seeds, labels, condition, tokens, text = jax.tree.map(jnp.asarray, inputs)
        text = self.variant.double_text(prior, text, len(tokens))
        keys, given = sample_keys(seeds), self.given
        # Prefix and given tokens are read at once. The cache is made inside the compiled function: XLA
        # changes it in place, and there is none to donate.
        prefix = self.prefix_inputs(prior, labels, condition, text)  # (B or 2B, P, D)
        beginning = prior.token_inputs(self.variant.double(tokens[:, :given]), 0)
        x = jnp.concatenate([prefix, beginning], axis=1)  # (B or 2B, P + n, D)
        features, cache = prior.prefill(x, prior.empty_cache(len(x)), text)
        first = self.next_tokens(prior.logits(features[:, -1]), keys, given, numbers)

        def step(k: jax.Array, state: tuple[jax.Array, PriorCache]) -> tuple[jax.Array, PriorCache]:
            tokens, cache = state
            previous = jax.lax.dynamic_slice_in_dim(tokens, k - 1, 1, axis=1)  # (B, 1)
            x = prior.token_inputs(self.variant.double(previous), k - 1)  # (B or 2B, 1, D)
            logits, cache = prior.decode_step(x, prefix.shape[1] + k - 1, cache, text)
            return tokens.at[:, k].set(self.next_tokens(logits[:, 0], keys, k, numbers)), cache

        tokens = tokens.at[:, given].set(first)
        tokens, _ = jax.lax.fori_loop(given + 1, tokens.shape[1], step, (tokens, cache))
        return tokens


TOKEN_NOISE, CONFIDENCE_NOISE = 0, 1
"""What a sample's random key of one step is folded with for the two kinds of noise."""
_WHOLE: Any = PartitionSpec()  # of numbers that every device has


class Passes(NamedTuple):
    """What differs between the passes, stacked along the first axis: T passes over B samples.

    Attributes:
      number: int32 ``[T]``, the number of the pass.
      scale: float32 ``[T]``, of guidance.
      noise: float32 ``[T]``, temperature of the noise that is added to the confidence.
      hidden: int32 ``[T, B]``, how many tokens are still hidden afterwards.
    """

    number: jax.Array
    scale: jax.Array
    noise: jax.Array
    hidden: jax.Array


MaskedNumbers = tuple[Passes, LogitsParams]
"""Numbers by which tokens are drawn; others of them do not compile anew if the passes are as many."""


@dataclasses.dataclass(frozen=True)
class MaskedLoop:
    """Pass after pass over all tokens of the grid."""

    variant: SamplingVariant
    layout: ClassVar[Any] = (
        Passes(_WHOLE, _WHOLE, _WHOLE, hidden=PartitionSpec(None, BATCH_AXIS)),  # type: ignore[arg-type]
        _WHOLE,
    )

    def numbers(self, settings: SamplingConfig, known: np.ndarray) -> list[MaskedNumbers]:
        """Returns the numbers of the one call for a batch with known tokens ``[B, L]``.

        Schedules count only the others.
        """
        return [(plan_passes(settings, np.sum(known < 0, axis=1)), LogitsParams.of(settings))]

    def __call__(self, prior: PriorTransformer, inputs: SampleInputs, numbers: MaskedNumbers) -> jax.Array:
        """Decodes a batch, int32 ``[B, L]``."""
        variant = self.variant
        seeds, labels, condition, known, text = jax.tree.map(jnp.asarray, inputs)
        labels, condition = variant.double_conditions(labels, condition, prior.config.classes)
        text = variant.double_text(prior, text, len(known))

        def predict(tokens: jax.Array, scale: jax.Array) -> jax.Array:
            return variant.guide(prior(variant.double(tokens), labels, condition, text), scale)  # (B, L, K)

        tokens = jnp.where(known < 0, prior.config.codebook_size, known)
        return fill_in(predict, tokens, seeds, *numbers, truncates=variant.truncates)


def plan_passes(settings: SamplingConfig, unknown: np.ndarray) -> Passes:
    """Plans what the passes do.

    Args:
      settings: how to draw.
      unknown: ``[B]`` tokens of each sample that are not given.
    """
    steps = settings.masked.steps
    left = 1 - np.arange(1, steps + 1) / steps  # share of the passes after this one
    return Passes(
        jnp.arange(steps),
        jnp.asarray(guidance_scales(settings, steps)),
        jnp.asarray(settings.masked.choice_temperature * left, jnp.float32),
        jnp.asarray(decoding_mask_counts(settings.masked.schedule, unknown, steps)),
    )


def fill_in(
    predict: Callable[[jax.Array, jax.Array], jax.Array],
    tokens: jax.Array,
    seeds: jax.Array,
    passes: Passes,
    params: LogitsParams,
    *,
    truncates: bool,
) -> jax.Array:
    """Replaces hidden tokens in a number of passes, in one compiled loop.

    Args:
      predict: tokens ``[B, L]`` and the scale of guidance to logits ``[B, L, K]``.
      tokens: int32 ``[B, L]``; K where hidden.
      seeds: uint32 ``[B]``.
      passes: what they do.
      params: how to draw.
      truncates: whether improbable tokens are left out.

    Returns:
      int32 ``[B, L]``.
    """
    keys = sample_keys(seeds)

    def fill(tokens: jax.Array, step: Passes) -> tuple[jax.Array, None]:
        logits, step_keys = predict(tokens, step.scale), fold_keys(keys, step.number)
        drawn = _draw_places(logits, fold_keys(step_keys, TOKEN_NOISE), params, truncates=truncates)
        return _keep_surest(tokens, drawn, logits, step_keys, step), None

    return jax.lax.scan(fill, tokens, passes)[0]


def _draw_places(logits: jax.Array, keys: jax.Array, params: LogitsParams, *, truncates: bool) -> jax.Array:
    """Draws a token for every place, ``[B, L, K]`` to int32 ``[B, L]``, by the sample's key and the place."""
    batch, length, count = logits.shape
    place_keys = jax.vmap(lambda key: fold_keys(jnp.broadcast_to(key, length), jnp.arange(length)))(keys)
    rows = filter_logits(logits.reshape(-1, count), params, truncates=truncates)  # (B * L, K)
    return sample_tokens(rows, place_keys.reshape(-1), params.temperature).reshape(batch, length)


def _keep_surest(
    tokens: jax.Array, drawn: jax.Array, logits: jax.Array, keys: jax.Array, step: Passes
) -> jax.Array:
    """Fills in drawn tokens ``[B, L]`` where hidden, then hides those again that are the least certain.

    A token's certainty is its log-probability in the prior's own (guided) distribution, whatever the
    temperature and truncation: after those, all tokens may be equally certain.
    """
    hidden_id = logits.shape[-1]
    certainty = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[..., None], axis=-1)[..., 0]  # (B, L)
    noise = gumbel_noise(fold_keys(keys, CONFIDENCE_NOISE), tokens.shape[1])  # (B, L)
    is_hidden = tokens == hidden_id  # (B, L)
    # What is there already is never hidden again.
    confidence = jnp.where(is_hidden, certainty + step.noise * noise, jnp.inf)
    again = lowest_mask(confidence, step.hidden) & is_hidden
    return jnp.where(again, hidden_id, jnp.where(is_hidden, drawn, tokens))
