"""VAR: ``vae_ch160v4096z32.pth``, a plain state dict, taming's names and a residual multi-scale quantizer.

Attention has one convolution for query, key and value. The sides of the scales are not in the file, only
their number; they are those of the published 256-pixel models unless the user or a configuration gives them.
"""

import dataclasses
import re
from collections.abc import Mapping

from vqgan.errors import UserError
from vqgan.importers.formats import taming
from vqgan.importers.layout import Fields, NativeConfig, ParameterPlace, check_known, torch_leaf
from vqgan.importers.tensors import Tensor, shown

PUBLISHED_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
_HITS = "quantize.ema_vocab_hit_SV"
_SMOOTHING = re.compile(r"quantize\.quant_resi\.qresi_ls\.\d+\.weight")
_SIDES = ("v_patch_nums", "patch_nums")
# Arguments of the published classes; those that are not read here show in the parameters.
_KNOWN = re.compile(
    "_.*|v?_?patch_nums|vocab_size|z_channels|ch|dropout|beta|using_znorm|quant_conv_ks|quant_resi|"
    "share_quant_resi|default_qresi_counts|test_mode|V|Cvae|device"
)
_FIELDS = {
    "vocab_size": "codebook_size",
    "V": "codebook_size",
    "z_channels": "embed_dim",
    "Cvae": "embed_dim",
}
_ONLY = {"using_znorm": False, "quant_resi": 0.5}


def _names(place: ParameterPlace, levels: int, blocks: int) -> tuple[str, ...]:
    layer, _, index = place.layer.partition(".")
    if layer == "smoothing":
        return (f"quantize.quant_resi.qresi_ls.{index}.{torch_leaf(place)}",)
    return taming.LAYOUT.names(place, levels, blocks)


def _native(native: NativeConfig) -> Fields:
    data = native.data
    if not any(name in data for name in (*_SIDES, *_ONLY)):
        return {}
    check_known(str(native.path), data, _KNOWN)
    for name, wanted in _ONLY.items():
        if data.get(name, wanted) != wanted:
            raise UserError(f"{native.path}: {name} is {shown(data[name])}; only {wanted} is supported")
    fields = {ours: data[theirs] for theirs, ours in _FIELDS.items() if theirs in data}
    sides = next((data[name] for name in _SIDES if name in data), None)
    return fields if sides is None else fields | {"scales": {"sides": sides}}


def _split_attention(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Cuts each convolution of queries, keys and values into three."""
    parts: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tree, _, leaf = name.rpartition(".")
        if tree.endswith(".qkv") and tensor.shape and tensor.shape[0] % 3 == 0:
            for index, layer in enumerate("qkv"):
                parts[f"{tree.removesuffix('qkv')}{layer}.{leaf}"] = _third(tensor, index)
        else:
            parts[name] = tensor
    return parts


def _third(tensor: Tensor, index: int) -> Tensor:
    size = tensor.shape[0] // 3
    shape = (size, *tensor.shape[1:])
    return Tensor(shape, tensor.dtype, lambda: tensor.read()[index * size : (index + 1) * size])


def _infer(tensors: Mapping[str, Tensor], known: Fields, where: str) -> Fields:
    given = known.get("scales")
    sides = PUBLISHED_SIDES if given is None else given.sides
    count = tensors[_HITS].shape[0] if _HITS in tensors and tensors[_HITS].shape else len(sides)
    if len(sides) != count:
        asked = f"{len(sides)} are given" if given else "its sides are not in the file"
        raise UserError(
            f"{where}: a VAR tokenizer of {count} scales, and {asked}: give them all, from coarse to fine, "
            f"such as scales={','.join(map(str, PUBLISHED_SIDES))} (v_patch_nums of the original)"
        )
    convolutions = sum(_SMOOTHING.fullmatch(name) is not None for name in tensors)
    levels = taming.count_of_levels(tensors)
    resolution = sides[-1] << max(0, levels - 1)
    return {
        "scales": {"sides": list(sides), "convolutions": convolutions},
        "resolution": resolution,
        # Its encoder has attention at the lowest level, if anywhere.
        "attn_resolutions": [sides[-1]] if f"encoder.down.{levels - 1}.attn.0.q.weight" in tensors else [],
    }


LAYOUT = dataclasses.replace(
    taming.LAYOUT,
    name="var",
    marker="quantize.quant_resi.qresi_ls.0.weight",
    names=_names,
    native=_native,
    ignored=re.compile(rf"{re.escape(_HITS)}|quantize\.beta"),
    fields={"quantizer": "scales", "clip_output": True},
    classes=re.compile(r"(.+\.)?(VQVAE|VectorQuantizer2)|var|vqvae", re.IGNORECASE),
    assumed="nearest codes, half smoothed, and where none are given the scales of VAR at 256 pixels",
    prepare=_split_attention,
    infer=_infer,
)
