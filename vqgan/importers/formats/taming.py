"""taming-transformers: Lightning ``.ckpt`` files of ``VQModel`` and ``GumbelVQ``, with a YAML beside.

Keys: ``encoder.down.I.block.J``, ``decoder.up.I`` where ``up.0`` is the highest resolution.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vqgan.errors import UserError, first_line
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
      UserError: the model is none that turns RGB images into tokens.
    """
    params = find_params(native.data)
    if params is None:
        return {}
    dd = params["ddconfig"]
    where = f"{native.path}: ddconfig"
    if dd.get("in_channels", 3) != 3 or dd.get("out_ch", 3) != 3:
        raise UserError(f"{where}: the model takes {dd.get('in_channels')} channels; only RGB is supported")
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


# Parameters with a row for each code, and their averaged twins in latent-diffusion's files.
_PER_CODE = {
    "quantize.embedding.weight",
    "quantize.embed.weight",
    "quantize.proj.weight",
    "quantize.proj.bias",
}
_PER_CODE |= {f"model_ema.{name.replace('.', '')}" for name in _PER_CODE}
_USED = "quantize.used"
_MAX_LIST_BYTES = 64 << 20


def keep_used_codes(
    tensors: Mapping[str, Tensor], native: NativeConfig | None, where: str
) -> tuple[Mapping[str, Tensor], Fields] | None:
    """Keeps the codes that a model's list of used ones names, in its order: tokens are places in the list.

    The reference (``remap`` of taming's ``VectorQuantizer2``) looks for the nearest of all codes and gives
    its place in the list; for a code that is not in it, a place drawn at random. With the codes of the list
    alone the former is the same, and in the latter case its nearest code takes the place of chance.

    Args:
      tensors: the model's parameters.
      native: its configuration, which says whether tokens are remapped; without one, a list in the file
        says so.
      where: the file, for errors.

    Returns:
      The parameters with the codes of the list, and what to say of it; None where nothing is remapped.

    Raises:
      UserError: the list is missing or does not fit the codes, or codes outside of it have a fixed place.
    """
    params = (find_params(native.data) if native is not None else None) or {}
    named = params.get("remap")
    if not named and (params or _USED not in tensors):
        return None
    unknown = params.get("unknown_index", "random")
    if unknown != "random":
        raise UserError(
            f"{where}: unknown_index is {unknown!r:.40} in its configuration; only 'random' is supported"
        )
    used = _used_codes(tensors, native, named, where)
    rows = {name: tensor for name, tensor in tensors.items() if name in _PER_CODE}
    codes = max((tensor.shape[0] for tensor in rows.values() if tensor.shape), default=0)
    if (
        used.ndim != 1
        or used.dtype.kind not in "iu"
        or not len(used)
        or used.min() < 0
        or used.max() >= codes
    ):
        raise UserError(f"{where}: its list of used codes is none of places among its {codes} codes")
    kept = {name: _rows(tensor, used) for name, tensor in rows.items() if tensor.shape[:1] == (codes,)}
    said = {
        "codes": len(used),
        "of": codes,
        "outside_of_the_list": "the nearest in it; the reference draws one",
    }
    return {**tensors, **kept}, {**said, **({"file": str(named)} if named else {})}


def _rows(tensor: Tensor, used: np.ndarray) -> Tensor:
    return Tensor((len(used), *tensor.shape[1:]), tensor.dtype, lambda: tensor.read()[used])


def _used_codes(
    tensors: Mapping[str, Tensor], native: NativeConfig | None, named: Any, where: str
) -> np.ndarray:
    """Reads the list from the checkpoint, or from the file that the configuration names."""
    if _USED in tensors:
        return tensors[_USED].read()
    folder = native.path.parent if native is not None else Path()
    for path in (
        folder / str(named),
        folder / Path(str(named)).name,
        Path(where).parent / Path(str(named)).name,
    ):
        if path.is_file():
            return _read_list(path)
    raise UserError(
        f"{where}: the list of used codes {named!s:.80} is missing; put it beside the configuration"
    )


def _read_list(path: Path) -> np.ndarray:
    try:
        if path.stat().st_size > _MAX_LIST_BYTES:
            raise ValueError("it is too large")
        return np.asarray(np.load(path, allow_pickle=False))
    except Exception as error:  # NumPy's parser of headers raises many types
        raise UserError(f"{path}: not a list of used codes ({first_line(error)}); copy it again") from error


IGNORED = re.compile(
    r"loss\..*|discriminator\..*|colorize|quantize\.used|quantize\.embedding\.(cluster_size|embed_avg)"
)

LAYOUT = KeyLayout(
    name="taming-transformers",
    marker="encoder.down.0.block.0.conv1.weight",
    from_torch=True,
    names=_names,
    native=read_yaml,
    ignored=IGNORED,
    remap=keep_used_codes,
)
