"""Sampling from a masked prior: all tokens at once, in few passes, of which each keeps what it is surest of.

The parallel decoding of MaskGIT (arXiv 2202.04200, section 3.2). Given tokens may stand anywhere, so the same
passes fill in a missing part of a picture.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vqgan.prior.choosing import Choice, choice_of, draw, guidance_scales, sample_keys, scaled
from vqgan.prior.compiled import COLUMNS, WHOLE, CompiledPrior, Kind
from vqgan.prior.masking import decoding_counts, lowest
from vqgan.prior.request import Request, SampleInputs, check_request, check_settings
from vqgan.prior.sampling_config import SamplingConfig
from vqgan.prior.transformer import Prior

TOKEN_NOISE, CONFIDENCE_NOISE = 0, 1
"""What a sample's random key of one step is folded with for the two kinds of noise."""


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


Numbers = tuple[Passes, Choice]
"""Numbers by which tokens are drawn; others of them do not compile anew if the passes are as many."""


@dataclasses.dataclass(frozen=True)
class PassLoop:
    """Pass after pass over all tokens of the grid."""

    kind: Kind

    def __call__(self, prior: Prior, inputs: SampleInputs, numbers: Numbers) -> jax.Array:
        """int32 ``[B, L]``."""
        kind = self.kind
        seeds, labels, condition, known = jax.tree.map(jnp.asarray, inputs)
        labels, condition = kind.conditions(prior, labels, condition)

        def predict(tokens: jax.Array, scale: jax.Array) -> jax.Array:
            return kind.merged(prior(kind.halves(tokens), labels, condition), scale)

        tokens = jnp.where(known < 0, prior.config.codebook_size, known)
        return fill_in(predict, tokens, seeds, *numbers, truncates=kind.truncates)


class MaskedSampler(CompiledPrior[Numbers]):
    """A masked prior ready to sample. The batch is split over the devices.

    A function is compiled once for each number of passes, guided or not, truncating or not.
    """

    kind = "masked"
    manner = "in parallel passes"
    layout = (Passes(WHOLE, WHOLE, WHOLE, hidden=COLUMNS), WHOLE)

    def sample(self, request: Request, settings: SamplingConfig) -> np.ndarray:
        """Token grids for a request.

        Args:
          request: what to sample, any number of samples. Known tokens may stand anywhere and stay as they
            are; the schedule counts only the others.
          settings: how tokens are drawn.

        Returns:
          int32 ``[B, h, w]`` in ``[0, codebook_size)``.

        Raises:
          UserError: a request or settings that this prior cannot serve.
          ValueError: the weights were released.
        """
        check_request(self.config, request)
        check_settings(self.config, settings)
        choice = choice_of(settings)

        def numbers(inputs: SampleInputs) -> Numbers:
            return plan_passes(settings, np.sum(inputs.known < 0, axis=1)), choice

        loop = PassLoop(Kind(settings.is_guided, settings.truncates))
        return self._run(loop, self.config, request, numbers)


def plan_passes(settings: SamplingConfig, unknown: np.ndarray) -> Passes:
    """What the passes do.

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
        jnp.asarray(decoding_counts(settings.masked.schedule, unknown, steps)),
    )


def fill_in(
    predict: Callable[[jax.Array, jax.Array], jax.Array],
    tokens: jax.Array,
    seeds: jax.Array,
    passes: Passes,
    choice: Choice,
    *,
    truncates: bool,
) -> jax.Array:
    """Replaces hidden tokens in a number of passes, in one compiled loop.

    Args:
      predict: tokens ``[B, L]`` and the scale of guidance to logits ``[B, L, K]``.
      tokens: int32 ``[B, L]``; K where hidden.
      seeds: uint32 ``[B]``.
      passes: what they do.
      choice: how to draw.
      truncates: whether improbable tokens are left out.

    Returns:
      int32 ``[B, L]``.
    """
    keys = sample_keys(seeds)

    def fill(tokens: jax.Array, step: Passes) -> tuple[jax.Array, None]:
        logits = predict(tokens, step.scale)
        step_keys = _folded(keys, step.number)
        return _filled(logits, tokens, step_keys, step, choice, truncates=truncates), None

    return jax.lax.scan(fill, tokens, passes)[0]


def _filled(
    logits: jax.Array,
    tokens: jax.Array,
    keys: jax.Array,
    step: Passes,
    choice: Choice,
    *,
    truncates: bool,
) -> jax.Array:
    """Draws all hidden tokens, then hides those again that are the least certain.

    A token's certainty is its log-probability in the prior's own (guided) distribution, whatever the
    temperature and truncation: after those, all tokens may be equally certain.
    """
    hidden_id = logits.shape[-1]
    drawn = _drawn(logits, _folded(keys, TOKEN_NOISE), choice, truncates=truncates)
    certainty = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[..., None], axis=-1)[..., 0]
    # Type and mode are named for the same reason as in `draw`.
    noise = jax.vmap(lambda key: jax.random.gumbel(key, tokens.shape[1:], jnp.float32, mode="low"))(
        _folded(keys, CONFIDENCE_NOISE)
    )
    is_hidden = tokens == hidden_id  # (B, L)
    # What is there already is never hidden again.
    confidence = jnp.where(is_hidden, certainty + step.noise * noise, jnp.inf)
    again = lowest(confidence, step.hidden) & is_hidden
    return jnp.where(again, hidden_id, jnp.where(is_hidden, drawn, tokens))


def _drawn(logits: jax.Array, keys: jax.Array, choice: Choice, *, truncates: bool) -> jax.Array:
    """A token for every place, ``[B, L, K]`` to int32 ``[B, L]``, by the sample's key and the place."""
    batch, length, count = logits.shape
    place_keys = jax.vmap(lambda key: _folded(jnp.broadcast_to(key, length), jnp.arange(length)))(keys)
    rows = scaled(logits.reshape(-1, count), choice, truncates=truncates)
    return draw(rows, place_keys.reshape(-1), choice.temperature).reshape(batch, length)


def _folded(keys: jax.Array, data: int | jax.Array) -> jax.Array:
    """Random keys ``[B]`` folded with a number, or each with its own."""
    return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(jnp.asarray(data), keys.shape))
