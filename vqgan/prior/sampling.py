"""Sampling of an autoregressive prior: one compiled loop over the tokens, with a cache of keys and values.

Any number of samples goes through one fixed batch, so that XLA compiles once for each kind of settings.
What a sample becomes follows from its own seed: token k is drawn with the seed's key folded with k.
"""

import dataclasses
from functools import partial
from typing import NamedTuple, Protocol

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
from vqgan.prior.request import Request, SampleInputs, check_request, check_settings, full_batches
from vqgan.prior.sampling_config import SamplingConfig
from vqgan.prior.transformer import Cache, Prior

BATCH_AXIS = "batch"


class Draws(NamedTuple):
    """Numbers by which tokens are drawn; others of them do not compile anew.

    Attributes:
      choice: temperature and truncation.
      scales: float32 ``[L]``, guidance at each token.
    """

    choice: Choice
    scales: jax.Array


class Loop(Protocol):
    """How the tokens of a batch are sampled; compiled anew for each other value, so it must be hashable."""

    def __call__(self, prior: Prior, inputs: SampleInputs, draws: Draws) -> jax.Array:
        """int32 ``[B, L]``."""
        ...


@dataclasses.dataclass(frozen=True)
class Kind:
    """What of the settings decides which computation is needed.

    Attributes:
      is_guided: whether logits without a class are computed too, as a second half of the batch.
      truncates: whether improbable tokens are left out.
      given: number n of tokens known from the start, the first ones of every sample.
    """

    is_guided: bool
    truncates: bool
    given: int

    def halves(self, x: jax.Array) -> jax.Array:
        """``[B, ...]`` for every row of the model's batch: twice, where there is guidance."""
        return jnp.concatenate([x, x]) if self.is_guided else x

    def prefix(self, prior: Prior, labels: jax.Array, condition: jax.Array | None) -> jax.Array:
        """Inputs ``[B or 2B, P, D]`` before the first token, those without a class in the second half."""
        if self.is_guided:
            labels = jnp.concatenate([labels, jnp.full_like(labels, prior.config.classes)])
        condition = None if condition is None else self.halves(condition)
        return prior.prefix_inputs(len(labels), labels, condition)

    def choose(self, logits: jax.Array, keys: jax.Array, k: int | jax.Array, draws: Draws) -> jax.Array:
        """Token k of each sample, int32 ``[B]``, from logits ``[B or 2B, K]``."""
        if self.is_guided:
            with_class, without = jnp.split(logits, 2)
            logits = guided(with_class, without, draws.scales[k])
        logits = scaled(logits, draws.choice, truncates=self.truncates)
        own = jax.vmap(lambda key: jax.random.fold_in(key, k))(keys)
        return draw(logits, own, draws.choice.temperature)


@dataclasses.dataclass(frozen=True)
class RasterLoop:
    """Token after token over the grid that the prior was trained on.

    The cache is made inside the compiled function: XLA changes it in place, and there is none to donate.
    """

    kind: Kind

    def __call__(self, prior: Prior, inputs: SampleInputs, draws: Draws) -> jax.Array:
        """int32 ``[B, L]``."""
        seeds, labels, condition, tokens = jax.tree.map(jnp.asarray, inputs)
        kind, given, keys = self.kind, self.kind.given, sample_keys(seeds)
        start = kind.prefix(prior, labels, condition)
        x = jnp.concatenate([start, prior.token_inputs(kind.halves(tokens[:, :given]), 0)], axis=1)
        features, cache = prior.read(x, 0, prior.empty_cache(len(x)))
        first = kind.choose(prior.logits(features[:, -1]), keys, given, draws)

        def step(k: jax.Array, state: tuple[jax.Array, Cache]) -> tuple[jax.Array, Cache]:
            tokens, cache = state
            previous = jax.lax.dynamic_slice_in_dim(tokens, k - 1, 1, axis=1)  # (B, 1)
            x = prior.token_inputs(kind.halves(previous), k - 1)
            logits, cache = prior.extend(x, start.shape[1] + k - 1, cache)
            return tokens.at[:, k].set(kind.choose(logits[:, 0], keys, k, draws)), cache

        tokens = tokens.at[:, given].set(first)
        tokens, _ = jax.lax.fori_loop(given + 1, tokens.shape[1], step, (tokens, cache))
        return tokens


class Sampler:
    """An autoregressive prior ready to sample. The batch is split over the devices.

    Attributes:
      config: the prior's.
      batch_size: samples per device call, a multiple of the number of devices.
      compilations: how often a function was traced and compiled for another kind of settings.
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
          dtype: type of activations and of the cache. Logits are float32.
          devices: devices to split a batch over; all local ones by default.

        Raises:
          UserError: a masked prior, or a batch size below 1.
        """
        if not config.is_causal:
            raise UserError(f"this prior is {config.kind}: it is not sampled token by token")
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: it must be at least 1")
        devices = devices or jax.local_devices()
        config = dataclasses.replace(config, dropout=0.0)  # its random state acts in training only
        self.config = config
        self.batch_size = -(-batch_size // len(devices)) * len(devices)
        self.compilations = 0
        self._dtype = jnp.dtype(dtype)
        self._mesh = Mesh(np.array(devices), (BATCH_AXIS,))
        self._structure = take_apart(lambda: Prior(config, dtype=dtype, rngs=nnx.Rngs(0)))
        self._compiled = jax.jit(self._split, static_argnames="loop")
        self.replace_params(params)

    def replace_params(self, params: Arrays) -> None:
        """Takes other weights of the same prior, as training goes on; nothing is compiled anew."""
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        self._params = jax.device_put({name: self._cast(name, x) for name, x in params.items()}, everywhere)

    def sample(self, request: Request, settings: SamplingConfig) -> np.ndarray:
        """Token grids for a request.

        Args:
          request: what to sample, any number of samples. Known tokens are the first n of every sample.
          settings: how tokens are drawn.

        Returns:
          int32 ``[B, h, w]`` in ``[0, codebook_size)``.

        Raises:
          UserError: a request or settings that this prior cannot serve.
        """
        check_request(self.config, request)
        check_settings(self.config, settings)
        kind = kind_of(request, settings)
        return self.run(RasterLoop(kind), self.config, request, settings)

    def run(self, loop: Loop, config: PriorConfig, request: Request, settings: SamplingConfig) -> np.ndarray:
        """Samples a checked request with a loop, batch by batch.

        Args:
          loop: how.
          config: of the prior, with the grids of the request.
          request: what.
          settings: numbers of the draws.

        Returns:
          int32 ``[B, *config.grid]``.
        """
        draws = Draws(choice_of(settings), jnp.asarray(guidance_scales(settings, config.length)))
        parts = [np.zeros((0, config.length), np.int32)]
        for inputs, count in full_batches(config, request, self.batch_size):
            if (inputs.known >= 0).all():
                parts.append(inputs.known[:count])
            else:
                parts.append(np.asarray(self._compiled(self._params, inputs, draws, loop=loop))[:count])
        return np.concatenate(parts).reshape(-1, *config.grid)

    def _split(self, params: Arrays, inputs: SampleInputs, draws: Draws, *, loop: Loop) -> jax.Array:
        """The loop compiled, each device working on its share of the batch."""
        self.compilations += 1  # Python runs here only while tracing
        split = jax.shard_map(
            partial(self._sampled, loop),
            mesh=self._mesh,
            in_specs=(PartitionSpec(), PartitionSpec(BATCH_AXIS), PartitionSpec()),
            out_specs=PartitionSpec(BATCH_AXIS),
            check_vma=False,
        )
        tokens: jax.Array = split(params, inputs, draws)
        return tokens

    def _sampled(self, loop: Loop, params: Arrays, inputs: SampleInputs, draws: Draws) -> jax.Array:
        return loop(self._structure.bind(params, {}), inputs, draws)

    def _cast(self, name: str, value: jax.Array) -> jax.Array:
        """Matrices in the type that layers would cast them to at each token."""
        return jnp.asarray(value, self._dtype) if name.endswith(".kernel") else jnp.asarray(value)


def kind_of(request: Request, settings: SamplingConfig) -> Kind:
    """Which computation a request and its settings need.

    Raises:
      UserError: known tokens are not the first n of every sample.
    """
    return Kind(settings.is_guided, settings.truncates, _given(request))


def _given(request: Request) -> int:
    """Number of tokens known from the start."""
    if request.known is None or not len(request.known):
        return 0
    is_known = np.asarray(request.known) >= 0  # (B, L)
    given = int(is_known[0].sum())
    if not np.array_equal(is_known, np.broadcast_to(np.arange(is_known.shape[1]) < given, is_known.shape)):
        raise UserError(
            "known tokens are not the first n in raster order, with one n for all samples: an autoregressive "
            "prior completes such a beginning only; take a masked prior to fill in any other region"
        )
    return given
