"""A small trainer for VQGAN codecs: pixel loss and codebook losses, no discriminator.

The run has two phases. The model first learns as a plain autoencoder; then the codebook is placed on
its latents by k-means and training goes on through the quantizer. Codes that fall out of use are
moved onto latents of the current batch. Both are against codebook collapse, the commonest failure of
VQ models.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vqgan import checkpoint, losses
from vqgan.config import ModelConfig
from vqgan.data.images import crop_batches
from vqgan.errors import UserError
from vqgan.metrics import codebook_usage, psnr
from vqgan.model import VQGAN, denormalize, normalize
from vqgan.quantizers.nearest import nearest_code


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Attributes:
      steps: optimizer steps.
      batch_size: crops per step.
      crop_size: side of a training crop in pixels.
      learning_rate: peak of the warm-up and cosine schedule (Adam).
      warmup_steps: linear warm-up.
      autoencoder_steps: steps before the codebook is placed and quantization begins.
      commitment: weight beta of the commitment loss (arXiv 1711.00937, equation 3).
      revive_every: steps between searches for unused codes; none in the last fifth of the run.
      least_share: a code chosen less often than this share of an even use counts as unused, when the
        codebook is placed as well as later. The more, the closer tokens come to the entropy of their size.
      seed: of weights, crops and order.
    """

    steps: int = 2000
    batch_size: int = 32
    crop_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    autoencoder_steps: int = 300
    commitment: float = 0.25
    revive_every: int = 50
    least_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "crop_size", "revive_every"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("warmup_steps", "autoencoder_steps", "commitment"):
            if getattr(self, name) < 0:
                raise UserError(f"train.{name} is {getattr(self, name)}: it must not be negative")
        if not self.learning_rate > 0:
            raise UserError(f"train.learning_rate is {self.learning_rate}: it must be above 0")
        if not 0 <= self.least_share < 1:
            raise UserError(f"train.least_share is {self.least_share}: it must lie in [0, 1)")
        if self.autoencoder_steps >= self.steps:
            raise UserError(
                f"train.autoencoder_steps is {self.autoencoder_steps}: it must be below "
                f"train.steps ({self.steps}), or the codebook is never trained"
            )


class Progress(NamedTuple):
    """State of a run after one step: losses are means over the batch."""

    step: int
    pixel_loss: float
    commitment_loss: float
    images_per_second: float


class Quality(NamedTuple):
    """Figures over a whole validation set."""

    psnr: float
    used_codes: int
    perplexity: float


def train(
    model_config: ModelConfig,
    config: TrainConfig,
    images: Sequence[np.ndarray],
    *,
    initial: VQGAN | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> VQGAN:
    """Trains a VQGAN on random crops of pictures.

    Args:
      model_config: architecture.
      config: settings of the run.
      images: uint8 ``[H, W, 3]``, each side at least ``config.crop_size``.
      initial: model to start from, of the same architecture; random weights by default.
      report: called after every step.

    Returns:
      The trained model.
    """
    model_config.grid(config.crop_size, config.crop_size)
    _check_pictures(images, config.crop_size)
    model = initial or _random_model(model_config, config.seed)
    graph, params, *others = nnx.split(model, nnx.Param, ...)
    noise = others[0]  # random state of dropout
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(_schedule(config), b1=0.9, b2=0.99))
    optimizer_state = optimizer.init(params)
    batches = crop_batches(images, config.crop_size, config.batch_size, config.seed)
    step_without, step_with = (
        _make_step(graph, optimizer, model_config, config, quantize) for quantize in (False, True)
    )

    @jax.jit
    def encode(params: Any, batch: jax.Array) -> jax.Array:
        restored = nnx.merge(graph, params, noise)
        restored.eval()
        return restored.encoder(normalize(batch, model_config.input_range))

    upkeep = _CodebookUpkeep(model_config.codebook_size, config)
    started = time.monotonic()
    for step in range(config.steps):
        batch = next(batches)
        if step == config.autoencoder_steps:
            latents = _sample_latents(functools.partial(encode, params), batches, model_config)
            params["quantizer"]["codebook"] = nnx.Param(upkeep.place(latents))
        update = step_without if step < config.autoencoder_steps else step_with
        params, noise, optimizer_state, result = update(params, noise, optimizer_state, batch)
        if step >= config.autoencoder_steps and upkeep.is_due(step, result.tokens):
            codebook = params["quantizer"]["codebook"][...]
            params["quantizer"]["codebook"] = nnx.Param(upkeep.revive(codebook, encode(params, batch)))
        rate = (step + 1) * config.batch_size / (time.monotonic() - started)
        report(Progress(step + 1, float(result.pixel_loss), float(result.commitment_loss), rate))
    return nnx.merge(graph, params, noise)


def evaluate(model: VQGAN, config: ModelConfig, images: np.ndarray, batch_size: int = 16) -> Quality:
    """PSNR and codebook usage over a validation set.

    Args:
      model: the model.
      config: its architecture.
      images: uint8 ``[N, H, W, 3]``.
      batch_size: images per device call.
    """
    graph, params = nnx.split(model)

    @jax.jit
    def forward(params: Any, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        restored = nnx.merge(graph, params)
        restored.eval()
        result = restored(normalize(batch, config.input_range))
        return denormalize(result.images, config.input_range), result.quantized.tokens

    histogram = np.zeros(config.codebook_size, np.int64)
    values = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        reconstruction, tokens = forward(params, batch)
        values.append(psnr(batch, np.asarray(reconstruction)))
        histogram += np.bincount(np.ravel(tokens), minlength=len(histogram))
    usage = codebook_usage(histogram)
    return Quality(float(np.mean(np.concatenate(values))), usage.used, usage.perplexity)


def model_weights(model: VQGAN) -> dict[str, checkpoint.Weights]:
    """Weights of each part, as :func:`vqgan.checkpoint.save_codec` takes them."""
    return {part: checkpoint.module_weights(getattr(model, part)) for part in checkpoint.PARTS}


def k_means(
    points: np.ndarray,
    clusters: int,
    rng: np.random.Generator,
    least_share: float = 0.0,
    iterations: int = 10,
) -> jax.Array:
    """Lloyd's algorithm from random points; a cluster that is (nearly) empty restarts at a random point.

    Args:
      points: ``[N, D]`` float32, at least ``clusters`` of them.
      clusters: number of centres.
      rng: source of randomness.
      least_share: nearly empty means at most this share of the mean number of points.
      iterations: rounds.

    Returns:
      ``[clusters, D]`` float32 centres.
    """
    assign = jax.jit(nearest_code)
    centres = points[rng.choice(len(points), clusters, replace=len(points) < clusters)]
    for _ in range(iterations):
        nearest = np.asarray(assign(points, centres))
        counts = np.bincount(nearest, minlength=clusters)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, points)
        fallback = points[rng.integers(len(points), size=clusters)]
        kept = counts > least_share * counts.mean()
        centres = np.where(kept[:, None], sums / np.maximum(counts, 1)[:, None], fallback)
    return jnp.asarray(centres, jnp.float32)


def revive(
    codebook: np.ndarray,
    counts: np.ndarray,
    latents: np.ndarray,
    rng: np.random.Generator,
    least_share: float = 0.0,
) -> jax.Array:
    """Moves codes that were hardly ever chosen onto random latents.

    Args:
      codebook: ``[K, D]``.
      counts: ``[K]`` times each code was chosen lately.
      latents: ``[..., D]`` latents of the current batch.
      rng: source of randomness.
      least_share: hardly ever means at most this share of the mean count; 0 for never.
    """
    dead = np.flatnonzero(counts <= least_share * counts.mean())
    flat = latents.reshape(-1, latents.shape[-1])
    codebook[dead] = flat[rng.integers(len(flat), size=len(dead))]
    return jnp.asarray(codebook)


class _CodebookUpkeep:
    """Places the codebook, counts how often each code is chosen, and moves those that hardly ever are."""

    def __init__(self, codes: int, config: TrainConfig):
        self._config = config
        self._counts = np.zeros(codes, np.int64)
        self._rng = np.random.default_rng(config.seed)

    def place(self, latents: np.ndarray) -> jax.Array:
        """A codebook ``[K, D]`` for latents ``[N, D]``."""
        return k_means(latents, len(self._counts), self._rng, self._config.least_share)

    def is_due(self, step: int, tokens: jax.Array) -> bool:
        """Counts the tokens of a step. Whether unused codes should be moved after it."""
        self._counts += np.bincount(np.ravel(tokens), minlength=len(self._counts))
        if (step + 1) % self._config.revive_every:
            return False
        if step < 0.8 * self._config.steps:
            return True
        self._counts[:] = 0
        return False

    def revive(self, codebook: jax.Array, latents: jax.Array) -> jax.Array:
        """The codebook with unused codes moved onto latents; counting starts anew."""
        least_share = self._config.least_share
        revived = revive(np.array(codebook), self._counts, np.asarray(latents), self._rng, least_share)
        self._counts = np.zeros_like(self._counts)
        return revived


def _check_pictures(images: Sequence[np.ndarray], crop_size: int) -> None:
    if not images:
        raise UserError("training data: there is no picture in it")
    smallest = min(min(image.shape[:2]) for image in images)
    if smallest < crop_size:
        raise UserError(
            f"training data: a picture has a side of {smallest} pixels; the least is "
            f"train.crop_size, {crop_size}"
        )


def _random_model(config: ModelConfig, seed: int) -> VQGAN:
    """A model with random weights; compiled, since drawing them one by one takes longer."""
    build: Callable[[], VQGAN] = nnx.jit(lambda: VQGAN(config, rngs=nnx.Rngs(seed)))
    return build()


class _StepResult(NamedTuple):
    pixel_loss: jax.Array
    commitment_loss: jax.Array
    tokens: jax.Array


def _make_step(
    graph: Any,
    optimizer: optax.GradientTransformation,
    model_config: ModelConfig,
    config: TrainConfig,
    quantize: bool,
) -> Any:
    """One compiled update of the parameters; without ``quantize`` latents go straight to the decoder."""

    def loss(params: Any, noise: Any, batch: jax.Array) -> tuple[jax.Array, tuple[Any, _StepResult]]:
        model = nnx.merge(graph, params, noise, copy=True)
        images = normalize(batch, model_config.input_range)
        latents = model.encoder(images)
        quantized = model.quantizer(latents)
        reconstruction = model.decoder(quantized.codes if quantize else latents)
        pixel = losses.l1(reconstruction, images) + losses.l2(reconstruction, images)
        total = pixel
        if quantize:
            total += quantized.codebook_loss + config.commitment * quantized.commitment_loss
        noise = nnx.state(model, nnx.Not(nnx.Param))
        return total, (noise, _StepResult(pixel, quantized.commitment_loss, quantized.tokens))

    @jax.jit
    def update(
        params: Any, noise: Any, optimizer_state: Any, batch: jax.Array
    ) -> tuple[Any, Any, Any, _StepResult]:
        gradients, (noise, result) = jax.grad(loss, has_aux=True)(params, noise, batch)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return optax.apply_updates(params, updates), noise, optimizer_state, result

    return update


def _schedule(config: TrainConfig) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(config.warmup_steps, config.steps // 2), config.steps
    )


def _sample_latents(
    encode: Callable[[np.ndarray], jax.Array], batches: Iterator[np.ndarray], config: ModelConfig
) -> np.ndarray:
    """At least 32 latents for each code, ``[N, D]``."""
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < 32 * config.codebook_size:
        parts.append(np.asarray(encode(next(batches))).reshape(-1, config.embed_dim))
    return np.concatenate(parts)
