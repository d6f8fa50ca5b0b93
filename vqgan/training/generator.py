"""The autoencoder's half of a step: its losses, and their gradients for a batch.

The backward pass runs once. Gradients of the reconstruction's and of the adversarial loss are first
taken at the image, where the adaptive weight (arXiv 2012.09841, equation 7) scales one to the other by
their norms at the decoder's last layer; their sum then goes back through decoder and encoder.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vqgan import losses
from vqgan.functional import Arrays, Functional, Scalars
from vqgan.lpips import Lpips, distance
from vqgan.model.vqgan import VQGAN
from vqgan.quantizers import Quantized, QuantizeOptions
from vqgan.quantizers.nearest import NearestQuantizer
from vqgan.training.state import Phase
from vqgan.training.tokenizer_config import TokenizerConfig

LAST_KERNEL = "decoder.decoder.conv_out.kernel"
GUMBEL_STREAM = 1 << 20  # far from the numbers of dropout's streams


class Forward(NamedTuple):
    """What a forward pass leaves beside its losses.

    Attributes:
      reconstruction: ``[B, H, W, 3]`` float32 in [-1, 1], not clipped.
      latents: ``[B, h, w, D]``.
      tokens: ``[B, h, w]`` int32.
      scalars: losses by name.
    """

    reconstruction: jax.Array
    latents: jax.Array
    tokens: jax.Array
    scalars: Scalars


class Draws(NamedTuple):
    """What a step has by its number: randomness, and the Gumbel temperature."""

    key: jax.Array
    temperature: jax.Array


@dataclasses.dataclass(frozen=True)
class GeneratorLoss:
    """The autoencoder's loss and its gradient.

    Attributes:
      config: of the run.
      vqgan: structure of the model.
      perceptual: weights of LPIPS, or None to go without.
    """

    config: TokenizerConfig
    vqgan: Functional[VQGAN]
    perceptual: Lpips | None

    def gradients(
        self,
        params: Arrays,
        others: Arrays,
        images: jax.Array,
        draws: Draws,
        phase: Phase,
        judge: Callable[[jax.Array], jax.Array] | None,
    ) -> tuple[Arrays, Forward]:
        """Gradients by the autoencoder's parameters; nothing of the discriminator changes.

        Args:
          params: of the VQGAN.
          others: its other variables.
          images: ``[B, H, W, 3]`` in [-1, 1].
          draws: randomness of the step.
          phase: whether to quantize.
          judge: images in [-1, 1] to the discriminator's logits; None before it comes in.
        """

        def forward(
            params: Arrays,
        ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, Quantized, jax.Array]]:
            model = self.vqgan.bind(params, others, draws.key)
            latents = model.encoder(self._to_input(images))
            quantized = self._quantize(model, latents, draws)
            features = model.decoder.features(
                quantized.codes if phase.quantize else _comparable(model, latents)
            )
            vq = self._quantizer_loss(quantized) if phase.quantize else jnp.zeros(())
            return (self._image(model, features), vq), (latents, quantized, features)

        (reconstruction, vq), pull_back, aux = jax.vjp(forward, params, has_aux=True)
        latents, quantized, features = aux

        def last_layer(kernel: jax.Array) -> jax.Array:
            model = self.vqgan.bind({**params, LAST_KERNEL: kernel}, others, draws.key)
            return self._image(model, features)

        gradient, scalars = self._at_image(reconstruction, images, last_layer, params[LAST_KERNEL], judge)
        (by_params,) = pull_back((gradient, jnp.ones_like(vq)))
        if phase.quantize:
            scalars |= {"quantizer": vq, "commitment": quantized.commitment_loss}
        return by_params, Forward(reconstruction, latents, quantized.tokens, scalars)

    def reconstruction(self, reconstruction: jax.Array, images: jax.Array) -> tuple[jax.Array, Scalars]:
        """Pixel and perceptual loss of images in [-1, 1], with its parts."""
        weights = self.config.loss
        pixel = jnp.zeros(())
        if weights.l1:
            pixel += weights.l1 * losses.l1(reconstruction, images)
        if weights.l2:
            pixel += weights.l2 * losses.l2(reconstruction, images)
        if self.perceptual is None:
            return pixel, {"pixel": pixel}
        perceptual = jnp.mean(distance(self.perceptual, reconstruction, images, jax.lax.Precision.DEFAULT))
        return pixel + weights.perceptual * perceptual, {"pixel": pixel, "perceptual": perceptual}

    def _at_image(
        self,
        reconstruction: jax.Array,
        images: jax.Array,
        last_layer: Callable[[jax.Array], jax.Array],
        kernel: jax.Array,
        judge: Callable[[jax.Array], jax.Array] | None,
    ) -> tuple[jax.Array, Scalars]:
        """Gradient of all losses of the image by the image ``[B, H, W, 3]``."""
        by_image = jax.grad(self.reconstruction, has_aux=True)
        gradient, scalars = by_image(reconstruction, images)
        if judge is None:
            return gradient, scalars
        settings = self.config.adversarial
        adversarial = losses.ADVERSARIAL[settings.loss].generator
        value, from_judge = jax.value_and_grad(lambda fake: adversarial(judge(fake)))(reconstruction)
        weight = jnp.ones(())
        if settings.adaptive:
            _, to_kernel = jax.vjp(last_layer, kernel)
            (wanted,), (given,) = to_kernel(gradient), to_kernel(from_judge)
            weight = losses.adaptive_weight(wanted, given, settings.ceiling)
            scalars["adaptive_weight"] = weight
        return gradient + settings.weight * weight * from_judge, scalars | {"adversarial": value}

    def _quantize(self, model: VQGAN, latents: jax.Array, draws: Draws) -> Quantized:
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
        low, high = self.config.model.input_range
        return (images + 1) * ((high - low) / 2) + low

    def _image(self, model: VQGAN, features: jax.Array) -> jax.Array:
        """The last layer's image in [-1, 1]. A pixel that is clipped would never learn to come back."""
        low, high = self.config.model.input_range
        images = model.decoder.decoder.conv_out(features).astype(jnp.float32)
        return (images - low) * (2 / (high - low)) - 1


def _comparable(model: VQGAN, latents: jax.Array) -> jax.Array:
    """Latents as the decoder will see them once they are quantized: of unit length for ``cosine``."""
    quantizer = model.quantizer
    return quantizer.comparable(latents) if isinstance(quantizer, NearestQuantizer) else latents
