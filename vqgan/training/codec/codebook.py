"""Placing a codebook on the latents, and moving codes that fall out of use.

Collapse, where few codes do all the work, is the commonest failure of VQ models. A codebook that starts
where the latents are does not begin collapsed; codes that nobody chooses later get a new place.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vqgan.config import CODEBOOK_QUANTIZERS
from vqgan.functional import Arrays, Functional
from vqgan.model.vqgan import VQGAN, network_range
from vqgan.quantizers.nearest import NearestQuantizer, nearest_code
from vqgan.training import sharding
from vqgan.training.codec.config import CodecTrainConfig
from vqgan.training.codec.state import GeneratorState

LATENTS_PER_CODE = 32
MOST_LATENTS = 1 << 16  # from here on fewer for a code: in each round all are compared with all codes
LEAST_PER_CODE = 4
MOST_ROUNDS = 10
LEAST_ROUNDS = 2
MOST_COMPARISONS = 1 << 32  # of a latent and a code in all rounds: seconds of a processor


def k_means(
    points: np.ndarray,
    clusters: int,
    rng: np.random.Generator,
    least_share: float = 0.0,
    rounds: int = MOST_ROUNDS,
) -> jax.Array:
    """Clusters points by Lloyd's algorithm; a cluster that is (nearly) empty restarts at a random point.

    Args:
      points: ``[N, D]`` float32, best many for each cluster.
      clusters: number of centres.
      rng: source of randomness.
      least_share: nearly empty means at most this share of the mean number of points.
      rounds: of assigning and averaging.

    Returns:
      ``[clusters, D]`` float32 centres.
    """
    on_device = jnp.asarray(points)
    centres = on_device[rng.choice(len(points), clusters, replace=len(points) < clusters)]
    for _ in range(rounds):
        fallback = on_device[rng.integers(len(points), size=clusters)]
        centres = _lloyd_round(on_device, centres, fallback, least_share)
    return centres


@functools.partial(jax.jit, static_argnums=3)
def _lloyd_round(points: jax.Array, centres: jax.Array, fallback: jax.Array, least_share: float) -> jax.Array:
    clusters = centres.shape[0]
    nearest = nearest_code(points, centres)
    counts = jnp.bincount(nearest, length=clusters).astype(jnp.float32)  # (K,)
    sums = jax.ops.segment_sum(points, nearest, clusters)  # (K, D)
    kept = counts > least_share * jnp.mean(counts)
    return jnp.where(kept[:, None], sums / jnp.maximum(counts, 1.0)[:, None], fallback)


def unused_codes(usage: jax.Array, least_share: float) -> jax.Array:
    """Returns ``[K]`` bool: codes chosen at most ``least_share`` times as often as an even use would have it.

    Args:
      usage: ``[K]`` how often each was chosen.
      least_share: 0 for codes that were never chosen.
    """
    counts = usage.astype(jnp.float32)
    # Where nothing was counted, every step was skipped and nothing is known.
    return (counts <= least_share * jnp.mean(counts)) & (jnp.sum(counts) > 0)


def latents_to_place(codes: int) -> int:
    """Returns how many latents k-means takes for so many codes."""
    return min(LATENTS_PER_CODE * codes, max(MOST_LATENTS, LEAST_PER_CODE * codes))


def rounds_to_place(codes: int) -> int:
    """Returns how many rounds of k-means so many codes get: few where one takes long."""
    affordable = MOST_COMPARISONS // (latents_to_place(codes) * codes)
    return min(max(affordable, LEAST_ROUNDS), MOST_ROUNDS)


def within_supply(mask: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Returns the first ``count`` codes of a mask, ``[K]`` bool, and their numbers among them, ``[K]`` int32.

    Of two codes at one place the second is never chosen: where a batch has fewer latents than there are
    unused codes, the rest of them wait.
    """
    numbers = jnp.cumsum(mask.astype(jnp.int32)) - 1
    return mask & (numbers < count), jnp.clip(numbers, 0, count - 1)


def random_latents(latents: jax.Array, codes: int, key: jax.Array) -> jax.Array:
    """Draws ``[codes, D]`` from latents ``[B, h, w, D]``, each once where there are enough of them."""
    flat = latents.reshape(-1, latents.shape[-1])
    count = flat.shape[0]
    return flat[jax.random.choice(key, count, (codes,), replace=count < codes)].astype(jnp.float32)


class CodebookCare:
    """What happens to a run's codebook between steps. Quantizers without one are left alone.

    Args:
      config: of the run.
      vqgan: structure of the model.
      mesh: devices, which share each batch.
    """

    def __init__(self, config: CodecTrainConfig, vqgan: Functional[VQGAN], mesh: Mesh):
        self._config, self._vqgan, self._mesh = config, vqgan, mesh
        self._has_codebook = config.model.quantizer in CODEBOOK_QUANTIZERS
        self._encode = jax.jit(self._latents)
        self._place = jax.jit(self._with_codes)
        self._revive = jax.jit(self._revived)

    def quantizes(self, step: int) -> bool:
        """Returns whether latents go through the quantizer in a step, not straight to the decoder."""
        return not self._has_codebook or step >= self._config.codebook.autoencoder_steps

    def is_placement(self, step: int) -> bool:
        """Returns whether all codes are placed before a step: the first one that quantizes, or once more."""
        settings = self._config.codebook
        first, again = settings.autoencoder_steps, int(settings.place_again * self._config.train.steps)
        return (
            self._has_codebook and not settings.keep_tokens and (step == first > 0 or step == again > first)
        )

    def is_revival(self, step: int) -> bool:
        """Returns whether unused codes are moved before a step."""
        settings = self._config.codebook
        since = step - settings.autoencoder_steps
        return (
            self._has_codebook
            and settings.revive_every > 0
            and not settings.keep_tokens
            and since > 0
            and since % settings.revive_every == 0
            and step < settings.revive_until * self._config.train.steps
        )

    def place(self, step: int, side: GeneratorState, batches: Iterator[np.ndarray]) -> GeneratorState:
        """Places all codes by k-means over the latents of some batches."""
        points: list[np.ndarray] = []
        while sum(map(len, points)) < latents_to_place(self._config.model.codebook_size):
            batch = sharding.shard(next(batches), self._mesh)
            latents = np.asarray(self._encode(side.params, side.others, batch))
            points.append(latents.reshape(-1, latents.shape[-1]))
        rng = np.random.default_rng((self._config.train.seed, step))
        count, least_share = self._config.model.codebook_size, self._config.codebook.least_share
        codes = k_means(np.concatenate(points), count, rng, least_share, rounds_to_place(count))
        return self._place(side, codes)

    def revive(self, side: GeneratorState, batch: np.ndarray, key: jax.Array) -> GeneratorState:
        """Moves codes that were hardly used since the last time onto latents of a batch."""
        return self._revive(side, sharding.shard(batch, self._mesh), key)

    # Compiled.

    def _latents(self, params: Arrays, others: Arrays, batch: jax.Array) -> jax.Array:
        """Returns latents ``[B, h, w, D]`` of uint8 images, as the quantizer compares them."""
        model = self._vqgan.bind(params, others)
        model.eval()
        low, high = network_range(self._config.model)
        latents = model.encoder(batch.astype(jnp.float32) * ((high - low) / 255) + low)
        return _codebook_of(model).comparable(latents)

    def _with_codes(self, side: GeneratorState, codes: jax.Array) -> GeneratorState:
        return self._replaced(side, jnp.ones((codes.shape[0],), bool), codes)

    def _revived(self, side: GeneratorState, batch: jax.Array, key: jax.Array) -> GeneratorState:
        mask = unused_codes(side.usage, self._config.codebook.least_share)  # (K,)
        latents = self._latents(side.params, side.others, batch)
        codes, count = mask.shape[0], latents.size // latents.shape[-1]
        if codes <= count:
            return self._replaced(side, mask, random_latents(latents, codes, key))
        mask, numbers = within_supply(mask, count)
        return self._replaced(side, mask, random_latents(latents, count, key)[numbers])

    def _replaced(self, side: GeneratorState, mask: jax.Array, codes: jax.Array) -> GeneratorState:
        """Codes moved in the parameters and in their average; counting starts anew."""
        model = self._vqgan.bind(side.params, side.others)
        _codebook_of(model).replace_codes(mask, codes)
        params, others = self._vqgan.values_of(model)
        averaged = self._vqgan.bind(side.average, side.others)
        _codebook_of(averaged).replace_codes(mask, codes)
        average, _ = self._vqgan.values_of(averaged)
        usage = jnp.zeros_like(side.usage)
        return side._replace(params=params, others=others, average=average, usage=usage)


def _codebook_of(model: VQGAN) -> NearestQuantizer:
    assert isinstance(model.quantizer, NearestQuantizer)
    return model.quantizer
