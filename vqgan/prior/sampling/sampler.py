"""A prior ready to sample: its weights on devices, and one compiled function for each variant of sampling.

Any number of samples goes through one fixed batch, which the devices divide among themselves, so that XLA
compiles once for each kind of settings.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from vqgan.errors import UserError
from vqgan.functional import Arrays, take_apart
from vqgan.prior.checkpoint import PriorInfo, load_prior_weights
from vqgan.prior.config import PriorConfig
from vqgan.prior.losses import log_likelihoods
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.logits import SamplingVariant
from vqgan.prior.sampling.loops import AutoregressiveLoop, MaskedLoop
from vqgan.prior.sampling.request import (
    BATCH_AXIS,
    Request,
    SampleInputs,
    check_request,
    check_settings,
    full_batches,
    given_count,
)
from vqgan.prior.sampling.sliding_window import SlidingWindowLoop, enlarge_grid
from vqgan.prior.transformer import PriorTransformer

N = TypeVar("N")
TokenProgress = Callable[[int, int], None]
"""Called with the number of tokens that each sample of a batch has, and that it will have."""


class DecodingLoop(Protocol[N]):
    """How the tokens of a batch are decoded; compiled anew for each other value, so it must be hashable."""

    @property
    def layout(self) -> Any:
        """Returns how devices divide the numbers among themselves: partition specs for (parts of) them."""
        ...

    def numbers(self, settings: SamplingConfig, known: np.ndarray) -> list[N]:
        """Returns what of the settings matters for a batch with known tokens ``[B, L]``, -1 where unknown.

        One for each call that the batch takes: what one has drawn is known to the next.
        """
        ...

    def __call__(self, prior: PriorTransformer, inputs: SampleInputs, numbers: N, /) -> jax.Array:
        """Decodes int32 ``[B, L]``, -1 where a later call does; other numbers compile nothing anew."""
        ...


class PriorSampler:
    """Samples token grids from a prior of any kind.

    Attributes:
      config: the prior's.
      batch_size: samples per device call, a multiple of the number of devices.
      compilations: how often a function was traced and compiled for another variant: a grid, guided or not,
        truncating or not, with as many given tokens (autoregressive) or passes (masked).
    """

    def __init__(
        self,
        config: PriorConfig,
        params: Mapping[str, jax.Array | np.ndarray],
        *,
        batch_size: int = 16,
        dtype: DTypeLike = jnp.float32,
        devices: list[jax.Device] | None = None,
    ):
        """Takes a prior's weights.

        Args:
          config: the prior's.
          params: its weights by dotted name; none, if :meth:`replace_params` is to bring them.
          batch_size: samples per device call; rounded up to a multiple of the number of devices.
          dtype: type of activations and of a cache. Logits are float32.
          devices: devices to split a batch over; all local ones by default.

        Raises:
          UserError: a batch size below 1.
        """
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: it must be at least 1")
        devices = devices or jax.local_devices()
        config = dataclasses.replace(config, dropout=0.0)  # its random state acts in training only
        self.config = config
        self.batch_size = -(-batch_size // len(devices)) * len(devices)
        self.compilations = 0
        self._dtype = jnp.dtype(dtype)
        self._mesh = Mesh(np.array(devices), (BATCH_AXIS,))
        self._structure = take_apart(lambda: PriorTransformer(config, dtype=dtype, rngs=nnx.Rngs(0)))
        self._compiled = jax.jit(self._decode, static_argnames="loop")
        self._scored = jax.jit(self._score)
        self.replace_params(params)

    def replace_params(self, params: Mapping[str, jax.Array | np.ndarray]) -> None:
        """Takes other weights of the same prior, as training goes on; nothing is compiled anew."""
        self._params: Arrays = {}  # the former ones go first: there may not be room for both
        # Matrices are kept in the type that layers would cast them to at each token.
        cast = {n: x.astype(self._dtype) if n.endswith(".kernel") else x for n, x in params.items()}
        self._params = jax.device_put(cast, NamedSharding(self._mesh, PartitionSpec()))

    def release(self) -> None:
        """Lets go of the weights, and of the memory they take.

        What is compiled stays, for when :meth:`replace_params` brings others.
        """
        self._params = {}

    def sample(
        self,
        request: Request,
        settings: SamplingConfig,
        *,
        grid: tuple[int, int] | None = None,
        progress: TokenProgress | None = None,
    ) -> np.ndarray:
        """Samples token grids.

        Args:
          request: what to sample, any number of samples. Known tokens are the first n of every sample; of a
            masked prior they may stand anywhere.
          settings: how tokens are drawn. Guidance runs along the grid, or along the passes of a masked prior.
          grid: ``(H, W)``, neither side smaller than trained, for an autoregressive prior; the trained one by
            default. The request's ``known`` and ``condition`` cover it: with n condition tokens for each
            token of the trained grid, the condition is ``[B, H * W * n]``.
          progress: told now and then while a larger grid is drawn.

        Returns:
          int32 ``[B, h, w]`` (or ``[B, H, W]``) in ``[0, codebook_size)``.

        Raises:
          UserError: a request, a grid or settings that this prior cannot serve.
          ValueError: the weights were released.
        """
        config = self.config if grid is None else enlarge_grid(self.config, grid)
        check_request(config, request)
        check_settings(config, settings)
        return self.run(self._loop_for(config, request, settings), config, request, settings, progress)

    def run(
        self,
        loop: DecodingLoop[N],
        config: PriorConfig,
        request: Request,
        settings: SamplingConfig,
        progress: TokenProgress | None = None,
    ) -> np.ndarray:
        """Samples a checked request with a loop, batch by batch.

        Args:
          loop: how.
          config: of the prior, with the grids of the request.
          request: what.
          settings: how tokens are drawn.
          progress: told after each call.

        Returns:
          int32 ``[B, *config.grid]``.

        Raises:
          ValueError: the weights were released.
        """
        if not self._params:
            raise ValueError("this sampler has no weights: give it some with replace_params")
        parts = [np.zeros((0, config.length), np.int32)]
        for inputs, count in full_batches(config, request, self.batch_size):
            if (inputs.known < 0).any():
                for numbers in loop.numbers(settings, inputs.known):
                    tokens = np.asarray(self._compiled(self._params, inputs, numbers, loop=loop))
                    inputs = inputs._replace(known=tokens)
                    if progress is not None:
                        progress(int(np.sum(tokens[0] >= 0)), config.length)
            parts.append(inputs.known[:count])
        return np.concatenate(parts).reshape(-1, *config.grid)

    def log_likelihoods(self, request: Request) -> np.ndarray:
        """Computes the log-likelihood of known tokens under an autoregressive prior: nats, float32 ``[B]``.

        Raises:
          UserError: a request that this prior cannot serve, or a token that is not known.
        """
        check_request(self.config, request)
        if request.known is None or np.min(request.known, initial=0) < 0:
            raise UserError("the likelihood is that of whole grids: give all tokens")
        parts = [np.zeros(0, np.float32)]
        for inputs, count in full_batches(self.config, request, self.batch_size):
            parts.append(np.asarray(self._scored(self._params, inputs))[:count])
        return np.concatenate(parts)

    def _score(self, params: Arrays, inputs: SampleInputs) -> jax.Array:
        prior = self._structure.bind(params, {})
        prior.eval()
        _, labels, condition, known, text = jax.tree.map(jnp.asarray, inputs)
        return log_likelihoods(prior, known, labels, condition, text)

    def _loop_for(self, config: PriorConfig, request: Request, settings: SamplingConfig) -> DecodingLoop[Any]:
        variant = SamplingVariant(settings.is_guided, settings.truncates)
        if not config.is_causal:
            return MaskedLoop(variant)
        if config.grid != self.config.grid:
            return SlidingWindowLoop(variant, given_count(request), config.grid, self.config.grid)
        return AutoregressiveLoop(variant, given_count(request))

    def _decode(
        self, params: Arrays, inputs: SampleInputs, numbers: N, *, loop: DecodingLoop[N]
    ) -> jax.Array:
        """Runs the loop, each device working on its share of the batch."""
        self.compilations += 1  # Python runs here only while tracing

        def decode_share(params: Arrays, inputs: SampleInputs, numbers: N) -> jax.Array:
            return loop(self._structure.bind(params, {}), inputs, numbers)

        rows: Any = PartitionSpec(BATCH_AXIS)
        tokens: jax.Array = jax.shard_map(
            decode_share,
            mesh=self._mesh,
            in_specs=(PartitionSpec(), rows, loop.layout),
            out_specs=rows,
            check_vma=False,
        )(params, inputs, numbers)
        return tokens


def load_sampler(info: PriorInfo, *, batch_size: int = 16, dtype: DTypeLike = jnp.float32) -> PriorSampler:
    """Reads a prior's weights and makes its sampler.

    Args:
      info: what its folder says of it.
      batch_size: samples per device call.
      dtype: type of activations and of the cache.

    Raises:
      UserError: the weights are missing or damaged, or a batch size below 1.
    """
    return PriorSampler(info.config, load_prior_weights(info), batch_size=batch_size, dtype=dtype)
