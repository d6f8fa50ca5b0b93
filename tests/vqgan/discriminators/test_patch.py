"""PatchGAN: layers, initialisation, and how its BatchNorm behaves."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan import losses
from vqgan.discriminators import DiscriminatorConfig, make_discriminator

Refused = Callable[[str], AbstractContextManager[None]]

TINY = DiscriminatorConfig(channels=4, layers=2)


def draw_images(count: int, side: int, seed: int = 0) -> jax.Array:
    values = np.random.default_rng(seed).uniform(-1, 1, (count, side, side, 3))
    return jnp.asarray(values, jnp.float32)


def parameters(config: DiscriminatorConfig) -> int:
    model = nnx.eval_shape(lambda: make_discriminator(config, rngs=nnx.Rngs(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.fixture(scope="module")
def tiny(build: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """Graph, parameters and statistics."""
    return nnx.split(build(TINY), nnx.Param, nnx.BatchStat)


def test_parameters_of_the_reference() -> None:
    """4x4 kernels; biases in the first and last layer; scale and bias of three BatchNorms."""
    kernels = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1)
    assert parameters(DiscriminatorConfig()) == kernels + 64 + 1 + 2 * (128 + 256 + 512) == 2_765_633


def test_parameters_with_spectral_norm() -> None:
    """Each layer has a bias, none has BatchNorm."""
    kernels = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1)
    assert parameters(DiscriminatorConfig(spectral_norm=True)) == kernels + 64 + 128 + 256 + 512 + 1


def test_widths_grow_eightfold_at_most() -> None:
    config = DiscriminatorConfig(channels=2, layers=5)
    model = nnx.eval_shape(lambda: make_discriminator(config, rngs=nnx.Rngs(0)))
    shapes = [block.conv.kernel.shape for block in model.blocks]
    assert shapes == [(4, 4, *io) for io in [(3, 2), (2, 4), (4, 8), (8, 16), (16, 16), (16, 16)]]


@pytest.mark.parametrize(("side", "patches"), [(256, 30), (64, 6), (43, 3), (24, 1)])
def test_patches(side: int, patches: int) -> None:
    config = DiscriminatorConfig(channels=2)

    def forward(images: jax.Array) -> jax.Array:
        return make_discriminator(config, rngs=nnx.Rngs(0))(images)

    logits = jax.eval_shape(forward, jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32))
    assert (logits.shape, logits.dtype) == ((2, patches, patches, 1), jnp.float32)


def test_too_small_images_are_refused(refused: Refused) -> None:
    model = nnx.eval_shape(lambda: make_discriminator(DiscriminatorConfig(), rngs=nnx.Rngs(0)))
    with refused("images of 40x23 pixels are too small .*layers=3 needs 24 pixels a side"):
        model(jnp.zeros((1, 23, 40, 3)))


def test_initialisation() -> None:
    config = DiscriminatorConfig(channels=32, layers=2)
    model = nnx.jit(lambda: make_discriminator(config, rngs=nnx.Rngs(0)))()
    kernel = np.asarray(model.blocks[2].conv.kernel[...])  # 131,072 draws: 0.2 % off at one sigma
    np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.01)
    np.testing.assert_allclose(kernel.mean(), 0, atol=3e-4)
    scales = np.concatenate([block.norm.scale[...] for block in model.blocks if block.norm])  # 192
    np.testing.assert_allclose(scales.mean(), 1, atol=0.005)
    np.testing.assert_allclose(scales.std(), 0.02, rtol=0.2)
    biases = [leaf for path, leaf in nnx.to_flat_state(nnx.state(model)) if path[-1] == "bias"]
    assert len(biases) == 4
    assert not any(np.any(bias[...]) for bias in biases)


def expected_logits(reference: Any, model: Any, images: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The forward pass of training by numpy, with the statistics of each BatchNorm's input."""
    x, moments = np.asarray(images, np.float64), []
    for block, stride in zip(model.blocks, (2, 2, 1), strict=True):
        x = reference.conv(x, block.conv, stride=stride, padding=1)
        if block.norm is not None:
            mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
            moments += [mean, variance]
            scale, bias = (
                np.asarray(param[...], np.float64) for param in (block.norm.scale, block.norm.bias)
            )
            x = (x - mean) / np.sqrt(variance + 1e-5) * scale + bias
        x = reference.leaky_relu(x)
    return reference.conv(x, model.out, padding=1), moments


def test_equals_numpy(tiny: tuple[Any, Any, Any], forward: Callable[..., jax.Array], reference: Any) -> None:
    """Also the running statistics: a tenth of the batch's joins them."""
    model = nnx.merge(*tiny, copy=True)
    images = draw_images(3, 18)
    logits, moments = expected_logits(reference, model, np.asarray(images))
    assert np.abs(logits).max() > 0.1
    np.testing.assert_allclose(forward(model, images), logits, atol=2e-5)
    norms = [block.norm for block in model.blocks if block.norm is not None]
    for norm, mean, variance in zip(norms, moments[::2], moments[1::2], strict=True):
        np.testing.assert_allclose(norm.mean[...], 0.1 * mean, atol=1e-6)
        np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * variance, atol=1e-6)


def test_evaluation_judges_images_one_by_one(
    tiny: tuple[Any, Any, Any], forward: Callable[..., jax.Array]
) -> None:
    model = nnx.merge(*tiny, copy=True)
    images = draw_images(2, 12)
    together, alone = forward(model, images)[:1], forward(model, images[:1])
    assert float(jnp.abs(together - alone).max()) > 0.001
    model.eval()
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    together, alone = forward(model, images)[:1], forward(model, images[:1])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(model)))


def test_the_generators_step_changes_nothing(tiny: tuple[Any, Any, Any]) -> None:
    """A forward pass on copies, in training mode: images get a gradient, the state stays."""
    graph, *state = tiny
    before = [np.array(leaf) for leaf in jax.tree.leaves(state)]

    @jax.jit
    def gradient(state: Any, images: jax.Array) -> jax.Array:
        def loss(images: jax.Array) -> jax.Array:
            return losses.hinge_generator(nnx.merge(graph, *state, copy=True)(images))

        return jax.grad(loss)(images)

    assert float(jnp.abs(gradient(state, draw_images(2, 12))).max()) > 0
    for old, new in zip(before, jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("training", [True, False])
def test_r1_goes_through_it(tiny: tuple[Any, Any, Any], training: bool) -> None:
    """The penalty by central differences of the images."""
    graph, *state = tiny
    images = np.asarray(draw_images(2, 12), np.float64)

    @jax.jit
    def value(images: jax.Array) -> jax.Array:
        model = nnx.merge(graph, *state, copy=True)
        model.train() if training else model.eval()
        return jnp.mean(model(images), axis=(1, 2, 3))

    penalty = losses.r1_penalty(value, jnp.asarray(images, jnp.float32))
    gradient = jax.grad(lambda x: value(x).sum())(jnp.asarray(images, jnp.float32))
    direction = np.asarray(gradient) / np.linalg.norm(gradient)
    step = 0.02 * direction
    ahead, behind = (value(jnp.asarray(images + sign * step, jnp.float32)).sum() for sign in (1, -1))
    slope = float(ahead - behind) / 0.04  # along the gradient: its norm
    np.testing.assert_allclose(penalty, 0.5 * slope**2 / 2, rtol=0.05)


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32(
    tiny: tuple[Any, Any, Any], build: Callable[..., Any], forward: Callable[..., jax.Array]
) -> None:
    exact = nnx.merge(*tiny, copy=True)
    model = build(TINY, jnp.bfloat16)
    images = draw_images(2, 12)
    logits = forward(model, images)
    assert all(leaf.dtype == jnp.float32 for leaf in [logits, *jax.tree.leaves(nnx.state(model))])
    expected = forward(exact, images)
    assert not np.array_equal(logits, expected)
    np.testing.assert_allclose(logits, expected, atol=0.05)


PARALLEL = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from vqgan.discriminators import DiscriminatorConfig, make_discriminator
from vqgan.discriminators.stylegan import with_deviation

assert jax.device_count() == 4
sharding = NamedSharding(Mesh(jax.devices(), ("data",)), P("data"))
rng = np.random.default_rng(0)
images = rng.uniform(-1, 1, (8, 6, 6, 3)).astype(np.float32)
images *= np.arange(1, 9, dtype=np.float32)[:, None, None, None] / 8  # each device sees other statistics
config = DiscriminatorConfig(channels=4, layers=1)
model = nnx.eval_shape(lambda: make_discriminator(config, rngs=nnx.Rngs(0)))
graph, params, rest = nnx.split(model, nnx.Param, ...)
params, rest = jax.tree.map(lambda x: jnp.asarray(rng.normal(0.3, 1, x.shape), jnp.float32), (params, rest))

def step(images, params, rest):
    def loss(params):
        model = nnx.merge(graph, params, rest, copy=True)
        logits = model(images)
        return jnp.mean(jax.nn.softplus(-logits)), (logits, nnx.state(model, nnx.BatchStat))
    return jax.value_and_grad(loss, has_aux=True)(params)

for function, state in ((step, (params, rest)), (with_deviation, ())):
    compiled = jax.jit(function)
    one, four = (compiled(jax.device_put(images, place), *state) for place in (jax.devices()[0], sharding))
    assert any(len(leaf.sharding.device_set) == 4 for leaf in jax.tree.leaves(four))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
print("same")
"""


def test_statistics_are_those_of_the_whole_batch_on_four_devices() -> None:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    command = [sys.executable, "-c", PARALLEL]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "same\n"
