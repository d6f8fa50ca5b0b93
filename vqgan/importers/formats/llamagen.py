"""LlamaGen: ``.pt`` files with the weights under ``model`` (and ``ema`` where training averaged them).

Attention stands at the lowest level only; codes are normalised wherever they are used, unless a
configuration says otherwise; decoder levels come in order of execution. The file says nothing of the
architecture. Janus keeps the same tokenizer under ``gen_vision_model.`` in a language model.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from vqgan.errors import UserError
from vqgan.importers.formats.taming import layer_names
from vqgan.importers.layout import (
    Fields,
    KeyLayout,
    NativeConfig,
    ParameterPlace,
    check_known,
    dotted,
    torch_leaf,
)
from vqgan.importers.tensors import shown


def _names(place: ParameterPlace, levels: int, _blocks: int) -> tuple[str, ...]:
    if place.layer == "codebook":
        return ("quantize.embedding.weight",)
    return tuple(dotted(_tree(place), layer, torch_leaf(place)) for layer in layer_names(place))


def _tree(place: ParameterPlace) -> str:
    if place.part in ("middle_block", "middle_attention"):
        # The middle is one list: block, attention, block.
        index = 1 if place.part == "middle_attention" else 2 * place.index
        return f"{place.side}.mid.{index}"
    if not place.part:
        return place.side
    level = f"{place.side}.conv_blocks.{place.level}"
    if place.part == "resample":
        return f"{level}.downsample" if place.side == "encoder" else f"{level}.upsample"
    return f"{level}.res.{place.index}" if place.part == "block" else f"{level}.attn.{place.index}"


_FIELDS = {
    "codebook_size": "codebook_size",
    "codebook_embed_dim": "embed_dim",
    "encoder_ch_mult": "ch_mult",
    "z_channels": "z_channels",
}
# Arguments of the published class; the others show in the parameters or act in training only.
_KNOWN = re.compile(
    "_.*|" + "|".join(_FIELDS) + "|codebook_l2_norm|codebook_show_usage|commit_loss_beta|entropy_loss_ratio|"
    "decoder_ch_mult|dropout_p|num_res_blocks|vq_model|image_size|name|cls"
)


def _native(native: NativeConfig) -> Fields:
    data = native.data
    if "codebook_l2_norm" not in data and "codebook_embed_dim" not in data:
        return {}
    check_known(str(native.path), data, _KNOWN)
    unit = data.get("codebook_l2_norm", True)
    if type(unit) is not bool:
        raise UserError(f"{native.path}: codebook_l2_norm is {shown(unit)}; expected true or false")
    fields = {ours: data[theirs] for theirs, ours in _FIELDS.items() if theirs in data}
    return fields | {"quantizer": "cosine" if unit else "nearest"}


def _janus(native: NativeConfig) -> Fields:
    """Reads what the configuration of the whole model says: of the tokenizer, sizes alone."""
    part = _mapping(native.data, "gen_vision_config")
    if part.get("cls", "VQ-16") != "VQ-16":
        raise UserError(f"{native.path}: cls is {shown(part['cls'])}; only 'VQ-16' is supported")
    params, fields = _mapping(part, "params"), {"image_token_size": "codebook_size", "n_embed": "embed_dim"}
    found = {ours: params[theirs] for theirs, ours in fields.items() if theirs in params}
    # The model draws images of the size that it sees.
    size = _mapping(_mapping(native.data, "vision_config"), "params").get("image_size")
    return found | ({"resolution": size} if size is not None else {})


def _mapping(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = data.get(name)
    return value if isinstance(value, Mapping) else {}


LAYOUT = KeyLayout(
    name="llamagen",
    marker="encoder.conv_blocks.0.res.0.conv1.weight",
    from_torch=True,
    names=_names,
    native=_native,
    ignored=re.compile(r"quantize\.codebook_used"),
    fields={"quantizer": "cosine"},
    classes=re.compile("VQModel|VQ-(8|16)"),
    assumed="codes and latents of unit length, as in LlamaGen",
)

JANUS = dataclasses.replace(
    LAYOUT,
    name="janus-original",
    native=_janus,
    unnamed=lambda _: False,  # without a configuration it is LlamaGen's
    classes=re.compile("MultiModalityCausalLM|multi_modality"),
    assumed="",
)
