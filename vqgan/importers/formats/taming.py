"""taming-transformers: Lightning ``.ckpt`` files of ``VQModel`` and ``GumbelVQ``, with a YAML beside.

Keys: ``encoder.down.I.block.J``, ``decoder.up.I`` where ``up.0`` is the highest resolution.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from vqgan.errors import UserError, first_line
from vqgan.importers.interpolation import find_unresolved
from vqgan.importers.layout import (
    Fields,
    KeyLayout,
    NativeConfig,
    ParameterPlace,
    check_image_channels,
    check_known,
    declared_classes,
    dotted,
    find_params,
    torch_leaf,
)
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


# Of ddconfig, and of the model around it: what is read here or acts in training only.
_DD_KNOWN = re.compile(
    "|".join(_FIELDS) + "|resamp_with_conv|in_channels|out_ch|dropout|attn_type|use_linear_attn|give_pre_end|"
    "tanh_out|use_timestep|use_checkpoint"
)
PARAMS_KNOWN = re.compile(
    "ddconfig|lossconfig|n_embed|embed_dim|ckpt_path|ignore_keys|image_key|colorize_nlabels|monitor|remap|unknown_index|"
    "sane_index_shape|use_ema|batch_resize_range|(temperature_)?scheduler_config|kl_weight|beta|batch_size|"
    "(base_)?learning_rate|lr(_.*)?|weight_decay"
)


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
      UserError: the model is none that turns RGB images into tokens, or has unknown settings.
    """
    found = model_params(native)
    if found is None:
        return {}
    target, params = found
    fields = read_params(native, params, PARAMS_KNOWN)
    if target:
        fields["quantizer"] = "gumbel" if target.endswith("GumbelVQ") else "nearest"
    return fields


def model_params(native: NativeConfig) -> tuple[str, Mapping[str, Any]] | None:
    """Finds the model's class and the mapping that holds ``ddconfig``; None where it is of something else.

    Raises:
      UserError: it names the model's class and has no ``ddconfig``.
    """
    found = find_params(native.data)
    unresolved = find_unresolved(native.data) is not None  # which is told where it hides what is needed
    if found is None and declared_classes(native) and not unresolved:
        raise _lacking(native, ["ddconfig"])
    return found


def read_params(native: NativeConfig, params: Mapping[str, Any], known: re.Pattern[str]) -> Fields:
    """Reads fields from ``ddconfig`` and the settings around it.

    Args:
      native: the configuration, for errors.
      params: what holds ``ddconfig``.
      known: names of those settings around it that do not change the tokens, or that the caller reads.

    Raises:
      UserError: the model is none from RGB to RGB, or has settings that are unknown or not supported.
    """
    where, dd = f"{native.path}: ddconfig", params["ddconfig"]
    check_whole(native, params)
    check_known(str(native.path), params, known)
    check_known(where, dd, _DD_KNOWN)
    check_image_channels(where, dd)
    for name in ("tanh_out", "give_pre_end"):
        if dd.get(name):
            raise UserError(f"{where}: {name} is set; that is not supported")
    fields: Fields = {name: dd[name] for name in (*_FIELDS, "resamp_with_conv") if name in dd}
    fields |= {ours: params[name] for name, ours in PARAMS.items() if name in params}
    kind = "linear" if dd.get("use_linear_attn") else dd.get("attn_type", "vanilla")
    if kind == "none":
        fields |= {"attn_resolutions": [], "mid_attention": False}
    elif kind == "linear":
        fields["attention"] = "linear"
    elif kind not in ("vanilla", "vanilla-xformers"):
        raise UserError(f"{where}: attn_type {kind!r} is not supported")
    return fields


PARAMS = {"embed_dim": "embed_dim", "n_embed": "codebook_size"}
_REQUIRED = ("ch", "ch_mult", "num_res_blocks", "resolution", "z_channels")


def check_whole(native: NativeConfig, params: Mapping[str, Any]) -> None:
    """Checks that settings are there that the original code cannot do without.

    A YAML file that is cut short may still be one.

    Raises:
      UserError: one is missing.
    """
    missing = [name for name in _REQUIRED if name not in params["ddconfig"]]
    missing += [name for name in PARAMS if name not in params]
    if missing:
        raise _lacking(native, missing)


def _lacking(native: NativeConfig, missing: Sequence[str]) -> UserError:
    return UserError(
        f"{native.path}: it lacks {', '.join(missing)}, without which no such model is made; get the whole "
        "file, or name another one with config=PATH"
    )


def has_taming_names(names: Collection[str]) -> bool:
    """Tells whether the middle and the decoder's levels are named as in taming: up.0 is the last to run."""
    others = ("encoder.mid.0.norm1.weight", "encoder.mid_block.0.norm1.weight", "quantize.mask")
    return not any(name in names for name in (*others, "decoder.up.0.upsample.conv.weight"))


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
    _, params = (find_params(native.data) if native is not None else None) or ("", {})
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
    fits=has_taming_names,
    classes=re.compile(r"(.+\.)?taming\.models\.vqgan\.(VQModel|GumbelVQ|EMAVQ|VQNoDiscModel)"),
    assumed="the nearest code, as in taming's VQModel (IBQ names its parameters the same)",
)
