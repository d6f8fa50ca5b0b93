"""The discriminator's half of a step: its loss and gradients.

The autoencoder's output comes as plain data: no gradient leads back into it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vqgan import losses
from vqgan.functional import Arrays, Functional, Scalars
from vqgan.losses import LecamState
from vqgan.training.tokenizer_config import AdversarialConfig


@dataclasses.dataclass(frozen=True)
class DiscriminatorLoss:
    """The discriminator's loss and its gradient.

    Attributes:
      config: weights and kind of the loss.
      discriminator: structure of the network.
    """

    config: AdversarialConfig
    discriminator: Functional[Any]

    def judge(self, params: Arrays, others: Arrays, images: jax.Array) -> jax.Array:
        """Logits of images in [-1, 1]; what a call changes in the network is dropped."""
        logits: jax.Array = self.discriminator.bind(params, others)(images)
        return logits

    def gradients(
        self, params: Arrays, others: Arrays, lecam: LecamState, images: jax.Array, reconstruction: jax.Array
    ) -> tuple[Arrays, Arrays, LecamState, Scalars]:
        """Gradients by the discriminator's parameters; none reaches what made the reconstruction.

        Args:
          params: of the discriminator.
          others: its other variables.
          lecam: averages of its logits.
          images: ``[B, H, W, 3]`` in [-1, 1].
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
                penalty = losses.r1_penalty(lambda batch: self.judge(params, others, batch), images)
                value, scalars["r1"] = value + self.config.r1 * penalty, penalty
            return value, (self.discriminator.values_of(network)[1], averages, scalars)

        gradients, (others, lecam, scalars) = jax.grad(loss, has_aux=True)(params)
        return gradients, others, lecam, scalars
