"""Losses as pure functions of arrays. Results are float32 whatever the type of the arguments.

Adversarial losses take logits of any shape and give the mean over all of them. Every discriminator's
loss carries the factor 0.5 of the reference implementation of *Taming Transformers* (arXiv
2012.09841), so that the weight of a penalty beside it means the same for each of them.

Entropy losses let each latent choose clearly, and all latents together choose every code: the mean entropy of
a latent's soft choice minus the entropy of the mean choice, in nats (*Language Model Beats Diffusion*,
arXiv 2310.05737, section 3.1). It lies between ``-log(codes)`` (clear choices, all codes alike in use) and 0
(all latents choose alike).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

ADAPTIVE_WEIGHT_EPSILON = 1e-4


def l1(reconstruction: jax.Array, images: jax.Array) -> jax.Array:
    """Averages the absolute difference."""
    return jnp.mean(jnp.abs(_float32(reconstruction) - _float32(images)))


def l2(reconstruction: jax.Array, images: jax.Array) -> jax.Array:
    """Averages the squared difference."""
    return jnp.mean((_float32(reconstruction) - _float32(images)) ** 2)


def vq_loss(codebook_loss: jax.Array, commitment_loss: jax.Array, beta: float) -> jax.Array:
    """Adds the codebook term and ``beta`` times the commitment term (arXiv 1711.00937, equation 3)."""
    return _float32(codebook_loss) + beta * _float32(commitment_loss)


def legacy_vq_loss(codebook_loss: jax.Array, commitment_loss: jax.Array, beta: float) -> jax.Array:
    """Puts ``beta`` on the codebook term instead: what the reference of arXiv 2012.09841 trained with."""
    return beta * _float32(codebook_loss) + _float32(commitment_loss)


def hinge_discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Returns half of E[max(0, 1 - real)] + E[max(0, 1 + fake)] (arXiv 1705.02894), the hinge loss."""
    return 0.5 * (jnp.mean(jax.nn.relu(1 - _float32(real))) + jnp.mean(jax.nn.relu(1 + _float32(fake))))


def hinge_generator(fake: jax.Array) -> jax.Array:
    """Returns -E[fake]: the pull on the generator is the same whatever the logit."""
    return -jnp.mean(_float32(fake))


def vanilla_discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Returns half of the cross-entropy of real against fake (arXiv 1406.2661, equation 1, negated)."""
    return 0.5 * (jnp.mean(jax.nn.softplus(-_float32(real))) + jnp.mean(jax.nn.softplus(_float32(fake))))


def nonsaturating_generator(fake: jax.Array) -> jax.Array:
    """Returns -E[log sigmoid(fake)] (arXiv 1406.2661, section 3): no pull where it fools already."""
    return jnp.mean(jax.nn.softplus(-_float32(fake)))


class AdversarialLoss(NamedTuple):
    """Both sides of an adversarial game.

    Attributes:
      discriminator: logits of real and of reconstructed images to the discriminator's loss.
      generator: logits of reconstructed images to the generator's loss.
    """

    discriminator: Callable[[jax.Array, jax.Array], jax.Array]
    generator: Callable[[jax.Array], jax.Array]


ADVERSARIAL: dict[str, AdversarialLoss] = {
    "hinge": AdversarialLoss(hinge_discriminator, hinge_generator),
    # The reference of arXiv 2012.09841 takes -E[fake] beside either discriminator loss.
    "vanilla": AdversarialLoss(vanilla_discriminator, hinge_generator),
    "non-saturating": AdversarialLoss(vanilla_discriminator, nonsaturating_generator),
}


def adaptive_weight(
    reconstruction_gradient: jax.Array, adversarial_gradient: jax.Array, ceiling: float = 1e4
) -> jax.Array:
    """Returns the weight that brings the adversarial gradient to the size of the reconstruction's.

    The ratio of L2 norms of arXiv 2012.09841, equation 7, with 1e-4 in the denominator and the ceiling
    as in its reference implementation. No gradient passes through it.

    Args:
      reconstruction_gradient: gradient of the pixel and perceptual losses by the kernel of the
        decoder's last layer.
      adversarial_gradient: gradient of the generator's adversarial loss by the same kernel.
      ceiling: largest weight.

    Returns:
      A scalar in [0, ceiling].
    """
    reconstruction, adversarial = (
        jnp.linalg.norm(jnp.ravel(_float32(gradient)))
        for gradient in (reconstruction_gradient, adversarial_gradient)
    )
    return jax.lax.stop_gradient(
        jnp.clip(reconstruction / (adversarial + ADAPTIVE_WEIGHT_EPSILON), 0.0, ceiling)
    )


def r1_penalty(discriminate: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """Returns half the mean squared norm of the gradient at real images (arXiv 1801.04406, section 4.1).

    An image's value is the mean of its logits, as in the adversarial losses. The sum of squares runs
    over the image's pixels and channels, the mean over the batch. If ``discriminate`` mixes images
    (BatchNorm in training mode), an image's gradient includes what it does to the others.

    Args:
      discriminate: ``[B, H, W, 3]`` images to ``[B, ...]`` logits. It runs under :func:`jax.grad`, so
        a module with state has to be merged inside it, from copies (``nnx.merge(..., copy=True)``).
      images: ``[B, H, W, 3]`` real images.

    Returns:
      A scalar.
    """

    def total(images: jax.Array) -> jax.Array:
        logits = _float32(discriminate(images))
        return jnp.mean(logits) * logits.shape[0]  # sum over images of the mean over their logits

    gradient = jax.grad(total)(_float32(images))  # (B, H, W, 3)
    return 0.5 * jnp.sum(gradient**2) / images.shape[0]


class LecamState(NamedTuple):
    """Where the logits were lately: moving averages of their means, float32 scalars."""

    real: jax.Array
    fake: jax.Array


def lecam_start() -> LecamState:
    """Returns the averages before the first step, both 0."""
    return LecamState(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))


def lecam_update(state: LecamState, real: jax.Array, fake: jax.Array, decay: float) -> LecamState:
    """Moves the averages towards the means of a step's logits by ``1 - decay``. No gradient passes."""
    return LecamState(
        *(
            decay * average + (1 - decay) * jax.lax.stop_gradient(jnp.mean(_float32(logits)))
            for average, logits in zip(state, (real, fake), strict=True)
        )
    )


def lecam_penalty(state: LecamState, real: jax.Array, fake: jax.Array) -> jax.Array:
    """Returns E[max(0, real - average fake)^2] + E[max(0, average real - fake)^2] (LeCAM, arXiv 2104.03310).

    The maxima are those of the authors' code: only logits on their own side of the other's average count,
    so that the penalty never rewards a confusion of the two.
    """
    real_average, fake_average = jax.lax.stop_gradient(state)
    above = jax.nn.relu(_float32(real) - fake_average)
    below = jax.nn.relu(real_average - _float32(fake))
    return jnp.mean(above**2) + jnp.mean(below**2)


def _float32(values: jax.Array) -> jax.Array:
    return jnp.asarray(values, jnp.float32)


MAX_JOINT_CODES = 1 << 18  # up to here the mean choice of bits is computed for every code
LEAST_PROBABILITY = 1e-30  # below it, p log p is zero in float32 anyway; its logarithm stays finite


def code_affinity(latents: jax.Array, codebook: jax.Array) -> jax.Array:
    """Returns negative squared distances ``[N, K]``, up to a constant for each latent that a softmax ignores.

    Args:
      latents: ``[N, D]`` float32.
      codebook: ``[K, D]`` float32.
    """
    products = jnp.matmul(latents, codebook.T, precision=jax.lax.Precision.HIGHEST)  # (N, K)
    return 2 * products - jnp.sum(codebook**2, axis=1)[None, :]


def entropy_loss(logits: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Computes the loss for a softmax over codes; holds several arrays of the logits' size for its gradient.

    Args:
      logits: ``[N, K]`` float32 affinities of latents to codes.
      temperature: what they are divided by, above 0.

    Returns:
      Scalar in ``[-log K, 0]``.
    """
    log_choice = jax.nn.log_softmax(logits / temperature, axis=1)
    choice = jnp.exp(log_choice)  # (N, K)
    each = -jnp.mean(jnp.sum(choice * log_choice, axis=1))
    return each - _entropy(jnp.mean(choice, axis=0))


def bit_entropy_loss(latents: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Computes the loss for all ``2**D`` codes of -1 and 1, without an array of their number for each latent.

    The softmax over ``-|z - c|^2 / temperature`` is a product over dimensions, each of them 1 with
    probability ``sigmoid(4 z / temperature)``. A latent's entropy is the sum over its bits. The entropy
    of the mean choice is computed for every code up to ``MAX_JOINT_CODES`` of them; beyond, it is the
    sum over bits of the mean bit's entropy, which is at least as much (equal for independent bits).

    Args:
      latents: ``[N, D]`` float32.
      temperature: above 0.

    Returns:
      Scalar in ``[-D log 2, 0]``.
    """
    logits = latents * (4.0 / temperature)
    on, off = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)  # (N, D)
    bits = on * jax.nn.log_sigmoid(logits) + off * jax.nn.log_sigmoid(-logits)
    each = -jnp.mean(jnp.sum(bits, axis=1))
    if 1 << latents.shape[1] <= MAX_JOINT_CODES:
        return each - _entropy(_mean_joint(on, off))
    return each - _entropy(jnp.mean(on, axis=0)) - _entropy(jnp.mean(off, axis=0))


def _entropy(probabilities: jax.Array) -> jax.Array:
    return -jnp.sum(probabilities * jnp.log(jnp.maximum(probabilities, LEAST_PROBABILITY)))


def _mean_joint(on: jax.Array, off: jax.Array) -> jax.Array:
    """Averages the probability of each of ``2**D`` codes: one matrix product of both halves of the bits."""
    half = on.shape[1] // 2
    low, high = _joint(on[:, :half], off[:, :half]), _joint(on[:, half:], off[:, half:])
    return jnp.matmul(low.T, high, precision=jax.lax.Precision.HIGHEST).reshape(-1) / on.shape[0]


def _joint(on: jax.Array, off: jax.Array) -> jax.Array:
    """Turns ``[N, d]`` probabilities of bits into ``[N, 2**d]`` of their combinations."""
    joint = jnp.ones((on.shape[0], 1), jnp.float32)
    for bit in range(on.shape[1]):
        joint = jnp.concatenate([joint * off[:, bit, None], joint * on[:, bit, None]], axis=1)
    return joint
