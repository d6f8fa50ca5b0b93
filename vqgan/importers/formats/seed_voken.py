"""SEED-Voken: Lightning ``.ckpt`` files of Open-MAGVIT2 and of IBQ, with a YAML of the LightningCLI.

Both are run with the averaged weights, which stand under ``model_ema.`` as in latent-diffusion, where the
configuration has ``use_ema``.

Open-MAGVIT2's tokens are the signs of the latents, channel 0 the least significant bit. Residual blocks have
no biases; halving convolutions are padded on all sides, doubling ones give four pixels' channels; decoder
levels begin with a normalisation that reads the codes. IBQ has taming's network and takes the code with the
largest inner product.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

from vqgan.errors import UserError
from vqgan.importers.formats import latent_diffusion, taming
from vqgan.importers.layout import (
    Fields,
    KeyLayout,
    NativeConfig,
    ParameterPlace,
    check_image_channels,
    check_known,
    dotted,
    find_params,
    torch_leaf,
)

# Of the model around ddconfig: what is read here, or acts in training only. IBQ's cosine_similarity and
# l2_normalize are arguments that its quantizer does not use.
_PARAMS_KNOWN = re.compile(
    taming.PARAMS_KNOWN.pattern + "|token_factorization|factorized_bits|cosine_similarity|l2_normalize|stage|"
    "use_entropy_loss|entropy_temperature|.*_weight|.*_(epochs?|iter)|scheduler_type|min_learning_rate|"
    "gradient_clip_val|resume_lr|wp0?|wpe|sche_type"
)
_MAGVIT2_DD = ("resolution", "ch", "ch_mult", "num_res_blocks", "z_channels")


def _magvit2_names(place: ParameterPlace, levels: int, _blocks: int) -> tuple[str, ...]:
    layers = taming.layer_names(place)
    tree = taming.tree_name(place, levels)
    if place.part == "middle_block":
        tree = f"{place.side}.mid_block.{place.index}"
    elif place.part == "adaptive":
        tree = f"{place.side}.adaptive.{levels - 1 - place.level}"
    elif place.part == "resample":
        layers = ("",) if place.side == "encoder" else ("conv1",)
    return tuple(dotted(tree, layer, torch_leaf(place)) for layer in layers)


def _read_magvit2(native: NativeConfig) -> Fields:
    found = taming.model_params(native)
    if found is None:
        return {}
    target, params = found
    where, dd = f"{native.path}: ddconfig", params["ddconfig"]
    taming.check_whole(native, params)
    check_known(str(native.path), params, _PARAMS_KNOWN)
    check_known(where, dd, re.compile("|".join(_MAGVIT2_DD) + "|in_channels|out_ch|double_z"))
    check_image_channels(where, dd)
    _refuse(native, target, params, "remap", "token_factorization")
    fields = {name: dd[name] for name in _MAGVIT2_DD if name in dd}
    return fields | {ours: params[theirs] for theirs, ours in taming.PARAMS.items() if theirs in params}


def _read_ibq(native: NativeConfig) -> Fields:
    found = taming.model_params(native)
    if found is None:
        return {}
    target, params = found
    nearest = target.endswith(".VQModel")
    _refuse(native, target, params, "remap", *(("l2_normalize",) if nearest else ()))
    fields = taming.read_params(native, params, _PARAMS_KNOWN)
    return fields | {"quantizer": "nearest" if nearest else "inner_product"}


def _refuse(native: NativeConfig, target: str, params: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if params.get(name):
            raise UserError(f"{native.path}: {name} is set for {target}; that is not supported")


def _averages_first(names: Collection[str], native: NativeConfig | None) -> bool:
    """Tells whether the original code runs with the averages; unconfigured, where there are any."""
    found = find_params(native.data) if native is not None else None
    if found is None:
        return any(name.startswith("model_ema.") for name in names)
    target, params = found
    return bool(params.get("use_ema", "lfqgan_pretrain" in target))  # that class alone has it on by default


def _has_magvit2_names(names: Collection[str]) -> bool:
    return "encoder.mid_block.0.norm1.weight" in names or "quantize.mask" in names


OPEN_MAGVIT2 = KeyLayout(
    name="open-magvit2",
    marker=taming.LAYOUT.marker,
    from_torch=True,
    names=_magvit2_names,
    native=_read_magvit2,
    ignored=re.compile(
        latent_diffusion.IGNORED.pattern + r"|quantize\.(mask|(pre|post)_mask|zero|codebook)"  # derived
    ),
    fields={
        "quantizer": "lfq",
        "quant_conv": False,
        "bias": False,
        "encoder_out_kernel": 1,
        "symmetric_downsample": True,
        "depth_to_space": True,
        "adaptive_norm": True,
        "resamp_with_conv": True,
    },
    fits=_has_magvit2_names,
    classes=re.compile(r"(.+\.)?Open_MAGVIT2\.models\.lfqgan(_pretrain)?\.VQModel"),
    assumed="signs of the latents, channel 0 the least significant bit, as in Open-MAGVIT2",
    even_blocks=True,
    averages_first=_averages_first,
    averaged=latent_diffusion.averaged_twins,
)

IBQ = dataclasses.replace(
    latent_diffusion.LAYOUT,
    name="ibq",
    native=_read_ibq,
    fields={"quantizer": "inner_product"},
    unnamed=lambda _: False,  # nothing but its configuration tells it from the others
    classes=re.compile(r"(.+\.)?IBQ\.models\.ibqgan(_pretrain)?\.(IBQ|VQModel)"),
    assumed="",
    averages_first=_averages_first,
)
