"""Sampling from a masked prior: all tokens at once, in few passes, of which each keeps what it is surest of.

The parallel decoding of MaskGIT (arXiv 2202.04200, section 3.2). Given tokens may stand anywhere, so the same
passes fill in a missing part of a picture.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from vqgan.errors import UserError
from vqgan.functional import Arrays, take_apart
from vqgan.prior.choosing import Choice, choice_of, draw, guidance_scales, guided, sample_keys, scaled
from vqgan.prior.config import PriorConfig
from vqgan.prior.masking import decoding_counts, lowest
from vqgan.prior.request import Request, SampleInputs, check_request, check_settings, full_batches
from vqgan.prior.sampling_config import SamplingConfig
from vqgan.prior.transformer import Prior

BATCH_AXIS = "batch"
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


@dataclasses.dataclass(frozen=True)
class Kind:
    """What of the settings decides which computation is needed.

    Attributes:
      is_guided: whether logits without a class are computed too, as a second half of the batch.
      truncates: whether improbable tokens are left out.
    """

    is_guided: bool
    truncates: bool


class MaskedSampler:
    """A masked prior ready to sample. The batch is split over the devices.

    Attributes:
      config: the prior's.
      batch_size: samples per device call, a multiple of the number of devices.
      compilations: how often a function was traced and compiled: once for each number of passes, guided or
        not, truncating or not.
    """

    def __init__(
        self,
        config: PriorConfig,
        params: Arrays,
        *,
        batch_size: int = 16,
        dtype: DTypeLike = jnp.float32,
        devices: list[jax.Device] | None = None,
    ):
        """Takes a prior's weights.

        Args:
          config: the prior's.
          params: its weights by dotted name.
          batch_size: samples per device call; rounded up to a multiple of the number of devices.
          dtype: type of activations. Logits are float32.
          devices: devices to split a batch over; all local ones by default.

        Raises:
          UserError: an autoregressive prior, or a batch size below 1.
        """
        if config.kind != "masked":
            raise UserError(f"this prior is {config.kind}: it is not sampled in parallel passes")
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: it must be at least 1")
        devices = devices or jax.local_devices()
        config = dataclasses.replace(config, dropout=0.0)  # its random state acts in training only
        self.config = config
        self.batch_size = -(-batch_size // len(devices)) * len(devices)
        self.compilations = 0
        self._mesh = Mesh(np.array(devices), (BATCH_AXIS,))
        self._structure = take_apart(lambda: Prior(config, dtype=dtype, rngs=nnx.Rngs(0)))
        self._compiled = jax.jit(self._split, static_argnames="kind")
        self.replace_params(params)

    def replace_params(self, params: Arrays) -> None:
        """Takes other weights of the same prior, as training goes on; nothing is compiled anew."""
        self._params = jax.device_put(params, NamedSharding(self._mesh, PartitionSpec()))

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
        """
        check_request(self.config, request)
        check_settings(self.config, settings)
        kind = Kind(settings.is_guided, settings.truncates)
        choice = choice_of(settings)
        parts = [np.zeros((0, self.config.length), np.int32)]
        for inputs, count in full_batches(self.config, request, self.batch_size):
            passes = plan_passes(settings, np.sum(inputs.known < 0, axis=1))
            tokens = self._compiled(self._params, inputs, passes, choice, kind=kind)
            parts.append(np.asarray(tokens)[:count])
        return np.concatenate(parts).reshape(-1, *self.config.grid)

    def _split(
        self, params: Arrays, inputs: SampleInputs, passes: Passes, choice: Choice, *, kind: Kind
    ) -> jax.Array:
        """The passes compiled, each device working on its share of the batch."""
        self.compilations += 1  # Python runs here only while tracing
        # Shardings stand where arrays will: the fields' types do not count.
        whole: Any = PartitionSpec()
        rows: Any = PartitionSpec(BATCH_AXIS)
        columns: Any = PartitionSpec(None, BATCH_AXIS)
        split = jax.shard_map(
            partial(self._sampled, kind),
            mesh=self._mesh,
            in_specs=(whole, rows, Passes(whole, whole, whole, columns), whole),
            out_specs=rows,
            check_vma=False,
        )
        tokens: jax.Array = split(params, inputs, passes, choice)
        return tokens

    def _sampled(
        self, kind: Kind, params: Arrays, inputs: SampleInputs, passes: Passes, choice: Choice
    ) -> jax.Array:
        logits_of = _guided_logits if kind.is_guided else _plain_logits
        prior = self._structure.bind(params, {})
        tokens = jnp.where(inputs.known < 0, self.config.codebook_size, inputs.known)
        predict = partial(logits_of, prior, inputs)
        seeds = jnp.asarray(inputs.seeds)
        return fill_in(predict, tokens, seeds, passes, choice, truncates=kind.truncates)


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


def _plain_logits(prior: Prior, inputs: SampleInputs, tokens: jax.Array, scale: jax.Array) -> jax.Array:
    condition = None if inputs.condition is None else jnp.asarray(inputs.condition)
    return prior(tokens, jnp.asarray(inputs.labels), condition)


def _guided_logits(prior: Prior, inputs: SampleInputs, tokens: jax.Array, scale: jax.Array) -> jax.Array:
    """Logits with and without a class from one doubled batch."""
    labels = jnp.concatenate([inputs.labels, jnp.full_like(inputs.labels, prior.config.classes)])
    condition = None if inputs.condition is None else jnp.concatenate([inputs.condition] * 2)
    both = prior(jnp.concatenate([tokens, tokens]), labels, condition)  # (2B, L, K)
    with_class, without = jnp.split(both, 2)
    return guided(with_class, without, scale)
