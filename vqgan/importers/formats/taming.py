"""taming-transformers: Lightning ``.ckpt`` files of ``VQModel`` and ``GumbelVQ``, with a YAML beside.

Keys: ``encoder.down.I.block.J``, ``decoder.up.I`` where ``up.0`` is the highest resolution.
"""

import re
from collections.abc import Mapping
from itertools import count
from typing import Any

from vqgan.errors import UserError
from vqgan.importers.layout import Fields, KeyLayout, NativeConfig, ParameterPlace, dotted, torch_leaf
from vqgan.importers.tensors import Tensor

_LAYERS = {
    "shortcut": ("nin_shortcut",),
    "query": ("q",),
    "key": ("k",),
    "value": ("v",),
    "out": ("proj_out", "to_out"),
    "qkv": ("to_qkv",),
}
# From ddconfig: theirs to ours.
_FIELDS = ("resolution", "ch", "ch_mult", "num_res_blocks", "attn_resolutions", "z_channels", "double_z")


def tree_name(place: ParameterPlace, levels: int) -> str:
    """Tells where a block, attention or resampling stands, such as ``encoder.down.0.block.1``."""
    if place.part == "middle_block":
        return f"{place.side}.mid.block_{place.index + 1}"
    if place.part == "middle_attention":
        return f"{place.side}.mid.attn_1"
    if not place.part:
        return place.side
    down = place.side == "encoder"
    level = f"{place.side}.down.{place.level}" if down else f"{place.side}.up.{levels - 1 - place.level}"
    if place.part == "resample":
        return f"{level}.downsample" if down else f"{level}.upsample"
    return f"{level}.block.{place.index}" if place.part == "block" else f"{level}.attn.{place.index}"


def layer_names(place: ParameterPlace) -> tuple[str, ...]:
    """Returns what a layer may be called."""
    return _LAYERS.get(place.layer, (place.layer,))


def count_of_levels(tensors: Mapping[str, Tensor]) -> int:
    """Counts the encoder's levels by their names."""
    return next(i for i in count() if f"encoder.down.{i}.block.0.conv1.weight" not in tensors)


def _names(place: ParameterPlace, levels: int, _blocks: int) -> tuple[str, ...]:
    if place.layer == "codebook":
        return "quantize.embedding.weight", "quantize.embed.weight"
    if place.layer == "projection":
        return (f"quantize.proj.{torch_leaf(place)}",)
    tree = tree_name(place, levels)
    return tuple(dotted(tree, layer, torch_leaf(place)) for layer in layer_names(place))


def read_yaml(native: NativeConfig) -> Fields:
    """Reads fields from a YAML with a ``ddconfig``, wherever in it that stands.

    Raises:
      UserError: the model is none that turns RGB images into tokens, or remaps them.
    """
    params = find_params(native.data)
    if params is None:
        return {}
    dd = params["ddconfig"]
    where = f"{native.path}: ddconfig"
    if dd.get("in_channels", 3) != 3 or dd.get("out_ch", 3) != 3:
        raise UserError(f"{where}: the model takes {dd.get('in_channels')} channels; only RGB is supported")
    if params.get("remap"):
        raise UserError(f"{native.path}: the model remaps its tokens (remap); that is not supported")
    for name in ("tanh_out", "give_pre_end"):
        if dd.get(name):
            raise UserError(f"{where}: {name} is set; that is not supported")
    fields: Fields = {name: dd[name] for name in _FIELDS if name in dd}
    fields |= {ours: params[name] for name, ours in _PARAMS.items() if name in params}
    if "resamp_with_conv" in dd:
        fields["resamp_with_conv"] = dd["resamp_with_conv"]
    kind = "linear" if dd.get("use_linear_attn") else dd.get("attn_type", "vanilla")
    if kind == "none":
        fields |= {"attn_resolutions": [], "mid_attention": False}
    elif kind == "linear":
        fields["attention"] = "linear"
    elif kind not in ("vanilla", "vanilla-xformers"):
        raise UserError(f"{where}: attn_type {kind!r} is not supported")
    return fields


_PARAMS = {"embed_dim": "embed_dim", "n_embed": "codebook_size"}


def find_params(data: Any, depth: int = 0) -> Mapping[str, Any] | None:
    """Finds the mapping that holds ``ddconfig``; a first stage inside another model is found as well."""
    if not isinstance(data, Mapping) or depth > 8:
        return None
    if isinstance(data.get("ddconfig"), Mapping):
        return data
    first = ("model", "params", "first_stage_config")
    for name in (*first, *(name for name in data if name not in first)):
        found = find_params(data.get(name), depth + 1)
        if found is not None:
            return found
    return None


IGNORED = re.compile(r"loss\..*|discriminator\..*|colorize|quantize\.embedding\.(cluster_size|embed_avg)")

LAYOUT = KeyLayout(
    name="taming-transformers",
    marker="encoder.down.0.block.0.conv1.weight",
    from_torch=True,
    names=_names,
    native=read_yaml,
    ignored=IGNORED,
)
