"""Weights of published networks: read without running anything, taken over completely or not at all."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vqgan.errors import UserError
from vqgan.importers.containers import READERS, describe_unknown, sniff
from vqgan.importers.pickle_constructors import flatten_tensors
from vqgan.importers.tensors import Tensor, as_float32

_LISTED = 4  # names of each kind in an error

Shape = tuple[int, ...]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a torch state dict or a pickle of arrays, by dotted names, not yet read.

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


def take(
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
    """The tensors of torch's BatchNorm of that name."""
    return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def fold_norm(
    tensors: Mapping[str, np.ndarray], conv: str, norm: str, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """A bias-free convolution of torch and the BatchNorm behind it as one convolution.

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
