"""Finds transformer and settings in a checkpoint of a Net2NetTransformer of *Taming Transformers*."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vqgan.errors import UserError
from vqgan.importers.containers import subtrees
from vqgan.importers.pickle_constructors import flatten_tensors
from vqgan.importers.tensors import Tensor, as_float32
from vqgan.prior.config import Shape

TOKENS = "tok_emb.weight"

_DEFAULT_HEADS = 8  # of its GPT, where the configuration does not give them
_UNCONDITIONAL = "__is_unconditional__"
_MAX_DEPTH = 8


@dataclass(frozen=True)
class Gpt:
    """The transformer in a file.

    Attributes:
      file: for messages.
      tensors: of the transformer, by their names inside it.
      others: all other tensors of the model.
    """

    file: Path
    tensors: Mapping[str, Tensor]
    others: Mapping[str, Tensor]

    def shape(self, name: str, dimensions: int) -> Shape:
        """Returns the shape of a tensor that must be there.

        Raises:
          UserError: it is not, or has another number of dimensions.
        """
        tensor = self.tensors.get(name)
        if tensor is None or len(tensor.shape) != dimensions:
            found = "is missing" if tensor is None else f"is {list(tensor.shape)}"
            raise UserError(f"{self.file}: {name} {found}; this is no transformer of Taming Transformers")
        return tensor.shape

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor as float32; its numbers must be finite."""
        return as_float32(self.tensors[name].read(), name, str(self.file))


def find_gpt(file: Path, tree: Any) -> Gpt:
    """Finds the transformer among the tensors of a checkpoint.

    Raises:
      UserError: there is none, or several.
    """
    for _, subtree in subtrees(tree, ("state_dict", "model")):
        tensors = flatten_tensors(subtree)
        prefixes = [name.removesuffix(TOKENS) for name in tensors if name.endswith(TOKENS)]
        if len(prefixes) > 1:
            raise UserError(f"{file}: it holds several transformers ({', '.join(prefixes)}); save one alone")
        if prefixes and (not prefixes[0] or prefixes[0].endswith(".")):
            prefix = prefixes[0]
            inside = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            outside = {name: t for name, t in tensors.items() if not prefix or not name.startswith(prefix)}
            return Gpt(file, inside, outside)
    raise UserError(
        f"{file}: no transformer of Taming Transformers in it (no {TOKENS}); give the checkpoint of a "
        "Net2NetTransformer"
    )


@dataclass(frozen=True)
class Net2NetSettings:
    """What the configuration of a Net2NetTransformer says, and the weights do not.

    Attributes:
      heads: attention heads.
      start_token: id that an unconditional model begins with.
      conditioned: whether it was trained with a condition; None if it does not say.
      condition: what makes the condition's tokens, for messages.
      classes: number of classes, where the condition is a label; None if it does not say.
    """

    heads: int
    start_token: int = 0
    conditioned: bool | None = None
    condition: str = ""
    classes: int | None = None


def find_settings(data: Any) -> Net2NetSettings | None:
    """Finds settings in a configuration file or a checkpoint's hyperparameters; None where there are none."""
    params = _find(data, 0)
    if params is None:
        return None
    stage = params.get("cond_stage_config")
    heads = _mapping(params["transformer_config"], "params").get("n_head", _DEFAULT_HEADS)
    start = params.get("sos_token", 0)
    classes = _mapping(stage, "params").get("n_classes")
    return Net2NetSettings(
        heads=heads if type(heads) is int else _DEFAULT_HEADS,
        start_token=start if type(start) is int else 0,
        conditioned=_is_conditioned(params, stage),
        condition=str(_mapping({"stage": stage}, "stage").get("target", stage)),
        classes=classes if type(classes) is int else None,
    )


def _is_conditioned(params: Mapping[str, Any], stage: Any) -> bool | None:
    if params.get("unconditional") is True or stage == _UNCONDITIONAL:
        return False
    return None if stage is None else True


def _find(data: Any, depth: int) -> Mapping[str, Any] | None:
    """Finds the mapping with ``transformer_config``, wherever it stands."""
    if not isinstance(data, Mapping) or depth > _MAX_DEPTH:
        return None
    if isinstance(data.get("transformer_config"), Mapping):
        return data
    found = (_find(value, depth + 1) for name, value in data.items() if name != "state_dict")
    return next((params for params in found if params is not None), None)


def _mapping(data: Any, name: str) -> Mapping[str, Any]:
    value = data.get(name) if isinstance(data, Mapping) else None
    return value if isinstance(value, Mapping) else {}
