"""Moving averages against NumPy, in steps, on four devices, and after codes were replaced."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan.quantizers import EMAQuantizer, NearestQuantizer, QuantizeOptions, Statistic
from vqgan.quantizers.nearest import SMOOTHING

ROOT = Path(__file__).parents[3]
DECAY = 0.9


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def make(codebook: np.ndarray) -> EMAQuantizer:
    quantizer = EMAQuantizer(*codebook.shape, rngs=nnx.Rngs(0))
    quantizer.codebook[...] = jnp.asarray(codebook)
    return quantizer


@nnx.jit
def step(quantizer: EMAQuantizer, latents: jax.Array) -> jax.Array:
    tokens = quantizer(latents).tokens
    quantizer.observe(latents, tokens, DECAY)
    return tokens


class Reference:
    """Appendix A.1 code by code, in float64."""

    def __init__(self, codebook: np.ndarray):
        self.codes = codebook.astype(np.float64)
        self.counts = np.ones(len(codebook))
        self.sums = self.codes.copy()

    def step(self, latents: np.ndarray) -> np.ndarray:
        flat = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
        tokens = ((flat[:, None] - self.codes[None]) ** 2).sum(axis=2).argmin(axis=1)
        for code in range(len(self.codes)):
            mine = flat[tokens == code]
            self.counts[code] = DECAY * self.counts[code] + (1 - DECAY) * len(mine)
            self.sums[code] = DECAY * self.sums[code] + (1 - DECAY) * mine.sum(axis=0)
        total = self.counts.sum()
        smooth = (self.counts + SMOOTHING) / (total + len(self.codes) * SMOOTHING) * total
        self.codes = self.sums / smooth[:, None]
        return tokens.reshape(latents.shape[:-1])


def test_follows_the_reference_over_several_steps() -> None:
    codebook = normal(6, 3)
    quantizer, reference = make(codebook), Reference(codebook)
    for seed in range(5):
        latents = normal(2, 4, 4, 3, seed=10 + seed)
        np.testing.assert_array_equal(step(quantizer, jnp.asarray(latents)), reference.step(latents))
        np.testing.assert_allclose(quantizer.codebook[...], reference.codes, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(quantizer.counts[...], reference.counts, rtol=1e-5)
    assert np.abs(reference.codes - codebook).max() > 0.1


def test_one_step_by_hand() -> None:
    """Three latents at 2 choose the code at 1: (0.9 * 1 + 0.1 * 6) / (0.9 + 0.1 * 3)."""
    quantizer = make(np.array([[1.0], [-5.0]], np.float32))
    step(quantizer, jnp.full((1, 1, 3, 1), 2.0))
    np.testing.assert_allclose(quantizer.counts[...], [1.2, 0.9], rtol=1e-6)
    np.testing.assert_allclose(quantizer.codebook[...], [[1.5 / 1.2], [-5.0]], rtol=1e-4)


def test_same_tokens_and_codes_as_the_nearest() -> None:
    quantizer, latents = make(normal(8, 4)), jnp.asarray(normal(2, 3, 5, 4, seed=1))
    nearest = NearestQuantizer(8, 4, rngs=nnx.Rngs(0))
    nearest.codebook[...] = quantizer.codebook[...]
    found, expected = quantizer(latents), nearest(latents)
    for name in ("tokens", "codes", "commitment_loss"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_array_equal(quantizer.tokens(latents), nearest.tokens(latents))
    assert found.codebook_loss == 0 < expected.codebook_loss


@pytest.mark.parametrize("rotation", [False, True])
def test_codebook_gets_no_gradient(rotation: bool) -> None:
    quantizer, latents = make(normal(8, 4)), jnp.asarray(normal(2, 3, 5, 4, seed=1))
    graph, params, rest = nnx.split(quantizer, nnx.Param, ...)
    options = QuantizeOptions(rotation=rotation, entropy_temperature=1.0)

    def loss(params: nnx.State, latents: jax.Array) -> jax.Array:
        result = nnx.merge(graph, params, rest)(latents, options)
        return jnp.sum(result.codes**2) + result.codebook_loss + result.commitment_loss + result.entropy_loss

    of_params, of_latents = jax.grad(loss, (0, 1))(params, latents)
    assert not np.any(of_params["codebook"][...])
    assert np.any(of_latents)


def test_statistics_are_no_parameters() -> None:
    state = nnx.state(make(normal(8, 4)), Statistic)
    assert {name: value.shape for name, value in state.items()} == {"counts": (8,), "sums": (8, 4)}
    assert list(nnx.state(make(normal(8, 4)), nnx.Param)) == ["codebook"]


def test_replaced_codes_stay_and_the_others_are_left_alone() -> None:
    quantizer = make(normal(6, 3))
    for seed in range(4):
        step(quantizer, jnp.asarray(normal(2, 4, 4, 3, seed=seed)))
    before = np.asarray(quantizer.codebook[...])
    mask = np.array([True, False, False, True, False, False])
    quantizer.replace_codes(jnp.asarray(mask), jnp.full((6, 3), 50.0))
    np.testing.assert_array_equal(quantizer.codebook[...][mask], 50.0)
    np.testing.assert_array_equal(quantizer.codebook[...][~mask], before[~mask])
    # The next batch chooses neither of the replaced ones, and their old place does not draw them back.
    latents = normal(2, 4, 4, 3, seed=9)
    tokens = step(quantizer, jnp.asarray(latents))
    assert not np.isin(tokens, [0, 3]).any()
    np.testing.assert_allclose(quantizer.codebook[...][mask], 50.0, rtol=1e-4)
    assert not np.array_equal(quantizer.codebook[...][~mask], before[~mask])


def test_a_replaced_code_follows_what_chooses_it() -> None:
    """It counts as one latent: (0.9 * 4 + 0.1 * 5) / (0.9 + 0.1)."""
    quantizer = make(np.array([[100.0], [-1.0]], np.float32))
    for _ in range(3):
        step(quantizer, jnp.full((1, 1, 8, 1), -1.0))
    quantizer.replace_codes(jnp.array([True, False]), jnp.array([[4.0], [4.0]]))
    step(quantizer, jnp.full((1, 1, 1, 1), 5.0))
    np.testing.assert_allclose(quantizer.codebook[...], [[4.1], [-1.0]], rtol=1e-4)


def test_training_goes_on_from_weights_alone() -> None:
    """A codec has no statistics: fresh ones do not draw its codes back to where this module began."""
    quantizer = EMAQuantizer(6, 3, rngs=nnx.Rngs(0))
    codebook = 10 + normal(6, 3)
    nnx.update(quantizer, nnx.State({"codebook": nnx.Param(jnp.asarray(codebook))}))
    step(quantizer, jnp.full((1, 1, 1, 3), 11.0))
    unchosen = np.abs(np.asarray(quantizer.codebook[...]) - codebook).max(axis=1) < 1e-2
    assert unchosen.sum() == 5


def test_bfloat16_latents_are_summed_in_float32() -> None:
    """A thousand ones: in bfloat16 the sum would stop at 256."""
    quantizer = make(np.array([[1.0], [-9.0]], np.float32))
    latents = jnp.ones((1, 1, 1000, 1), jnp.bfloat16)
    quantizer.observe(latents, jnp.zeros((1, 1, 1000), jnp.int32), DECAY)
    np.testing.assert_allclose(quantizer.sums[...][0], 0.9 + 100, rtol=1e-5)
    assert quantizer.codebook[...].dtype == jnp.float32


DEVICES_SCRIPT = """
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from vqgan.quantizers import EMAQuantizer, QuantizeOptions

assert len(jax.devices()) == 4
graph, start = nnx.split(EMAQuantizer(6, 3, rngs=nnx.Rngs(0)))
rng = np.random.default_rng(0)
batches = [np.asarray(rng.standard_normal((8, 2, 2, 3)) / 4, np.float32) for _ in range(3)]
batches[0][:2] += 5  # the shares of the devices differ

@jax.jit
def step(state, latents):
    quantizer = nnx.merge(graph, state)
    result = quantizer(latents, QuantizeOptions(entropy_temperature=0.1))
    quantizer.observe(latents, result.tokens, 0.9)
    return nnx.state(quantizer), (result.commitment_loss, result.entropy_loss)

def run(devices):
    mesh = Mesh(np.array(devices), ("batch",))
    state = jax.device_put(start, NamedSharding(mesh, PartitionSpec()))
    found = []
    for batch in batches:
        latents = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("batch")))
        assert len(latents.sharding.device_set) == len(devices)
        state, losses = step(state, latents)
        found.append([np.asarray(leaf) for leaf in jax.tree.leaves((state, losses))])
    return found

for one, four in zip(run(jax.devices()[:1]), run(jax.devices()), strict=True):
    assert len(one) == 5
    for left, right in zip(one, four, strict=True):
        np.testing.assert_allclose(right, left, rtol=1e-5, atol=1e-6)
print("alike")
"""


def test_four_devices_as_one() -> None:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", DEVICES_SCRIPT],
        env={**os.environ, "PYTHONPATH": str(ROOT), **flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "alike", done.stderr
