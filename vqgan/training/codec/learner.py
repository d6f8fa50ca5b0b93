"""A VQGAN and its discriminator as the loop trains them: their state, and an update of it.

The gradients are those of :mod:`vqgan.training.codec.gradients`.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vqgan import losses
from vqgan.discriminators import make_discriminator
from vqgan.functional import Arrays, Scalars, take_apart
from vqgan.metrics.lpips import Lpips
from vqgan.model.vqgan import VQGAN
from vqgan.training import optimizers, sharding
from vqgan.training.codec.codebook import CodebookCare
from vqgan.training.codec.config import CodecTrainConfig
from vqgan.training.codec.gradients import DiscriminatorLoss, GeneratorLoss, learned_params
from vqgan.training.codec.state import CodecTrainState, DiscriminatorState, GeneratorState, Phase, StepDraws

PerceptualPair = tuple[Lpips | None, Lpips | None]
"""LPIPS over the network that is trained with, and over AlexNet beside it."""

REVIVAL_STREAM = 1 << 20  # far from the numbers of a batch's parts


class CodecLearner:
    """A VQGAN and its discriminator, as :class:`vqgan.training.loop.TrainingLoop` trains them.

    Args:
      config: of the run.
      perceptual: weights of LPIPS; None where ``config.loss.perceptual`` is 0.
      initial_params: parameters to start from instead of random ones; those of the decoder may be missing.
      alex: weights of LPIPS over AlexNet; None where ``config.loss.perceptual_alex`` is 0.
    """

    def __init__(
        self,
        config: CodecTrainConfig,
        perceptual: Lpips | None,
        initial_params: Arrays | None = None,
        alex: Lpips | None = None,
    ):
        self._config = config
        self._mesh = sharding.data_mesh()
        sharding.check_batch_size(config.train.batch_size, config.train.accumulate, self._mesh)
        self._initial_params = initial_params
        self.vqgan = take_apart(functools.partial(build_vqgan, config))
        self._discriminator = take_apart(functools.partial(_build_discriminator, config))
        steps = config.train.steps
        self._optimizer = optimizers.make_optimizer(config.optimizer, steps)
        self._learning_rate = optimizers.make_schedule(config.optimizer, steps)
        self._discriminator_optimizer = optimizers.make_optimizer(config.discriminator_optimizer, steps)
        self._perceptual = sharding.replicate((perceptual, alex), self._mesh)
        self._codebook = CodebookCare(config, self.vqgan, self._mesh)
        self._compilations = 0
        # The state that a step is given is not needed after it: its memory is used again.
        self._update = jax.jit(self._whole_step, static_argnames="phase", donate_argnums=0)

    @property
    def compilations(self) -> int:
        """How often an update was compiled: once for each phase that has been reached."""
        return self._compilations

    def initial(self) -> CodecTrainState:
        """Returns random weights, or those to start from; averages equal to them."""
        params, others = self.vqgan.initial()
        params = params | (self._initial_params or {})
        d_params, d_others = self._discriminator.initial()
        zero = jnp.zeros((), jnp.int32)
        usage = jnp.zeros((self._config.model.codebook_size,), jnp.int32)
        average = jax.tree.map(jnp.copy, params)
        optimizer = self._optimizer.init(learned_params(self._config, params))
        generator = GeneratorState(params, average, others, optimizer, usage, zero)
        discriminator = DiscriminatorState(
            d_params,
            d_others,
            self._discriminator_optimizer.init(d_params),
            losses.lecam_start(),
        )
        state = CodecTrainState(generator, discriminator, zero, jnp.copy(zero))
        return sharding.replicate(jax.tree.map(jnp.copy, state), self._mesh)

    def phase(self, step: int) -> Phase:
        """Returns what takes part in a step."""
        adversarial = self._config.adversarial
        return Phase(
            quantize=self._codebook.quantizes(step),
            adversarial=adversarial.weight > 0 and step >= adversarial.start,
        )

    def before_step(
        self, step: int, state: CodecTrainState, batches: Iterator[np.ndarray]
    ) -> tuple[CodecTrainState, str | None]:
        """Places the codebook when quantization begins; moves unused codes now and then."""
        side = state.generator
        if self._codebook.is_placement(step):
            placed = self._codebook.place(step, side, batches)
            return state._replace(generator=placed), "codebook placed"
        if self._codebook.is_revival(step):
            key = jax.random.fold_in(self._key(step), REVIVAL_STREAM)
            state = state._replace(generator=self._codebook.revive(side, next(batches), key))
        starts = self._config.adversarial.weight > 0 and step == self._config.adversarial.start
        return state, "discriminator starts" if starts else None

    def step(self, step: int, state: CodecTrainState, batch: np.ndarray) -> tuple[CodecTrainState, Scalars]:
        """Does one update from uint8 ``[B, H, W, C]`` crops."""
        return self._update(state, *self._inputs(step, batch), phase=self.phase(step))

    def flops(self, step: int, state: CodecTrainState, batch: np.ndarray) -> float:
        """Returns the floating-point operations of one update, as XLA counts them before it optimizes.

        Afterwards they would be too few: calls of a library, such as cuDNN, have no count.
        """
        lowered = self._update.lower(state, *self._inputs(step, batch), phase=self.phase(step))
        analysis = lowered.cost_analysis()
        return float(analysis["flops"]) if analysis else math.nan

    def exported(self, state: CodecTrainState) -> Arrays:
        """Returns the averaged weights, where there is an average."""
        return state.generator.average if self._config.train.ema_decay else state.generator.params

    def _inputs(self, step: int, batch: np.ndarray) -> tuple[PerceptualPair, jax.Array, StepDraws]:
        """Returns what an update takes beside the state."""
        draws = StepDraws(self._key(step), jnp.asarray(self._temperature(step), jnp.float32))
        return self._perceptual, sharding.shard(batch, self._mesh), draws

    def _key(self, step: int) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self._config.train.seed), step)

    def _temperature(self, step: int) -> float:
        """Follows a cosine from the start's to the final one."""
        settings = self._config.codebook
        done = min(step / settings.temperature_steps, 1.0)
        span = settings.start_temperature - settings.final_temperature
        return settings.final_temperature + span * 0.5 * (1 + math.cos(math.pi * done))

    # One step, compiled.

    def _whole_step(
        self,
        state: CodecTrainState,
        perceptual: PerceptualPair,
        batch: jax.Array,
        draws: StepDraws,
        *,
        phase: Phase,
    ) -> tuple[CodecTrainState, Scalars]:
        self._compilations += 1  # this line runs when JAX traces, not when the step runs
        images = batch.astype(jnp.float32) * (2 / 255) - 1  # (B, H, W, C) in [-1, 1]
        loss = GeneratorLoss(self._config, self.vqgan, *perceptual)
        generator, reconstruction, scalars = self._generator_step(loss, state, images, draws, phase)
        discriminator = state.discriminator
        if phase.adversarial:
            discriminator, more = self._discriminator_step(discriminator, images, reconstruction)
            scalars |= more
        new = state._replace(generator=generator, discriminator=discriminator)
        chosen = optimizers.skip_if_not_finite(scalars.values(), new, state)
        return chosen, scalars | {"skipped": chosen.skipped, "skipped_in_row": chosen.skipped_in_row}

    def _generator_step(
        self, loss: GeneratorLoss, state: CodecTrainState, images: jax.Array, draws: StepDraws, phase: Phase
    ) -> tuple[GeneratorState, jax.Array, Scalars]:
        """Returns the autoencoder after one update, its reconstruction ``[B, H, W, C]``, and scalars."""
        side, other = state.generator, state.discriminator
        critic = DiscriminatorLoss(self._config.adversarial, self._discriminator)
        logits = functools.partial(critic.logits, other.params, other.others) if phase.adversarial else None

        def part(images: jax.Array, index: jax.Array) -> tuple[Any, Any, None]:
            own = draws._replace(key=jax.random.fold_in(draws.key, index))
            gradients, forward = loss.gradients(side.params, side.others, images, own, phase, logits)
            return (gradients, forward.scalars), forward[:3], None  # every part counts the same

        (gradients, scalars), forward = optimizers.accumulate(part, images, self._config.train.accumulate)
        reconstruction, latents, tokens = forward
        learned, optimizer = optimizers.apply_gradients(
            self._optimizer, gradients, side.optimizer, learned_params(self._config, side.params)
        )
        params, others, usage = side.params | learned, side.others, side.usage
        if phase.quantize:
            if not self._config.codebook.keep_tokens:
                params, others = self._observed(params, others, latents, tokens)
            counts = jnp.bincount(jnp.ravel(tokens), length=usage.shape[0])
            usage = usage + counts.astype(jnp.int32)
        average = optimizers.update_average(side.average, params, side.updates, self._config.train.ema_decay)
        if average and self._config.codebook.keep_tokens:
            # an average of equal values may be rounded to another one; then tokens would not be kept
            average = params | learned_params(self._config, average)
        scalars = scalars | {
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": self._learning_rate(side.updates),
        }
        new = GeneratorState(params, average, others, optimizer, usage, side.updates + 1)
        return new, reconstruction, scalars

    def _discriminator_step(
        self, side: DiscriminatorState, images: jax.Array, reconstruction: jax.Array
    ) -> tuple[DiscriminatorState, Scalars]:
        """Returns the discriminator after one update."""
        loss = DiscriminatorLoss(self._config.adversarial, self._discriminator)
        gradients, others, lecam, scalars = loss.gradients(
            side.params, side.others, side.lecam, images, reconstruction
        )
        params, optimizer = optimizers.apply_gradients(
            self._discriminator_optimizer, gradients, side.optimizer, side.params
        )
        scalars["discriminator_gradient_norm"] = optax.tree.norm(gradients)
        return DiscriminatorState(params, others, optimizer, lecam), scalars

    def _observed(
        self, params: Arrays, others: Arrays, latents: jax.Array, tokens: jax.Array
    ) -> tuple[Arrays, Arrays]:
        """Returns what the quantizer learns without gradients."""
        model = self.vqgan.bind(params, others)
        model.quantizer.observe(latents, tokens, self._config.codebook.ema_decay)
        return self.vqgan.values_of(model)


def build_vqgan(config: CodecTrainConfig) -> VQGAN:
    """Builds the model with random weights, in training mode."""
    dtype = jnp.dtype(config.train.dtype)
    rngs = nnx.Rngs(config.train.seed)
    return VQGAN(config.model, dtype=dtype, remat=config.train.remat, rngs=rngs)


def _build_discriminator(config: CodecTrainConfig) -> Any:
    dtype = jnp.dtype(config.train.dtype)
    rngs, channels = nnx.Rngs(config.train.seed + 1), config.model.channels.count
    return make_discriminator(config.discriminator, channels=channels, dtype=dtype, rngs=rngs)
