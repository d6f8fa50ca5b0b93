"""Stage 1: an update of autoencoder and discriminator, and what the loop needs beside it.

Two functions make a step: :mod:`vqgan.training.generator` gives the autoencoder's gradients and
:mod:`vqgan.training.discriminator` the discriminator's; each sees the other side's values only.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vqgan import losses
from vqgan.config import CODEBOOK_QUANTIZERS
from vqgan.discriminators import make_discriminator
from vqgan.functional import Arrays, Scalars, take_apart
from vqgan.lpips import Lpips
from vqgan.model.vqgan import VQGAN
from vqgan.quantizers.nearest import NearestQuantizer
from vqgan.training import codebook, devices
from vqgan.training.discriminator import DiscriminatorLoss
from vqgan.training.generator import Draws, Forward, GeneratorLoss
from vqgan.training.loop import Done, Evaluation
from vqgan.training.optimizers import make_optimizer, make_schedule
from vqgan.training.state import DiscriminatorState, GeneratorState, Phase, TokenizerState
from vqgan.training.tokenizer_config import TokenizerConfig

REVIVAL_STREAM = 1 << 20  # far from the numbers of a batch's parts


class TokenizerLearner:
    """A VQGAN and its discriminator, as :class:`vqgan.training.loop.Loop` trains them.

    Args:
      config: of the run.
      perceptual: weights of LPIPS; None where ``config.loss.perceptual`` is 0.
      evaluate: parameters (averaged where there is an average) to figures and a sheet.
      export: parameters, progress and figures to a codec folder.
      initial_params: parameters to start from instead of random ones.
    """

    def __init__(
        self,
        config: TokenizerConfig,
        perceptual: Lpips | None,
        evaluate: Callable[[Arrays], Evaluation],
        export: Callable[[Arrays, Done, Mapping[str, float]], None],
        initial_params: Arrays | None = None,
    ):
        self._config = config
        self._mesh = devices.data_mesh()
        devices.check_batch_size(config.train.batch_size, config.train.accumulate, self._mesh)
        self._evaluate, self._export, self._initial_params = evaluate, export, initial_params
        self.vqgan = take_apart(functools.partial(build_vqgan, config))
        self._discriminator = take_apart(functools.partial(_build_discriminator, config))
        steps = config.train.steps
        self._optimizer = make_optimizer(config.optimizer, steps)
        self._learning_rate = make_schedule(config.optimizer, steps)
        self._discriminator_optimizer = make_optimizer(config.discriminator_optimizer, steps)
        self._perceptual = devices.replicate(perceptual, self._mesh)
        self._has_codebook = config.model.quantizer in CODEBOOK_QUANTIZERS
        self._compilations = 0
        # The state that a step is given is not needed after it: its memory is used again.
        self._update = jax.jit(self._whole_step, static_argnames="phase", donate_argnums=0)
        self._encode = jax.jit(self._latents)
        self._place = jax.jit(self._with_codes)
        self._revive = jax.jit(self._revived)

    @property
    def compilations(self) -> int:
        """How often an update was compiled: once for each phase that has been reached."""
        return self._compilations

    def initial(self) -> TokenizerState:
        """Random weights, or those to start from; averages equal to them."""
        params, others = self.vqgan.initial()
        params = params if self._initial_params is None else self._initial_params
        judge_params, judge_others = self._discriminator.initial()
        zero = jnp.zeros((), jnp.int32)
        usage = jnp.zeros((self._config.model.codebook_size,), jnp.int32)
        average = jax.tree.map(jnp.copy, params)
        generator = GeneratorState(params, average, others, self._optimizer.init(params), usage, zero)
        discriminator = DiscriminatorState(
            judge_params,
            judge_others,
            self._discriminator_optimizer.init(judge_params),
            losses.lecam_start(),
        )
        state = TokenizerState(generator, discriminator, zero, jnp.copy(zero))
        return devices.replicate(jax.tree.map(jnp.copy, state), self._mesh)

    def phase(self, step: int) -> Phase:
        """What takes part in a step."""
        adversarial = self._config.adversarial
        return Phase(
            quantize=not self._has_codebook or step >= self._config.codebook.autoencoder_steps,
            adversarial=adversarial.weight > 0 and step >= adversarial.start,
        )

    def before_step(
        self, step: int, state: TokenizerState, batches: Iterator[np.ndarray]
    ) -> tuple[TokenizerState, str | None]:
        """Places the codebook when quantization begins; moves unused codes now and then."""
        settings = self._config.codebook
        if self._has_codebook and step == settings.autoencoder_steps > 0:
            points = self._sample_latents(state.generator, batches)
            rng = np.random.default_rng((self._config.train.seed, step))
            codes = codebook.k_means(points, self._config.model.codebook_size, rng, settings.least_share)
            return self._place(state, codes), "codebook placed"
        if self._is_revival(step):
            batch = devices.shard(next(batches), self._mesh)
            state = self._revive(state, batch, jax.random.fold_in(self._key(step), REVIVAL_STREAM))
        starts = self._config.adversarial.weight > 0 and step == self._config.adversarial.start
        return state, "discriminator starts" if starts else None

    def step(self, step: int, state: TokenizerState, batch: np.ndarray) -> tuple[TokenizerState, Scalars]:
        """One update from uint8 ``[B, H, W, 3]`` crops."""
        return self._update(state, *self._inputs(step, batch), phase=self.phase(step))

    def flops(self, step: int, state: TokenizerState, batch: np.ndarray) -> float:
        """Floating-point operations of one update, as XLA counts them in the compiled program."""
        lowered = self._update.lower(state, *self._inputs(step, batch), phase=self.phase(step))
        analysis = lowered.compile().cost_analysis()
        return float(analysis["flops"]) if analysis else math.nan

    def evaluate(self, state: TokenizerState) -> Evaluation:
        """Figures of the averaged weights."""
        return self._evaluate(self._exported(state))

    def export(self, state: TokenizerState, done: Done, figures: Mapping[str, float]) -> None:
        """Writes the averaged weights as a codec."""
        self._export(self._exported(state), done, figures)

    def _inputs(self, step: int, batch: np.ndarray) -> tuple[Lpips | None, jax.Array, Draws]:
        """What an update takes beside the state."""
        draws = Draws(self._key(step), jnp.asarray(self._temperature(step), jnp.float32))
        return self._perceptual, devices.shard(batch, self._mesh), draws

    # One step, compiled.

    def _whole_step(
        self, state: TokenizerState, perceptual: Lpips | None, batch: jax.Array, draws: Draws, *, phase: Phase
    ) -> tuple[TokenizerState, Scalars]:
        self._compilations += 1  # this line runs when JAX traces, not when the step runs
        images = batch.astype(jnp.float32) * (2 / 255) - 1  # (B, H, W, 3) in [-1, 1]
        loss = GeneratorLoss(self._config, self.vqgan, perceptual)
        generator, reconstruction, scalars = self._generator_step(loss, state, images, draws, phase)
        discriminator = state.discriminator
        if phase.adversarial:
            discriminator, more = self._discriminator_step(discriminator, images, reconstruction)
            scalars |= more
        finite = jnp.isfinite(sum(jnp.sum(value) for value in scalars.values()))
        new = TokenizerState(generator, discriminator, state.skipped, jnp.zeros((), jnp.int32))
        kept = state._replace(skipped=state.skipped + 1, skipped_in_row=state.skipped_in_row + 1)
        chosen = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, kept)
        return chosen, scalars | {"skipped": chosen.skipped, "skipped_in_row": chosen.skipped_in_row}

    def _generator_step(
        self, loss: GeneratorLoss, state: TokenizerState, images: jax.Array, draws: Draws, phase: Phase
    ) -> tuple[GeneratorState, jax.Array, Scalars]:
        """The autoencoder after one update, its reconstruction ``[B, H, W, 3]``, and scalars."""
        side = state.generator
        judge = functools.partial(self._judge, state.discriminator) if phase.adversarial else None

        def part(images: jax.Array, index: jax.Array) -> tuple[Arrays, Forward]:
            own = draws._replace(key=jax.random.fold_in(draws.key, index))
            return loss.gradients(side.params, side.others, images, own, phase, judge)

        gradients, forward = _accumulated(part, images, self._config.train.accumulate)
        updates, optimizer = self._optimizer.update(gradients, side.optimizer, side.params)
        params = optax.apply_updates(side.params, updates)
        others, usage = side.others, side.usage
        if phase.quantize:
            params, others = self._observed(params, others, forward)
            counts = jnp.bincount(jnp.ravel(forward.tokens), length=usage.shape[0])
            usage = usage + counts.astype(jnp.int32)
        average = self._averaged(side.average, params, side.updates)
        scalars = forward.scalars | {
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": self._learning_rate(side.updates),
        }
        new = GeneratorState(params, average, others, optimizer, usage, side.updates + 1)
        return new, forward.reconstruction, scalars

    def _discriminator_step(
        self, side: DiscriminatorState, images: jax.Array, reconstruction: jax.Array
    ) -> tuple[DiscriminatorState, Scalars]:
        """The discriminator after one update."""
        loss = DiscriminatorLoss(self._config.adversarial, self._discriminator)
        gradients, others, lecam, scalars = loss.gradients(
            side.params, side.others, side.lecam, images, reconstruction
        )
        updates, optimizer = self._discriminator_optimizer.update(gradients, side.optimizer, side.params)
        params = optax.apply_updates(side.params, updates)
        scalars["discriminator_gradient_norm"] = optax.tree.norm(gradients)
        return DiscriminatorState(params, others, optimizer, lecam), scalars

    def _judge(self, side: DiscriminatorState, images: jax.Array) -> jax.Array:
        loss = DiscriminatorLoss(self._config.adversarial, self._discriminator)
        return loss.judge(side.params, side.others, images)

    def _observed(self, params: Arrays, others: Arrays, forward: Forward) -> tuple[Arrays, Arrays]:
        """What the quantizer learns without gradients."""
        model = self.vqgan.bind(params, others)
        model.quantizer.observe(forward.latents, forward.tokens, self._config.codebook.ema_decay)
        return self.vqgan.values_of(model)

    def _averaged(self, average: Arrays, params: Arrays, updates: jax.Array) -> Arrays:
        """Moving average, which follows closely at first (as TensorFlow's ExponentialMovingAverage may)."""
        if not self._config.train.ema_decay:
            return params
        decay = jnp.minimum(self._config.train.ema_decay, (1.0 + updates) / (10.0 + updates))
        return optax.incremental_update(params, average, 1 - decay)

    # The codebook.

    def _is_revival(self, step: int) -> bool:
        settings = self._config.codebook
        since = step - settings.autoencoder_steps
        return (
            self._has_codebook
            and settings.revive_every > 0
            and since > 0
            and since % settings.revive_every == 0
            and step < settings.revive_until * self._config.train.steps
        )

    def _sample_latents(self, side: GeneratorState, batches: Iterator[np.ndarray]) -> np.ndarray:
        """Some latents for each code, ``[N, D]`` float32, where the quantizer compares them."""
        parts: list[np.ndarray] = []
        while sum(map(len, parts)) < codebook.LATENTS_PER_CODE * self._config.model.codebook_size:
            batch = devices.shard(next(batches), self._mesh)
            latents = np.asarray(self._encode(side.params, side.others, batch))
            parts.append(latents.reshape(-1, latents.shape[-1]))
        return np.concatenate(parts)

    def _latents(self, params: Arrays, others: Arrays, batch: jax.Array) -> jax.Array:
        """``[B, h, w, D]`` latents of uint8 images."""
        model = self.vqgan.bind(params, others)
        model.eval()
        low, high = self._config.model.input_range
        latents = model.encoder(batch.astype(jnp.float32) * ((high - low) / 255) + low)
        return _codebook_of(model).comparable(latents)

    def _with_codes(self, state: TokenizerState, codes: jax.Array) -> TokenizerState:
        mask = jnp.ones((codes.shape[0],), bool)
        return self._replaced(state, mask, codes)

    def _revived(self, state: TokenizerState, batch: jax.Array, key: jax.Array) -> TokenizerState:
        side = state.generator
        mask = codebook.unused_codes(side.usage, self._config.codebook.least_share)
        latents = self._latents(side.params, side.others, batch)
        return self._replaced(state, mask, codebook.random_latents(latents, mask.shape[0], key))

    def _replaced(self, state: TokenizerState, mask: jax.Array, codes: jax.Array) -> TokenizerState:
        """Codes moved in the parameters and in their average; counting starts anew."""
        side = state.generator
        model = self.vqgan.bind(side.params, side.others)
        _codebook_of(model).replace_codes(mask, codes)
        params, others = self.vqgan.values_of(model)
        averaged = self.vqgan.bind(side.average, side.others)
        _codebook_of(averaged).replace_codes(mask, codes)
        average, _ = self.vqgan.values_of(averaged)
        moved = side._replace(params=params, others=others, average=average, usage=jnp.zeros_like(side.usage))
        return state._replace(generator=moved)

    # Small things.

    def _exported(self, state: TokenizerState) -> Arrays:
        return state.generator.average if self._config.train.ema_decay else state.generator.params

    def _key(self, step: int) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self._config.train.seed), step)

    def _temperature(self, step: int) -> float:
        """On a cosine from the start's to the final one."""
        settings = self._config.codebook
        done = min(step / settings.temperature_steps, 1.0)
        span = settings.start_temperature - settings.final_temperature
        return settings.final_temperature + span * 0.5 * (1 + math.cos(math.pi * done))


def build_vqgan(config: TokenizerConfig) -> VQGAN:
    """The model with random weights, in training mode."""
    dtype = jnp.dtype(config.train.dtype)
    rngs = nnx.Rngs(config.train.seed)
    return VQGAN(config.model, dtype=dtype, remat=config.train.remat, rngs=rngs)


def _build_discriminator(config: TokenizerConfig) -> Any:
    dtype = jnp.dtype(config.train.dtype)
    return make_discriminator(config.discriminator, dtype=dtype, rngs=nnx.Rngs(config.train.seed + 1))


def _codebook_of(model: VQGAN) -> NearestQuantizer:
    assert isinstance(model.quantizer, NearestQuantizer)
    return model.quantizer


def _accumulated(
    part: Callable[[jax.Array, jax.Array], tuple[Arrays, Forward]], images: jax.Array, parts: int
) -> tuple[Arrays, Forward]:
    """Mean gradients and scalars over parts of a batch, worked through one after the other."""
    if parts == 1:
        return part(images, jnp.zeros((), jnp.int32))
    size = images.shape[0] // parts
    # Every device keeps its rows: part i takes each parts-th one.
    cut = images.reshape(size, parts, *images.shape[1:]).swapaxes(0, 1)  # (parts, B / parts, H, W, 3)

    def one(sums: Arrays, given: tuple[jax.Array, jax.Array]) -> tuple[Arrays, Forward]:
        gradients, forward = part(*given)
        return jax.tree.map(jnp.add, sums, gradients), forward

    shapes = jax.eval_shape(part, cut[0], jnp.zeros((), jnp.int32))[0]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    sums, stacked = jax.lax.scan(one, zeros, (cut, jnp.arange(parts)))
    reconstruction, latents, tokens = (
        leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]) for leaf in stacked[:3]
    )
    scalars = {name: jnp.mean(values, axis=0) for name, values in stacked.scalars.items()}
    means = jax.tree.map(lambda leaf: leaf / parts, sums)
    return means, Forward(reconstruction, latents, tokens, scalars)
