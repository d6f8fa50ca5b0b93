"""Gradients of the autoencoder against direct computations, with a discriminator that is a known function."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan import losses
from vqgan.functional import Arrays
from vqgan.quantizers import Quantized
from vqgan.training.codec.config import CodecTrainConfig, DataConfig, LossConfig
from vqgan.training.codec.gradients import LAST_KERNEL, GeneratorLoss, StepDraws
from vqgan.training.codec.learner import CodecLearner
from vqgan.training.codec.state import Phase

WITH = Phase(quantize=True, adversarial=True)


@pytest.fixture(scope="module")
def images(crops: np.ndarray) -> jax.Array:
    return jnp.asarray(crops[0], jnp.float32) * (2 / 255) - 1


@pytest.fixture(scope="module")
def params(learner: CodecLearner) -> Arrays:
    params = learner.vqgan.initial()[0]
    key = jax.random.key(9)
    # The codes lie among the latents, so that several are used.
    return {**params, "quantizer.codebook": jax.random.normal(key, params["quantizer.codebook"].shape)}


def discriminator(images: jax.Array) -> jax.Array:
    """Logits ``[B, 1]`` of a known, curved function."""
    return jnp.sum(jnp.sin(3 * images) * images, axis=(1, 2, 3))[:, None] / 100


def forward(learner: CodecLearner, params: Arrays, images: jax.Array) -> tuple[jax.Array, Any]:
    model = learner.vqgan.bind(params, {}, jax.random.key(0))
    quantized = model.quantizer(model.encoder(images))
    return model.decoder(quantized.codes), quantized


def test_gradient_is_that_of_the_whole_loss(
    learner: CodecLearner, toy: CodecTrainConfig, params: Arrays, images: jax.Array, draws: StepDraws
) -> None:
    """One backward pass with the adaptive weight against two, and one of their sum."""
    loss = GeneratorLoss(toy, learner.vqgan, None)
    found, result = jax.jit(
        lambda params: loss.gradients(params, {}, images, draws, WITH, discriminator)
    )(params)  # fmt: skip

    def reconstruction(params: Arrays) -> jax.Array:
        return losses.l1(forward(learner, params, images)[0], images)

    def adversarial(params: Arrays) -> jax.Array:
        return -jnp.mean(discriminator(forward(learner, params, images)[0]))

    def codes(params: Arrays) -> jax.Array:
        quantized = forward(learner, params, images)[1]
        return quantized.codebook_loss + 0.25 * quantized.commitment_loss

    @jax.jit
    def parts(params: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        return jax.grad(reconstruction)(params), jax.grad(adversarial)(params), jax.grad(codes)(params)

    by_pixels, by_discriminator, by_codes = parts(params)
    norms = [np.linalg.norm(np.ravel(g[LAST_KERNEL])) for g in (by_pixels, by_discriminator)]
    weight = norms[0] / (norms[1] + 1e-4)
    assert float(result.scalars["adaptive_weight"]) == pytest.approx(weight, rel=1e-4)
    for name in params:
        expected = by_pixels[name] + toy.adversarial.weight * weight * by_discriminator[name] + by_codes[name]
        np.testing.assert_allclose(found[name], expected, rtol=2e-3, atol=2e-5, err_msg=name)
    assert float(jnp.abs(by_pixels["encoder.encoder.conv_in.kernel"]).max()) > 0  # straight through


def test_quantizer_losses_by_hand(toy: CodecTrainConfig, learner: CodecLearner) -> None:
    def total(quantizer: str = "nearest", **weights: Any) -> float:
        model = dataclasses.replace(toy.model, quantizer=quantizer)
        config = dataclasses.replace(toy, model=model, loss=dataclasses.replace(toy.loss, **weights))
        parts = Quantized(jnp.zeros(()), jnp.zeros(()), jnp.asarray(2.0), jnp.asarray(4.0), jnp.asarray(8.0))
        return float(GeneratorLoss(config, learner.vqgan, None)._quantizer_loss(parts))

    assert total() == 2 + 0.25 * 4
    assert total(legacy=True) == 0.25 * 2 + 4
    assert total(codebook=3.0, commitment=0.5) == 3 * (2 + 0.5 * 4)
    assert total(entropy=0.5) == 2 + 0.25 * 4 + 0.5 * 8
    assert total(quantizer="gumbel") == pytest.approx(2 + 5e-4 * 4)


def test_weight_without_adapting(
    learner: CodecLearner, toy: CodecTrainConfig, params: Arrays, images: jax.Array, draws: StepDraws
) -> None:
    fixed = dataclasses.replace(toy, adversarial=dataclasses.replace(toy.adversarial, adaptive=False))
    loss = GeneratorLoss(fixed, learner.vqgan, None)
    gradients = jax.jit(
        lambda discriminator: loss.gradients(params, {}, images, draws, WITH, discriminator)[0],
        static_argnums=0,
    )
    with_discriminator, without = gradients(discriminator), gradients(None)
    doubled = gradients(lambda images: 2 * discriminator(images))
    difference = with_discriminator[LAST_KERNEL] - without[LAST_KERNEL]
    np.testing.assert_allclose(
        doubled[LAST_KERNEL] - without[LAST_KERNEL], 2 * difference, rtol=1e-3, atol=1e-6
    )
    assert float(jnp.abs(difference).max()) > 1e-4


def test_before_quantization_the_codebook_has_no_part(
    learner: CodecLearner, toy: CodecTrainConfig, params: Arrays, images: jax.Array, draws: StepDraws
) -> None:
    loss = GeneratorLoss(toy, learner.vqgan, None)
    found, result = jax.jit(
        lambda params: loss.gradients(params, {}, images, draws, Phase(False, False), None)
    )(params)
    assert not np.any(found["quantizer.codebook"])
    assert set(result.scalars) == {"pixel"}
    model = learner.vqgan.bind(params, {})
    direct = model.decoder(model.encoder(images))
    np.testing.assert_allclose(result.reconstruction, direct, rtol=1e-4, atol=1e-5)


def test_images_of_another_range(
    make_learner: Any, toy: CodecTrainConfig, images: jax.Array, draws: StepDraws
) -> None:
    """A model that expects [0, 1] gets it, and its losses are still those of [-1, 1]."""
    model = dataclasses.replace(toy.model, input_range=(0.0, 1.0))
    config = dataclasses.replace(toy, model=model)
    shifted = make_learner(model=model)
    params = shifted.vqgan.initial()[0]
    loss = GeneratorLoss(config, shifted.vqgan, None)
    result = jax.jit(lambda p: loss.gradients(p, {}, images, draws, Phase(False, False), None)[1])(params)
    bound = shifted.vqgan.bind(params, {})
    direct = bound.decoder(bound.encoder((images + 1) / 2)) * 2 - 1
    np.testing.assert_allclose(result.reconstruction, direct, rtol=1e-4, atol=1e-5)
    assert float(result.scalars["pixel"]) == pytest.approx(
        float(jnp.mean(jnp.abs(direct - images))), rel=1e-4
    )


@pytest.mark.parametrize("alex", [None, 100.0])
def test_lpips_over_alexnet_stands_beside_that_over_vgg(
    alex: float | None, learner: CodecLearner, toy: CodecTrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With networks whose distance is a known multiple of the mean difference."""
    name = "vqgan.training.codec.gradients.distance"
    monkeypatch.setattr(
        name, lambda factor, one, other, _: factor * jnp.mean(jnp.abs(one - other), (1, 2, 3))
    )
    weights = LossConfig(l1=1.0, perceptual=2.0, perceptual_alex=3.0 if alex else 0.0)
    config = dataclasses.replace(toy, data=DataConfig(crop_size=32), loss=weights)
    loss = GeneratorLoss(config, learner.vqgan, 10.0, alex)  # type: ignore[arg-type]
    value, scalars = loss.reconstruction(jnp.zeros((2, 4, 4, 3)), jnp.full((2, 4, 4, 3), 0.5))
    assert value == pytest.approx(0.5 * (1 + 2 * 10 + (3 * 100 if alex else 0)))
    assert {name: float(part) for name, part in scalars.items()} == pytest.approx(
        {"pixel": 0.5, "perceptual": 5.0, **({"perceptual_alex": 50.0} if alex else {})}
    )
