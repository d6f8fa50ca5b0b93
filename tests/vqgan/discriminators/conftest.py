"""Discriminators with drawn weights, and their layers in plain numpy and float64 to compare with."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan.discriminators import DiscriminatorConfig, make_discriminator


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that keep the size of activations; no bias is zero."""
    if name in ("mean", "var"):
        return np.full(shape, name == "var", np.float32)
    spread = np.sqrt(2 / np.prod(shape[:-1])) if name == "kernel" else 0.25
    return np.asarray(spread * rng.standard_normal(shape) + (name == "scale"), np.float32)


@pytest.fixture(scope="session")
def build() -> Callable[..., Any]:
    """A discriminator of random weights. Drawing them by numpy compiles nothing."""

    def built(config: DiscriminatorConfig, dtype: Any = jnp.float32) -> Any:
        model = nnx.eval_shape(lambda: make_discriminator(config, dtype=dtype, rngs=nnx.Rngs(0)))
        graph, state = nnx.split(model)
        rng = np.random.default_rng(5)
        drawn = {
            path: leaf.replace(jnp.asarray(_draw(rng, str(path[-1]), leaf.shape)))
            for path, leaf in nnx.to_flat_state(state)
        }
        return nnx.merge(graph, nnx.from_flat_state(drawn))

    return built


@pytest.fixture(scope="session")
def forward() -> Callable[[Any, jax.Array], jax.Array]:
    """A compiled forward pass that moves the module's statistics."""
    return nnx.jit(lambda model, images: model(images))


class Reference:
    """The layers, place by place."""

    @staticmethod
    def conv(x: np.ndarray, layer: Any, *, stride: int = 1, padding: int = 0) -> np.ndarray:
        """Convolution of ``[B, h, w, C]`` by a layer's kernel and bias."""
        kernel = np.asarray(layer.kernel[...], np.float64)
        result = _windows(
            x, kernel.shape[0], stride, padding, lambda part: np.tensordot(part, kernel, axes=3)
        )
        return result if layer.bias is None else result + np.asarray(layer.bias[...], np.float64)

    @staticmethod
    def leaky_relu(x: np.ndarray) -> np.ndarray:
        return np.where(x > 0, x, 0.2 * x)

    @staticmethod
    def blur(x: np.ndarray, *, padding: int, stride: int) -> np.ndarray:
        """[1, 3, 3, 1] along both sides."""
        kernel = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
        return _windows(x, 4, stride, padding, lambda part: np.einsum("bijc,ij->bc", part, kernel))


def _windows(
    x: np.ndarray, side: int, stride: int, padding: int, apply: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = (range(0, size - side + 1, stride) for size in x.shape[1:3])
    return np.stack(
        [np.stack([apply(x[:, i : i + side, j : j + side]) for j in columns], axis=1) for i in rows], axis=1
    )


@pytest.fixture(scope="session")
def reference() -> type[Reference]:
    return Reference


@pytest.fixture(scope="module", autouse=True)
def _little_optimized(few_optimizations: None) -> None:
    """Gradients of gradients take longer to compile than to compute."""
