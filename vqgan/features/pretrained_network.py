"""What networks with published weights have in common: their weights, convolutions, pooled features.

Weights are read without running anything, and taken over completely or not at all.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vqgan.errors import UserError
from vqgan.importers.containers import READERS, sniff
from vqgan.importers.pickle_constructors import flatten_tensors
from vqgan.importers.tensors import Tensor, as_float32
from vqgan.importers.text_files import describe_unknown

_LISTED = 4  # names of each kind in an error

Shape = tuple[int, ...]


@dataclass(frozen=True)
class FeatureNetwork:
    """A network whose pooled features a Fréchet distance compares.

    Attributes:
      name: short name of network and weights, for file and scalar names.
      distance: what the Fréchet distance over these features is called. Only Inception with the weights
        of the original gives "FID"; values over other networks or weights are not comparable with it.
      dimension: number of features D.
      weights: arrays of the network, a pytree.
      forward: ``(weights, uint8 [N, H, W, 3])`` to float32 ``[N, D]``, compiled once per shape.
    """

    name: str
    distance: str
    dimension: int
    weights: Any
    forward: Callable[[Any, Any], jax.Array]

    def features(self, images: np.ndarray | jax.Array) -> jax.Array:
        """Computes features of images of any size, which the network's own rule resizes.

        Args:
          images: uint8 ``[N, H, W, 3]``. Another shape is another compilation: keep N fixed.

        Returns:
          float32 ``[N, D]``.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be uint8 [N, H, W, 3], not {images.dtype} {images.shape}")
        return self.forward(self.weights, images)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Lists all tensors of a torch state dict or a pickle of arrays, by dotted names, not yet read.

    A state dict within a training checkpoint (under ``state_dict``) is found.

    Raises:
      UserError: there is no such file, it is damaged, or it is of another kind.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of the weights")
    kind = sniff(path)
    if kind is None:
        raise UserError(f"{path}: not a file of weights, {describe_unknown(path)}; get it again")
    tree = READERS[kind](path)
    if isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict):
        tree = tree["state_dict"]
    return flatten_tensors(tree)


def take_weights(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, Shape], where: str, what: str, unused: str = ""
) -> dict[str, np.ndarray]:
    """Reads exactly the tensors that a network has, as float32.

    Args:
      tensors: what the file holds.
      shapes: what the network needs.
      where: the file, for errors.
      what: the network, for errors.
      unused: regular expression of whole names that may be there and are not needed.

    Raises:
      UserError: a name is missing, unknown or wrongly shaped, with all of them in one line.
    """
    missing = [name for name in shapes if name not in tensors]
    unknown = [name for name in tensors if name not in shapes and not re.fullmatch(unused, name)]
    misshapen = [
        f"{name} {tensors[name].shape} instead of {shape}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    kinds = {"missing": missing, "unknown": unknown, "wrongly shaped": misshapen}
    faults = "; ".join(f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names)
    if faults:
        raise UserError(f"{where}: these are not the weights of {what} ({faults}); give the right file")
    return {name: as_float32(tensors[name].read(), name, where) for name in shapes}


def _listed(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def norm_shapes(name: str, channels: int) -> dict[str, Shape]:
    """Returns names and shapes of the tensors of torch's BatchNorm of that name."""
    return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def fold_norm(
    tensors: Mapping[str, np.ndarray], conv: str, norm: str, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Folds the BatchNorm behind a bias-free convolution of torch into it.

    Returns:
      HWIO kernel and bias, float32; folded in float64, so that it costs no digits.
    """
    scale, bias, mean, variance = (
        tensors[f"{norm}.{part}"].astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = scale / np.sqrt(variance + epsilon)
    kernel = tensors[f"{conv}.weight"].transpose(2, 3, 1, 0) * factor
    return kernel.astype(np.float32), (bias - mean * factor).astype(np.float32)


def convolve(
    x: jax.Array,
    weights: tuple[jax.Array, jax.Array],
    stride: int = 1,
    padding: str | tuple[tuple[int, int], tuple[int, int]] = "VALID",
    groups: int = 1,
) -> jax.Array:
    """Convolves, with bias, in full float32, which accelerators do not use unless told to.

    Args:
      x: float32 ``[N, H, W, C]``.
      weights: HWIO kernel and bias.
      stride: in both directions.
      padding: "VALID", "SAME" in TensorFlow's sense, or before and behind in both directions.
      groups: number of groups of channels; C for a depthwise convolution.
    """
    kernel, bias = weights
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=jax.lax.Precision.HIGHEST,
    )
    return y + bias[None, None, None, :]
