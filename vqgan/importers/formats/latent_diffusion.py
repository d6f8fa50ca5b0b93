"""latent-diffusion: taming's key layout, with averaged twins of the weights and other attentions.

The twins stand under ``model_ema.`` with the dots taken out of their names. A VQ first stage inside a
diffusion checkpoint has the prefix ``first_stage_model.``. All that is special about such a file is here.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping

import numpy as np

from vqgan.errors import UserError
from vqgan.importers.formats import taming
from vqgan.importers.tensors import Tensor

_TWINS = "model_ema."


def _has_latent_diffusion_names(names: Collection[str]) -> bool:
    """Tells its files from taming's by what taming never writes."""
    has_middle = any(name.startswith("encoder.mid.attn_1.") for name in names)
    return any(name.startswith(_TWINS) or ".to_qkv." in name for name in names) or not has_middle


def averaged_twins(tensors: Mapping[str, Tensor], where: str) -> Mapping[str, Tensor] | None:
    """Puts each parameter's averaged twin in its place; returns None where the file has no twins.

    A parameter whose twin is missing fails when it is read, so that what no codec needs may lack one.
    """
    if not any(name.startswith(_TWINS) for name in tensors):
        return None
    return {name: _twin(name, tensors, where) for name in tensors}


def _twin(name: str, tensors: Mapping[str, Tensor], where: str) -> Tensor:
    shape, dtype = tensors[name].shape, tensors[name].dtype
    twin_name = f"{_TWINS}{name.replace('.', '')}"
    twin = tensors.get(twin_name)
    if twin is not None and twin.shape == shape:
        return twin

    def refuse() -> np.ndarray:
        raise UserError(f"{where}: the averaged twin {twin_name} of {name} is missing; use weights=raw")

    return Tensor(shape, dtype, refuse)


IGNORED = re.compile(rf"{taming.IGNORED.pattern}|model_ema\..*")

LAYOUT = dataclasses.replace(
    taming.LAYOUT,
    name="latent-diffusion",
    ignored=IGNORED,
    unnamed=_has_latent_diffusion_names,
    classes=re.compile(r"(.+\.)?ldm\.models\.autoencoder\.(VQModel|VQModelInterface)"),
    assumed="the nearest code, as in latent-diffusion's VQModel (IBQ names its parameters the same)",
    averaged=averaged_twins,
)
