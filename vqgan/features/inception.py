"""InceptionV3 (arXiv 1512.00567) as the Fréchet Inception Distance reads it, with weights from a file.

Two files are understood, by their number of classes:

* pytorch-fid's translation of the TensorFlow graph of the original FID (arXiv 1706.08500), with 1,008
  classes. That graph differs from the paper: average pools count no padding, and the last block's pool is
  a max pool. Only distances over this file are FID.
* torchvision's ``inception_v3_google``, with 1,000 classes and an auxiliary classifier, which is not
  needed. Its distances go by a name of their own.

Images are resized to 299x299 without regard to their aspect ratio, by bilinear interpolation with
half-pixel centres and **no** antialiasing (each output mixes at most four pixels, however large the
image; beyond the border the border's pixels repeat), not rounded, and mapped from [0, 255] to [-1, 1].
That is what pytorch-fid computes; a better filter would be another distance.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from vqgan.errors import UserError
from vqgan.features.pretrained_network import (
    FeatureNetwork,
    Shape,
    convolve,
    fold_norm,
    norm_shapes,
    read_tensors,
    take_weights,
)

SIZE = 299
FEATURES = 2048
BATCH_NORM_EPSILON = 1e-3
FID_FILE = "pt_inception-2015-12-05-6726825d.pth"
FID_CLASSES = 1008
_UNUSED = r"AuxLogits\..*|.*\.num_batches_tracked"
_MAX_POOLED_BLOCK = "Mixed_7c"

Weights = dict[str, tuple[jax.Array, jax.Array]]
"""Kernel and bias by the name of the layer, every BatchNorm folded into the convolution before it."""

Size = tuple[int, int]


@dataclass(frozen=True)
class _Variant:
    """A published file and what belongs to it.

    Attributes:
      name: short name.
      distance: what the Fréchet distance over it is called.
      classes: rows of its classifier, by which it is recognised.
      original: whether its pools are those of the original FID's graph.
    """

    name: str
    distance: str
    classes: int
    original: bool


VARIANTS = (
    _Variant("inception-fid", "FID", FID_CLASSES, original=True),
    _Variant("inception-torchvision", "Fréchet distance (torchvision InceptionV3)", 1000, original=False),
)


# The layers (figures 5 to 7 and 10 of the paper) under torchvision's names.


@dataclass(frozen=True)
class _Conv:
    """A convolution without bias, BatchNorm and ReLU.

    Attributes:
      name: of the layer.
      channels: of its output.
      size: height and width of its kernel.
      stride: in both directions.
      padded: whether zeros at the border keep the size (at stride 1).
    """

    name: str
    channels: int
    size: Size = (1, 1)
    stride: int = 1
    padded: bool = True


@dataclass(frozen=True)
class _MaxPool:
    """A 3x3 max pool of stride 2 without padding."""


@dataclass(frozen=True)
class _Branch:
    """One way through a block.

    Attributes:
      convs: one after the other.
      fork: after them, side by side, each of them an output.
      pool: before them: none (""), "smooth" (3x3, size kept) or "halve" (3x3 max pool of stride 2).
    """

    convs: tuple[_Conv, ...]
    fork: tuple[_Conv, ...] = ()
    pool: str = ""


STEM: tuple[_Conv | _MaxPool, ...] = (
    _Conv("Conv2d_1a_3x3", 32, (3, 3), stride=2, padded=False),
    _Conv("Conv2d_2a_3x3", 32, (3, 3), padded=False),
    _Conv("Conv2d_2b_3x3", 64, (3, 3)),
    _MaxPool(),
    _Conv("Conv2d_3b_1x1", 80),
    _Conv("Conv2d_4a_3x3", 192, (3, 3), padded=False),
    _MaxPool(),
)


def _halving(name: str, channels: int) -> _Conv:
    return _Conv(name, channels, (3, 3), stride=2, padded=False)


def _a(pool_channels: int) -> tuple[_Branch, ...]:
    """Builds figure 5: the 5x5 convolution beside two of 3x3."""
    return (
        _Branch((_Conv("branch1x1", 64),)),
        _Branch((_Conv("branch5x5_1", 48), _Conv("branch5x5_2", 64, (5, 5)))),
        _Branch(
            (
                _Conv("branch3x3dbl_1", 64),
                _Conv("branch3x3dbl_2", 96, (3, 3)),
                _Conv("branch3x3dbl_3", 96, (3, 3)),
            )
        ),
        _Branch((_Conv("branch_pool", pool_channels),), pool="smooth"),
    )


def _b() -> tuple[_Branch, ...]:
    """Builds figure 10: halves height and width."""
    narrow = (_Conv("branch3x3dbl_1", 64), _Conv("branch3x3dbl_2", 96, (3, 3)))
    return (
        _Branch((_halving("branch3x3", 384),)),
        _Branch((*narrow, _halving("branch3x3dbl_3", 96))),
        _Branch((), pool="halve"),
    )


def _c(inner: int) -> tuple[_Branch, ...]:
    """Builds figure 6: 7x7 convolutions as rows and columns, ``inner`` channels within."""
    return (
        _Branch((_Conv("branch1x1", 192),)),
        _Branch(
            (
                _Conv("branch7x7_1", inner),
                _Conv("branch7x7_2", inner, (1, 7)),
                _Conv("branch7x7_3", 192, (7, 1)),
            )
        ),
        _Branch(
            (
                _Conv("branch7x7dbl_1", inner),
                _Conv("branch7x7dbl_2", inner, (7, 1)),
                _Conv("branch7x7dbl_3", inner, (1, 7)),
                _Conv("branch7x7dbl_4", inner, (7, 1)),
                _Conv("branch7x7dbl_5", 192, (1, 7)),
            )
        ),
        _Branch((_Conv("branch_pool", 192),), pool="smooth"),
    )


def _d() -> tuple[_Branch, ...]:
    """Halves height and width once more."""
    narrow = (
        _Conv("branch7x7x3_1", 192),
        _Conv("branch7x7x3_2", 192, (1, 7)),
        _Conv("branch7x7x3_3", 192, (7, 1)),
    )
    return (
        _Branch((_Conv("branch3x3_1", 192), _halving("branch3x3_2", 320))),
        _Branch((*narrow, _halving("branch7x7x3_4", 192))),
        _Branch((), pool="halve"),
    )


def _e() -> tuple[_Branch, ...]:
    """Builds figure 7: rows and columns side by side, for the coarsest grid."""
    return (
        _Branch((_Conv("branch1x1", 320),)),
        _Branch(
            (_Conv("branch3x3_1", 384),),
            fork=(_Conv("branch3x3_2a", 384, (1, 3)), _Conv("branch3x3_2b", 384, (3, 1))),
        ),
        _Branch(
            (_Conv("branch3x3dbl_1", 448), _Conv("branch3x3dbl_2", 384, (3, 3))),
            fork=(_Conv("branch3x3dbl_3a", 384, (1, 3)), _Conv("branch3x3dbl_3b", 384, (3, 1))),
        ),
        _Branch((_Conv("branch_pool", 192),), pool="smooth"),
    )


BLOCKS: dict[str, tuple[_Branch, ...]] = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": _b(),
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": _d(),
    "Mixed_7b": _e(),
    "Mixed_7c": _e(),
}


def load_inception(path: Path) -> FeatureNetwork:
    """Loads the network with the weights of a file of either kind.

    Raises:
      UserError: the file is missing, damaged or of another network.
    """
    variant, weights = load_inception_weights(path)
    forward = features_original if variant.original else features_standard
    return FeatureNetwork(variant.name, variant.distance, FEATURES, weights, forward)


def load_inception_weights(path: Path) -> tuple[_Variant, Weights]:
    """Reads the torch state dict, completely or not at all, and tells which file it is.

    Raises:
      UserError: the file is not InceptionV3's.
    """
    tensors = read_tensors(path)
    classes = tensors["fc.weight"].shape[0] if "fc.weight" in tensors and tensors["fc.weight"].shape else 0
    variant = next((variant for variant in VARIANTS if variant.classes == classes), None)
    if variant is None:
        raise UserError(
            f"{path}: a classifier of {classes} classes where InceptionV3 has 1008 (pytorch-fid) or "
            f"1000 (torchvision); give {FID_FILE}"
        )
    convs = dict(_convs())
    shapes: dict[str, Shape] = {"fc.weight": (classes, FEATURES), "fc.bias": (classes,)}
    for name, shape in convs.items():
        shapes |= {f"{name}.conv.weight": shape} | norm_shapes(f"{name}.bn", shape[0])
    found = take_weights(tensors, shapes, str(path), f"InceptionV3 ({variant.name})", _UNUSED)
    folded = {name: fold_norm(found, f"{name}.conv", f"{name}.bn", BATCH_NORM_EPSILON) for name in convs}
    return variant, {
        name: (jnp.asarray(kernel), jnp.asarray(bias)) for name, (kernel, bias) in folded.items()
    }


def _convs() -> Iterator[tuple[str, Shape]]:
    """Yields name and OIHW shape of each convolution."""
    channels = 3
    for layer in STEM:
        if isinstance(layer, _Conv):
            yield layer.name, (layer.channels, channels, *layer.size)
            channels = layer.channels
    for block, branches in BLOCKS.items():
        inputs, channels = channels, 0
        for branch in branches:
            width = inputs
            for conv in branch.convs:
                yield f"{block}.{conv.name}", (conv.channels, width, *conv.size)
                width = conv.channels
            for conv in branch.fork:
                yield f"{block}.{conv.name}", (conv.channels, width, *conv.size)
            channels += sum(conv.channels for conv in branch.fork) or width


@functools.partial(jax.jit, static_argnames="original")
def _features(weights: Weights, images: jax.Array, original: bool) -> jax.Array:
    return inception_features(weights, preprocess_for_inception(images), original)


def features_original(weights: Weights, images: jax.Array) -> jax.Array:
    """Computes float32 ``[N, 2048]`` of uint8 ``[N, H, W, 3]``, with the pools of FID's own graph."""
    return _features(weights, images, original=True)


def features_standard(weights: Weights, images: jax.Array) -> jax.Array:
    """Computes float32 ``[N, 2048]`` of uint8 ``[N, H, W, 3]``, with the pools of the paper."""
    return _features(weights, images, original=False)


def preprocess_for_inception(images: jax.Array) -> jax.Array:
    """Turns uint8 ``[N, H, W, 3]`` into what the network reads, float32 ``[N, 299, 299, 3]`` in [-1, 1]."""
    x = jnp.asarray(images, jnp.float32)
    x = jax.image.resize(x, (x.shape[0], SIZE, SIZE, 3), method="linear", antialias=False)
    return x / 127.5 - 1


def inception_features(weights: Weights, x: jax.Array, original: bool) -> jax.Array:
    """Computes features ``[N, 2048]`` of preprocessed images ``[N, h, w, 3]``, of 75 pixels at least."""
    for layer in STEM:
        x = max_pool(x, stride=2) if isinstance(layer, _MaxPool) else _unit(weights, layer.name, layer, x)
    for block, branches in BLOCKS.items():
        x = _run(weights, block, branches, x, original)
    return x.mean(axis=(1, 2))


def _run(
    weights: Weights, block: str, branches: tuple[_Branch, ...], x: jax.Array, original: bool
) -> jax.Array:
    """Returns all branches of a block, side by side in the channels."""
    found = []
    for branch in branches:
        h = x
        if branch.pool == "halve":
            h = max_pool(h, stride=2)
        elif branch.pool == "smooth":
            is_max = original and block == _MAX_POOLED_BLOCK
            h = max_pool(h, stride=1) if is_max else average_pool(h, count_padding=not original)
        for conv in branch.convs:
            h = _unit(weights, f"{block}.{conv.name}", conv, h)
        found += [_unit(weights, f"{block}.{conv.name}", conv, h) for conv in branch.fork] or [h]
    return jnp.concatenate(found, axis=3)


def _unit(weights: Weights, name: str, conv: _Conv, x: jax.Array) -> jax.Array:
    height, width = (size // 2 if conv.padded else 0 for size in conv.size)
    return jax.nn.relu(convolve(x, weights[name], conv.stride, ((height, height), (width, width))))


def max_pool(x: jax.Array, stride: int) -> jax.Array:
    """Takes the maximum of 3x3 windows of ``[N, H, W, C]``; keeps the size at stride 1, pads not at 2."""
    padding = "SAME" if stride == 1 else "VALID"
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def average_pool(x: jax.Array, count_padding: bool) -> jax.Array:
    """Averages 3x3 windows of ``[N, H, W, C]``, size kept.

    Args:
      x: ``[N, H, W, C]``.
      count_padding: whether zeros beyond the border count, as in torch, or not, as in TensorFlow.
    """
    total = _window_sum(x)
    if count_padding:
        return total / 9
    return total / _window_sum(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


def _window_sum(x: jax.Array) -> jax.Array:
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
