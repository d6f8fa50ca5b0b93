"""Losses of both sides of a step, and their gradients for a batch; each sees the other's values only.

The autoencoder's backward pass runs once. Gradients of the reconstruction's and of the adversarial loss are
first taken at the image, where the adaptive weight (arXiv 2012.09841, equation 7) scales one to the other by
their norms at the decoder's last layer; their sum then goes back through decoder and encoder. The
discriminator gets the autoencoder's output as plain data: no gradient leads back into it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vqgan import losses
from vqgan.functional import Arrays, Functional, Scalars
from vqgan.losses import LecamState
from vqgan.metrics.lpips import Lpips, distance
from vqgan.model.vqgan import VQGAN, network_range
from vqgan.quantizers import Quantized, QuantizeOptions
from vqgan.quantizers.nearest import NearestQuantizer
from vqgan.training.codec.config import AdversarialConfig, CodecTrainConfig
from vqgan.training.codec.state import Phase, StepDraws

LAST_KERNEL = "decoder.decoder.conv_out.kernel"
GUMBEL_STREAM = 1 << 20  # far from the numbers of dropout's streams


class Forward(NamedTuple):
    """What a forward pass leaves beside its losses.

    Attributes:
      reconstruction: ``[B, H, W, C]`` float32 in [-1, 1], not clipped.
      latents: ``[B, h, w, D]``.
      tokens: ``[B, h, w]`` int32.
      scalars: losses by name.
    """

    reconstruction: jax.Array
    latents: jax.Array
    tokens: jax.Array
    scalars: Scalars


@dataclasses.dataclass(frozen=True)
class GeneratorLoss:
    """The autoencoder's loss and its gradient.

    Attributes:
      config: of the run.
      vqgan: structure of the model.
      perceptual: weights of LPIPS, or None to go without.
      alex: weights of LPIPS over AlexNet that stands beside it, or None.
    """

    config: CodecTrainConfig
    vqgan: Functional[VQGAN]
    perceptual: Lpips | None
    alex: Lpips | None = None

    def gradients(
        self,
        params: Arrays,
        others: Arrays,
        images: jax.Array,
        draws: StepDraws,
        phase: Phase,
        discriminator: Callable[[jax.Array], jax.Array] | None,
    ) -> tuple[Arrays, Forward]:
        """Returns gradients by the parameters that learn; nothing of the discriminator changes.

        Args:
          params: all of the VQGAN's.
          others: its other variables.
          images: ``[B, H, W, C]`` in [-1, 1].
          draws: randomness of the step.
          phase: whether to quantize.
          discriminator: images in [-1, 1] to its logits; None before it comes in.
        """

        def forward(
            learned: Arrays,
        ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, Quantized, jax.Array]]:
            # What is kept is a constant here: nothing goes back through an encoder that does not learn.
            model = self.vqgan.bind({**params, **learned}, others, draws.key)
            latents = model.encoder(self._to_input(images))  # (B, h, w, D)
            quantized = self._quantize(model, latents, draws)
            codes = quantized.codes if phase.quantize else _comparable(model, latents)
            features = model.decoder.features(codes)  # (B, H, W, ch), before the last layer
            vq = self._quantizer_loss(quantized) if phase.quantize else jnp.zeros(())
            return (self._image(model, features), vq), (latents, quantized, features)

        # Forward through encoder, quantizer and decoder; the pull-back waits until the gradient at the image
        # is known, so that the network is gone back through once, not once for each loss.
        (reconstruction, vq), pull_back, aux = jax.vjp(
            forward, learned_params(self.config, params), has_aux=True
        )
        latents, quantized, features = aux

        def last_layer(kernel: jax.Array) -> jax.Array:
            """Returns the image as a function of the last kernel alone: features before it are constants."""
            model = self.vqgan.bind({**params, LAST_KERNEL: kernel}, others, draws.key)
            return self._image(model, features)

        gradient, scalars = self._at_image(
            reconstruction, images, last_layer, params[LAST_KERNEL], discriminator
        )  # (B, H, W, C)
        # The quantizer's loss is not one of the image: its cotangent is 1.
        (by_learned,) = pull_back((gradient, jnp.ones_like(vq)))
        if phase.quantize:
            scalars |= {"quantizer": vq, "commitment": quantized.commitment_loss}
        return by_learned, Forward(reconstruction, latents, quantized.tokens, scalars)

    def reconstruction(self, reconstruction: jax.Array, images: jax.Array) -> tuple[jax.Array, Scalars]:
        """Returns the pixel and perceptual loss of images in [-1, 1], with its parts."""
        weights = self.config.loss
        pixel = jnp.zeros(())
        if weights.l1:
            pixel += weights.l1 * losses.l1(reconstruction, images)
        if weights.l2:
            pixel += weights.l2 * losses.l2(reconstruction, images)
        if self.perceptual is None:
            return pixel, {"pixel": pixel}
        perceptual = _lpips(self.perceptual, reconstruction, images)
        loss, scalars = pixel + weights.perceptual * perceptual, {"pixel": pixel, "perceptual": perceptual}
        if self.alex is not None:
            scalars["perceptual_alex"] = _lpips(self.alex, reconstruction, images)
            loss += weights.perceptual_alex * scalars["perceptual_alex"]
        return loss, scalars

    def _at_image(
        self,
        reconstruction: jax.Array,
        images: jax.Array,
        last_layer: Callable[[jax.Array], jax.Array],
        kernel: jax.Array,
        discriminator: Callable[[jax.Array], jax.Array] | None,
    ) -> tuple[jax.Array, Scalars]:
        """Returns the gradient of all losses of the image by the image ``[B, H, W, C]``."""
        by_image = jax.grad(self.reconstruction, has_aux=True)
        reconstruction_grad, scalars = by_image(reconstruction, images)  # (B, H, W, C)
        if discriminator is None:
            return reconstruction_grad, scalars
        settings = self.config.adversarial
        loss = losses.ADVERSARIAL[settings.loss].generator
        adversarial, adversarial_grad = jax.value_and_grad(lambda fake: loss(discriminator(fake)))(
            reconstruction
        )
        weight = jnp.ones(())
        if settings.adaptive:
            # Equation 7 wants the norms of both gradients at the last kernel. Both come there from the image
            # through one linear map, which is a single convolution: far cheaper than two backward passes.
            _, to_kernel = jax.vjp(last_layer, kernel)
            (by_reconstruction,) = to_kernel(reconstruction_grad)
            (by_adversarial,) = to_kernel(adversarial_grad)
            weight = losses.adaptive_weight(by_reconstruction, by_adversarial, settings.ceiling)
            scalars["adaptive_weight"] = weight
        # The weight is a constant here: no gradient passes through it.
        gradient = reconstruction_grad + settings.weight * weight * adversarial_grad
        return gradient, scalars | {"adversarial": adversarial}

    def _quantize(self, model: VQGAN, latents: jax.Array, draws: StepDraws) -> Quantized:
        codebook, entropy = self.config.codebook, self.config.loss
        options = QuantizeOptions(
            rotation=codebook.rotation,
            temperature=draws.temperature,
            key=jax.random.fold_in(draws.key, GUMBEL_STREAM),
            entropy_temperature=entropy.entropy_temperature if entropy.entropy else 0.0,
        )
        return model.quantizer(latents, options)

    def _quantizer_loss(self, quantized: Quantized) -> jax.Array:
        weights = self.config.loss
        combine = losses.legacy_vq_loss if weights.legacy else losses.vq_loss
        beta = weights.divergence if self.config.model.quantizer == "gumbel" else weights.commitment
        codes = combine(quantized.codebook_loss, quantized.commitment_loss, beta)
        return weights.codebook * codes + weights.entropy * quantized.entropy_loss

    def _to_input(self, images: jax.Array) -> jax.Array:
        low, high = network_range(self.config.model)
        return (images + 1) * ((high - low) / 2) + low

    def _image(self, model: VQGAN, features: jax.Array) -> jax.Array:
        """Gives the last layer's image in [-1, 1]. A pixel that is clipped would never learn to come back."""
        low, high = network_range(self.config.model)
        images = model.decoder.decoder.conv_out(features).astype(jnp.float32)
        return (images - low) * (2 / (high - low)) - 1


@dataclasses.dataclass(frozen=True)
class DiscriminatorLoss:
    """The discriminator's loss and its gradient.

    Attributes:
      config: weights and kind of the loss.
      discriminator: structure of the network.
    """

    config: AdversarialConfig
    discriminator: Functional[Any]

    def logits(self, params: Arrays, others: Arrays, images: jax.Array) -> jax.Array:
        """Returns logits of images in [-1, 1]; what a call changes in the network is dropped."""
        found: jax.Array = self.discriminator.bind(params, others)(images)
        return found

    def gradients(
        self, params: Arrays, others: Arrays, lecam: LecamState, images: jax.Array, reconstruction: jax.Array
    ) -> tuple[Arrays, Arrays, LecamState, Scalars]:
        """Returns gradients by the discriminator's parameters; none reaches what made the reconstruction.

        Args:
          params: of the discriminator.
          others: its other variables.
          lecam: averages of its logits.
          images: ``[B, H, W, C]`` in [-1, 1].
          reconstruction: the same shape.

        Returns:
          Gradients, other variables and averages after this batch, and scalars.
        """
        reconstruction = jax.lax.stop_gradient(reconstruction)

        def loss(params: Arrays) -> tuple[jax.Array, tuple[Arrays, LecamState, Scalars]]:
            network = self.discriminator.bind(params, others)
            real, fake = network(images), network(reconstruction)
            kind = losses.ADVERSARIAL[self.config.loss]
            value = kind.discriminator(real, fake)
            scalars = {"discriminator": value, "logits_real": jnp.mean(real), "logits_fake": jnp.mean(fake)}
            averages = losses.lecam_update(lecam, real, fake, self.config.lecam_decay)
            if self.config.lecam:
                penalty = losses.lecam_penalty(averages, real, fake)
                value, scalars["lecam"] = value + self.config.lecam * penalty, penalty
            if self.config.r1:
                penalty = losses.r1_penalty(lambda batch: self.logits(params, others, batch), images)
                value, scalars["r1"] = value + self.config.r1 * penalty, penalty
            return value, (self.discriminator.values_of(network)[1], averages, scalars)

        gradients, (others, lecam, scalars) = jax.grad(loss, has_aux=True)(params)
        return gradients, others, lecam, scalars


def _lpips(network: Lpips, one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.mean(distance(network, one, other, jax.lax.Precision.DEFAULT))


def learned_params(config: CodecTrainConfig, params: Arrays) -> Arrays:
    """Returns those parameters that learn: all, or the decoder's where tokens are to stay."""
    if not config.codebook.keep_tokens:
        return params
    return {name: value for name, value in params.items() if name.startswith("decoder.")}


def _comparable(model: VQGAN, latents: jax.Array) -> jax.Array:
    """Returns latents as the decoder will see them once they are quantized: of unit length for ``cosine``."""
    quantizer = model.quantizer
    return quantizer.comparable(latents) if isinstance(quantizer, NearestQuantizer) else latents
