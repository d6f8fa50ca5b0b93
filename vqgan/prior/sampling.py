"""Sampling of an autoregressive prior: one compiled loop over the tokens, with a cache of keys and values.

What a sample becomes follows from its own seed: token k is drawn with the seed's key folded with k.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vqgan.errors import UserError
from vqgan.prior.choosing import Choice, choice_of, draw, guidance_scales, sample_keys, scaled
from vqgan.prior.compiled import WHOLE, CompiledPrior, Kind, Loop
from vqgan.prior.config import PriorConfig
from vqgan.prior.request import Request, SampleInputs, check_request, check_settings
from vqgan.prior.sampling_config import SamplingConfig
from vqgan.prior.transformer import Cache, Prior


class Draws(NamedTuple):
    """Numbers by which tokens are drawn; others of them do not compile anew.

    Attributes:
      choice: temperature and truncation.
      scales: float32 ``[L]``, guidance at each token.
    """

    choice: Choice
    scales: jax.Array


@dataclasses.dataclass(frozen=True)
class RasterKind(Kind):
    """What of a request and its settings decides which computation is needed.

    Attributes:
      given: number n of tokens known from the start, the first ones of every sample.
    """

    given: int

    def prefix(self, prior: Prior, labels: jax.Array, condition: jax.Array | None) -> jax.Array:
        """Inputs ``[B or 2B, P, D]`` before the first token, those without a class in the second half."""
        labels, condition = self.conditions(prior, labels, condition)
        return prior.prefix_inputs(len(labels), labels, condition)

    def choose(self, logits: jax.Array, keys: jax.Array, k: int | jax.Array, draws: Draws) -> jax.Array:
        """Token k of each sample, int32 ``[B]``, from logits ``[B or 2B, K]``."""
        logits = scaled(self.merged(logits, draws.scales[k]), draws.choice, truncates=self.truncates)
        own = jax.vmap(lambda key: jax.random.fold_in(key, k))(keys)
        return draw(logits, own, draws.choice.temperature)


@dataclasses.dataclass(frozen=True)
class RasterLoop:
    """Token after token over the grid that the prior was trained on.

    The cache is made inside the compiled function: XLA changes it in place, and there is none to donate.
    """

    kind: RasterKind

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


class Sampler(CompiledPrior[Draws]):
    """An autoregressive prior ready to sample. The batch is split over the devices."""

    kind = "autoregressive"
    manner = "token by token"
    layout = WHOLE

    def sample(self, request: Request, settings: SamplingConfig) -> np.ndarray:
        """Token grids for a request.

        Args:
          request: what to sample, any number of samples. Known tokens are the first n of every sample.
          settings: how tokens are drawn.

        Returns:
          int32 ``[B, h, w]`` in ``[0, codebook_size)``.

        Raises:
          UserError: a request or settings that this prior cannot serve.
          ValueError: the weights were released.
        """
        check_request(self.config, request)
        check_settings(self.config, settings)
        kind = kind_of(request, settings)
        return self.run(RasterLoop(kind), self.config, request, settings)

    def run(
        self, loop: Loop[Draws], config: PriorConfig, request: Request, settings: SamplingConfig
    ) -> np.ndarray:
        """Samples a checked request with a loop, batch by batch.

        Args:
          loop: how.
          config: of the prior, with the grids of the request.
          request: what.
          settings: numbers of the draws.

        Returns:
          int32 ``[B, *config.grid]``.

        Raises:
          ValueError: the weights were released.
        """
        draws = Draws(choice_of(settings), jnp.asarray(guidance_scales(settings, config.length)))
        return self._run(loop, config, request, lambda inputs: draws)


def kind_of(request: Request, settings: SamplingConfig) -> RasterKind:
    """Which computation a request and its settings need.

    Raises:
      UserError: known tokens are not the first n of every sample.
    """
    return RasterKind(settings.is_guided, settings.truncates, _given(request))


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
