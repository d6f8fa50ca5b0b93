"""diffusers ``VQModel``: ``config.json`` beside safetensors (or a torch ``.bin``), MoVQ among them.

Projections of the attentions are linear layers; ``up_blocks`` come in order of execution. With ``norm_type:
spatial`` (MoVQ of Kandinsky 2) the codes modulate all norms of the decoder, those of its attentions too.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from vqgan.errors import UserError
from vqgan.importers.layout import (
    Fields,
    KeyLayout,
    NativeConfig,
    ParameterPlace,
    check_image_channels,
    check_known,
    dotted,
    torch_leaf,
    width_fields,
)

# The second name is that of releases before 0.17.
_LAYERS = {
    "query": ("to_q", "query"),
    "key": ("to_k", "key"),
    "value": ("to_v", "value"),
    "out": ("to_out.0", "proj_attn"),
    "shortcut": ("conv_shortcut",),
    "norm": ("group_norm",),
    "norm_out": ("conv_norm_out",),
}
# Arguments of the published class; those that are not read here change no token, or show in the parameters.
_KNOWN = re.compile(
    "_.*|act_fn|(in|out|block_out|latent)_channels|(down|up)_block_types|layers_per_block|mid_block_add_attention|"
    "norm_type|norm_num_groups|num_vq_embeddings|vq_embed_dim|sample_size|scaling_factor|lookup_from_codebook|"
    "force_upcast"
)
_MAX_LEVELS = 32
_MAX_WIDTH = 1 << 20
_DEFAULT_SIZE = 32


def _names(place: ParameterPlace, _levels: int, _blocks: int) -> tuple[str, ...]:
    if place.layer == "codebook":
        return ("quantize.embedding.weight",)
    layers = _LAYERS.get(place.layer, (place.layer,))
    return tuple(dotted(_tree(place), layer, torch_leaf(place)) for layer in layers)


def _tree(place: ParameterPlace) -> str:
    if place.part == "middle_block":
        return f"{place.side}.mid_block.resnets.{place.index}"
    if place.part == "middle_attention":
        return f"{place.side}.mid_block.attentions.0"
    if not place.part:
        return place.side
    down = place.side == "encoder"
    level = f"{place.side}.{'down' if down else 'up'}_blocks.{place.level}"
    if place.part == "resample":
        return f"{level}.{'downsamplers' if down else 'upsamplers'}.0"
    return f"{level}.{'resnets' if place.part == 'block' else 'attentions'}.{place.index}"


def _native(native: NativeConfig, norm_type: str = "group") -> Fields:
    data = native.data
    if "block_out_channels" not in data:
        return {}
    _require(native, "_class_name", "VQModel", "VQModel")
    _require(native, "norm_type", "group", norm_type)
    check_known(str(native.path), data, _KNOWN)
    check_image_channels(str(native.path), data, ("in_channels", "out_channels"))
    if data.get("act_fn", "silu") not in ("silu", "swish"):
        raise UserError(f"{native.path}: act_fn is {data['act_fn']!r}; only 'silu' is supported")
    fields: Fields = {
        ours: data[theirs]
        for theirs, ours in (
            ("layers_per_block", "num_res_blocks"),
            ("latent_channels", "z_channels"),
            ("num_vq_embeddings", "codebook_size"),
            ("norm_num_groups", "norm_groups"),
            ("mid_block_add_attention", "mid_attention"),
            ("sample_size", "resolution"),
        )
        if data.get(theirs) is not None
    }
    codes = data.get("vq_embed_dim")
    fields["embed_dim"] = data.get("latent_channels", 3) if codes is None else codes
    widths = _widths(native)
    _check_resolution(fields, len(widths))
    return fields | width_fields(widths[0], widths)


def _widths(native: NativeConfig) -> Sequence[int]:
    """Returns the channels of each level."""
    widths = native.data["block_out_channels"]
    listed = isinstance(widths, (list, tuple)) and 0 < len(widths) <= _MAX_LEVELS
    if not listed or not all(type(width) is int and 0 < width <= _MAX_WIDTH for width in widths):
        raise UserError(f"{native.path}: block_out_channels is {widths!s:.40}; expected a list of widths")
    return widths


def _check_resolution(fields: Fields, levels: int) -> None:
    # sample_size is a hint that nothing in that library depends on; some files have nonsense there. Its
    # default is written into every file, so it does not say what the model was trained at.
    size: Any = fields.get("resolution")
    if type(size) is not int or size == _DEFAULT_SIZE or size < 1 or size % (1 << (levels - 1)):
        fields.pop("resolution", None)


def _require(native: NativeConfig, name: str, default: str, wanted: str) -> None:
    found = native.data.get(name, default)
    if found != wanted:
        raise UserError(f"{native.path}: {name} is {found!r}; only {wanted!r} is supported")


LAYOUT = KeyLayout(
    name="diffusers",
    marker="encoder.down_blocks.0.resnets.0.conv1.weight",
    from_torch=True,
    names=_names,
    native=_native,
    classes=re.compile("VQModel"),
)


_MODULATION = {"gain": "conv_y", "shift": "conv_b"}
_SPATIAL_NORMS = {"norm_out": "conv_norm_out", "norm": "spatial_norm"}


def _movq_names(place: ParameterPlace, levels: int, blocks: int) -> tuple[str, ...]:
    layer, _, part = place.layer.partition(".")
    if place.side != "decoder" or layer not in ("norm", "norm1", "norm2", "norm_out"):
        return _names(place, levels, blocks)
    inner = _MODULATION.get(part, "norm_layer")
    return (dotted(_tree(place), _SPATIAL_NORMS.get(layer, layer), inner, torch_leaf(place)),)


MOVQ = dataclasses.replace(
    LAYOUT,
    name="movq",
    marker="decoder.conv_norm_out.conv_y.weight",
    names=_movq_names,
    native=lambda native: _native(native, norm_type="spatial"),
    fields={"spatial_norm": True},
)
