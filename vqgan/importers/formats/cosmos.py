"""Cosmos-Tokenizer's discrete images: TorchScript archives of encoder and decoder, taming's names in them.

Tensors are read, the programs beside them are not. Pixels become Haar wavelets of patches first; only some
levels halve; tokens are those of finite scalar quantization, whose levels are a buffer of the file.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from vqgan.errors import UserError
from vqgan.importers.formats import taming
from vqgan.importers.layout import Fields, NativeConfig, check_known
from vqgan.importers.tensors import Tensor, shown

_LEVELS = "quantizer._levels"
_MOST_DIGITS = 64
_FIELDS = {
    "channels": "ch",
    "channels_mult": "ch_mult",
    "num_res_blocks": "num_res_blocks",
    "resolution": "resolution",
    "attn_resolutions": "attn_resolutions",
    "patch_size": "haar_patch",
    "levels": "fsq_levels",
    "embedding_dim": "embed_dim",
}
_KNOWN = re.compile(
    "|".join(_FIELDS)
    + "|dropout|(in|out)_channels|spatial_compression|patch_(size|method)|z_channels|z_factor|"
    "quantizer|embedding_dim|levels|num_quantizers|name|encoder|decoder|persistent_quantizer|dtype|"
    "num_codebooks|keep_num_codebooks_dim|scale|formulation|legacy_mode"
)
_ONLY = {"in_channels": 3, "out_channels": 3, "patch_method": "haar", "quantizer": "FSQ", "num_codebooks": 1}


def _native(native: NativeConfig) -> Fields:
    data = native.data
    if "patch_size" not in data and "spatial_compression" not in data:
        return {}
    for name, wanted in _ONLY.items():
        if data.get(name, wanted) != wanted:
            raise UserError(f"{native.path}: {name} is {shown(data[name])}; only {wanted!r} is supported")
    check_known(str(native.path), data, _KNOWN)
    return {ours: data[theirs] for theirs, ours in _FIELDS.items() if theirs in data} | _halvings(data)


def _halvings(data: Mapping[str, Any]) -> Fields:
    """Reads how many levels halve, where sizes of pixels and patches say it."""
    compression, patch = data.get("spatial_compression"), data.get("patch_size")
    multiples = data.get("channels_mult")
    if type(compression) is not int or type(patch) is not int or patch < 1:
        return {}
    halvings = (compression // patch).bit_length() - 1
    levels = len(multiples) if isinstance(multiples, (list, tuple)) else 0
    return {"halvings": None if halvings == levels - 1 else halvings}


def _infer(tensors: Mapping[str, Tensor], known: Fields, where: str) -> Fields:
    levels = _digits(tensors, where)
    channels = tensors["encoder.conv_in.weight"].shape[1:2] if "encoder.conv_in.weight" in tensors else ()
    patch = math.isqrt(channels[0] // 3) if channels else 1
    halvings = sum(
        re.fullmatch(r"encoder\.down\.\d+\.downsample\.conv\.weight", n) is not None for n in tensors
    )
    return {
        "fsq_levels": levels,
        "embed_dim": len(levels),
        "codebook_size": math.prod(levels),
        "haar_patch": max(1, patch),
        "halvings": None if halvings == taming.count_of_levels(tensors) - 1 else halvings,
    }


def _digits(tensors: Mapping[str, Tensor], where: str) -> list[int]:
    """Reads the levels of each dimension."""
    tensor = tensors.get(_LEVELS)
    if (
        tensor is None
        or len(tensor.shape) != 1
        or tensor.shape[0] > _MOST_DIGITS
        or tensor.dtype.kind not in "iu"
    ):
        raise UserError(
            f"{where}: the levels of its quantizer are missing; give encoder.jit of a discrete tokenizer"
        )
    return [int(level) for level in tensor.read()]


LAYOUT = dataclasses.replace(
    taming.LAYOUT,
    name="cosmos-di",
    marker="encoder.patcher.wavelets",
    native=_native,
    ignored=re.compile(
        r"(encoder\.patcher|decoder\.unpatcher)\..*|(inv_quant\.)?(quantizer\.)?(_levels|_basis|implicit_codebook)"
        r"|inv_quant\..*"
    ),
    fields={"quantizer": "fsq", "fsq_bound": "atanh"},
    classes=re.compile(r"(.+\.)?(DiscreteImageTokenizer|DI)|cosmos.*", re.IGNORECASE),
    assumed="rounding to levels, and wavelets of patches, as in Cosmos-Tokenizer",
    infer=_infer,
)
