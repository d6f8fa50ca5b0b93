"""MaskGIT's tokenizer, pixels in [0, 1]: Flax msgpack under automatic names, and its ports to torch.

Residual blocks have no biases, and in Flax are numbered through the whole encoder and decoder. The encoder
halves by averaging and ends in a 1x1 convolution; no further convolution stands around the quantizer. The
ports (open-muse's ``MaskGitVQGAN``, 1d-tokenizer's ``PretrainedTokenizer``) name their levels as taming does.
"""

import re
from collections.abc import Mapping

from vqgan.errors import UserError
from vqgan.importers.formats import taming
from vqgan.importers.layout import (
    Fields,
    KeyLayout,
    NativeConfig,
    ParameterPlace,
    check_image_channels,
    check_known,
    dotted,
    torch_leaf,
)
from vqgan.importers.tensors import Tensor, shown

_LAYERS = {
    "conv1": "Conv_0",
    "conv2": "Conv_1",
    "shortcut": "Conv_2",
    "norm1": "GroupNorm_0",
    "norm2": "GroupNorm_1",
    "norm_out": "GroupNorm_0",
}
_FIELDS = {
    "filters": "ch",
    "channel_multipliers": "ch_mult",
    "num_res_blocks": "num_res_blocks",
    "codebook_size": "codebook_size",
}


def _names(place: ParameterPlace, levels: int, blocks: int) -> tuple[str, ...]:
    if place.layer == "codebook":
        return ("quantizer.codebook",)
    return (dotted(place.side, _tree(place, levels, blocks), place.leaf),)


def _tree(place: ParameterPlace, levels: int, blocks: int) -> str:
    encoder = place.side == "encoder"
    if place.part in ("block", "middle_block"):
        # In order of execution: the encoder's middle comes last, the decoder's first.
        if place.part == "block":
            number = (place.level if encoder else place.level + 1) * blocks + place.index
        else:
            number = (levels * blocks if encoder else 0) + place.index
        return f"ResBlock_{number}.{_LAYERS[place.layer]}"
    if place.part == "resample":
        return f"Conv_{place.level + 1}"
    if place.layer == "conv_out":
        return f"Conv_{1 if encoder else levels}"
    return "Conv_0" if place.layer == "conv_in" else _LAYERS.get(place.layer, place.layer)


def _geometry(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Counts: a decoder has a convolution outside of blocks more than levels; blocks include the middle's."""
    levels = _count(tensors, r"decoder\.Conv_\d+\.kernel") - 1
    blocks = _count(tensors, r"encoder\.ResBlock_\d+\.Conv_0\.kernel")
    if _count(tensors, r"encoder\.Conv_\d+\.kernel") != 2:
        raise UserError("it halves by convolutions (conv_downsample); only averaging is supported")
    if levels < 1 or blocks % (levels + 1):
        raise UserError(f"{blocks} residual blocks do not divide into {levels} levels and a middle")
    return levels, blocks // (levels + 1)


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in tensors)


def _native(native: NativeConfig) -> Fields:
    vqvae = native.data.get("vqvae")
    data = vqvae if isinstance(vqvae, Mapping) else native.data
    if data.get("conv_downsample"):
        raise UserError(f"{native.path}: conv_downsample is set; only averaging is supported")
    if data.get("norm_type", "GN") != "GN" or data.get("activation_fn", "swish") != "swish":
        raise UserError(f"{native.path}: only norm_type GN and activation_fn swish are supported")
    if data.get("quantizer", "vq") != "vq":
        raise UserError(f"{native.path}: quantizer is {shown(data['quantizer'])}; only 'vq' is supported")
    fields = {ours: data[theirs] for theirs, ours in _FIELDS.items() if theirs in data}
    if "embedding_dim" in data:
        fields |= {"embed_dim": data["embedding_dim"], "z_channels": data["embedding_dim"]}
    return fields


_ARCHITECTURE: Fields = {
    "input_range": (0.0, 1.0),
    "quant_conv": False,
    "bias": False,
    "shortcut_from_branch": True,
    "pool_downsample": True,
    "encoder_out_kernel": 1,
    "resamp_with_conv": True,
}

LAYOUT = KeyLayout(
    name="maskgit",
    marker="encoder.ResBlock_0.Conv_0.kernel",
    from_torch=False,
    names=_names,
    native=_native,
    fields=_ARCHITECTURE,
    geometry=_geometry,
    even_blocks=True,
)


_TORCH_FIELDS = {
    "resolution": "resolution",
    "hidden_channels": "ch",
    "channel_mult": "ch_mult",
    "num_res_blocks": "num_res_blocks",
    "z_channels": "z_channels",
    "quantized_embed_dim": "embed_dim",
    "num_embeddings": "codebook_size",
}
# The other arguments of the published class, which it does not use or which act in training only.
_TORCH_KNOWN = re.compile(
    "|".join(_TORCH_FIELDS) + "|num_channels|attn_resolutions|dropout|resample_with_conv|commitment_cost|_.*"
)


def _torch_names(place: ParameterPlace, levels: int, _blocks: int) -> tuple[str, ...]:
    tree, layers = taming.tree_name(place, levels), taming.layer_names(place)
    if place.layer == "codebook":
        return ("quantize.embedding.weight",)
    if place.part == "middle_block":
        tree = f"{place.side}.mid.{place.index}"
    elif place.part == "resample":
        return (f"{tree.removesuffix('.upsample')}.upsample_conv.{torch_leaf(place)}",)
    return tuple(dotted(tree, layer, torch_leaf(place)) for layer in layers)


def _torch_native(native: NativeConfig) -> Fields:
    data = native.data
    if "hidden_channels" not in data:
        return {}
    check_known(str(native.path), data, _TORCH_KNOWN)
    check_image_channels(str(native.path), data, ("num_channels", "num_channels"))
    return {ours: data[theirs] for theirs, ours in _TORCH_FIELDS.items() if theirs in data}


TORCH_LAYOUT = KeyLayout(
    name="maskgit-torch",
    marker=taming.LAYOUT.marker,
    from_torch=True,
    names=_torch_names,
    native=_torch_native,
    fields=_ARCHITECTURE,
    fits=lambda names: "encoder.mid.0.norm1.weight" in names,
    classes=re.compile("MaskGitVQGAN|PretrainedTokenizer"),
    assumed="the nearest code and pixels in [0, 1], as in MaskGIT's tokenizer",
    even_blocks=True,
)
