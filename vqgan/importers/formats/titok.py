"""TiTok of 1d-tokenizer: ``config.json`` and safetensors of two transformers, one-dimensional tokens.

Pixels come straight from the decoder's patches, or, after its second stage of training, from MaskGIT's
decoder that reads a mixture of a second codebook (``pixel_decoder``, ``pixel_quantize``). Whether codes are
normalised and how latents are read stands in the configuration alone.
"""

import math
import re
from collections.abc import Mapping
from itertools import count
from typing import Any

from vqgan.errors import UserError
from vqgan.importers.formats import maskgit
from vqgan.importers.layout import Fields, KeyLayout, NativeConfig, check_known, parse_parameter
from vqgan.importers.tensors import Tensor, shown
from vqgan.token_layouts import ViTConfig

_PLACES = {
    "encoder.project": "encoder.conv_out",
    "vit.embed": "decoder.decoder_embed",
    "vit.mask_token": "decoder.mask_token",
    "pixels.to_pixels": "decoder.ffn.0",
    "pixels.conv_out": "decoder.conv_out",
    "mixture.hidden": "decoder.ffn.0",
    "mixture.to_logits": "decoder.ffn.2",
    "mixture.codebook": "pixel_quantize.embedding.weight",
    "codebook": "quantize.embedding.weight",
    "encoder.latent_tokens": "latent_tokens",
}
_TRANSFORMER = {
    "class_token": "class_embedding",
    "positions": "positional_embedding",
    "token_positions": "latent_token_positional_embedding",
    "norm_in": "ln_pre",
    "norm_out": "ln_post",
    "norm1": "ln_1",
    "norm2": "ln_2",
    "out": "attn.out_proj",
    "expand": "mlp.c_fc",
    "contract": "mlp.c_proj",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def _rename(name: str, levels: int, blocks: int) -> tuple[str, ...]:
    tree, _, leaf = name.rpartition(".")
    if leaf not in _LEAVES:
        tree, leaf = name, ""
    match = re.fullmatch(r"(encoder|vit)\.transformer\.(?:blocks\.(\d+)\.)?(\w+)", tree)
    if match is not None:
        side = "encoder" if match[1] == "encoder" else "decoder"
        block = f"transformer.{match[2]}." if match[2] else ""
        if match[3] == "qkv":
            return (f"{side}.{block}attn.in_proj_{_LEAVES[leaf]}",)
        place = f"{side}.{block}{_TRANSFORMER[match[3]]}"
    elif tree.startswith("decoder."):
        names = maskgit.TORCH_LAYOUT.names(parse_parameter(name), levels, blocks)
        return tuple(f"pixel_{found}" for found in names)
    else:
        place = _PLACES.get(tree, tree)
    return (f"{place}.{_LEAVES[leaf]}" if leaf else place,)


_KNOWN = re.compile(
    "codebook_size|token_size|use_l2_norm|commitment_cost|vit_(enc|dec)_(model|patch)_size|num_latent_tokens|"
    "finetune_decoder|is_legacy|quantize_mode|clustering_vq|kl_weight"
)


def _native(native: NativeConfig) -> Fields:
    model = native.data.get("model")
    settings = model.get("vq_model") if isinstance(model, Mapping) else None
    if not isinstance(settings, Mapping):
        return {}
    where = f"{native.path}: vq_model"
    if settings.get("quantize_mode", "vq") != "vq":
        raise UserError(f"{where}: quantize_mode is {shown(settings['quantize_mode'])}: only vq has tokens")
    check_known(where, settings, _KNOWN)
    missing = [name for name in _REQUIRED if name not in settings]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; give the whole configuration of the model")
    return {
        "quantizer": "cosine" if _switch(where, settings, "use_l2_norm") else "nearest",
        "codebook_size": settings["codebook_size"],
        "embed_dim": settings["token_size"],
        "vit": {
            "tokens": settings["num_latent_tokens"],
            "patch": settings["vit_enc_patch_size"],
            "decoder_patch": settings["vit_dec_patch_size"],
            "mixed_latents": _switch(where, settings, "is_legacy"),
            "pixel_codes": int(_switch(where, settings, "finetune_decoder")),  # their number is in the file
        },
    }


# What the original code cannot do without.
_REQUIRED = (
    "codebook_size", "token_size", "use_l2_norm", "num_latent_tokens", "vit_enc_patch_size",
    "vit_dec_patch_size",
)  # fmt: skip


def _switch(where: str, settings: Mapping[str, Any], name: str) -> bool:
    """Reads a setting that is on where nothing is said."""
    value = settings.get(name, True)
    if type(value) is not bool:
        raise UserError(f"{where}: {name} is {shown(value)}; expected true or false")
    return value


def _infer(tensors: Mapping[str, Tensor], known: Fields, where: str) -> Fields:
    if "vit" not in known:
        raise UserError(
            f"{where}: a TiTok without its configuration, and only that says whether codes are normalised; "
            "give it with config=PATH (the config.json or YAML with model.vq_model)"
        )
    shapes = _Shapes(tensors, where)
    patch = shapes.of("encoder.patch_embed.weight", 4)[3]
    places, width = shapes.of("encoder.positional_embedding", 2)
    decoder_places, decoder_width = shapes.of("decoder.positional_embedding", 2)
    codes, dimensions = shapes.of("quantize.embedding.weight", 2)
    resolution = math.isqrt(max(places - 1, 0)) * patch
    pixel_codes = shapes.of(_PIXEL_CODES, 2)[0] if _PIXEL_CODES in tensors else 0
    vit = {
        "tokens": shapes.of("latent_tokens", 2)[0],
        "patch": patch,
        "encoder_width": width,
        "encoder_layers": shapes.count("encoder.transformer.{}.ln_1.weight"),
        "decoder_patch": resolution // max(1, math.isqrt(max(decoder_places - 1, 0))),
        "decoder_width": decoder_width,
        "decoder_layers": shapes.count("decoder.transformer.{}.ln_1.weight"),
        "mixed_latents": known["vit"].mixed_latents,
        "pixel_codes": pixel_codes,
    }
    _check_sizes(known["vit"], vit, where)
    return {
        "resolution": resolution,
        "embed_dim": dimensions,
        "codebook_size": codes,
        **(_pixel_decoder(shapes) if pixel_codes else {**_NO_CONVOLUTIONS, "z_channels": dimensions}),
        "vit": vit,
    }


def _check_sizes(given: ViTConfig, told: Fields, where: str) -> None:
    """Refuses a configuration whose sizes are not those of the tensors: it is another model's."""
    sizes = {name: (getattr(given, name), told[name]) for name in ("tokens", "patch", "decoder_patch")}
    sizes["pixel decoder"] = (bool(given.pixel_codes), bool(told["pixel_codes"]))
    for name, (theirs, ours) in sizes.items():
        if theirs != ours:
            raise UserError(
                f"{where}: its configuration says that {name} is {theirs}, its tensors that it is {ours}; "
                "check that the configuration belongs to this file"
            )


_PIXEL_CODES = "pixel_quantize.embedding.weight"
_NO_CONVOLUTIONS: Fields = {"ch": 32, "ch_mult": (1,), "num_res_blocks": 1}


def _pixel_decoder(shapes: "_Shapes") -> Fields:
    """Reads the sizes of MaskGIT's decoder."""
    levels = shapes.count("pixel_decoder.up.{}.block.0.conv1.weight")
    blocks = shapes.count("pixel_decoder.up.0.block.{}.conv1.weight")
    widths = [shapes.of(f"pixel_decoder.up.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)]
    base = math.gcd(*widths) or 1
    architecture = {n: v for n, v in maskgit.TORCH_LAYOUT.fields.items() if n != "input_range"}
    return {
        **architecture,
        "ch": base,
        "ch_mult": tuple(width // base for width in widths),
        "num_res_blocks": blocks,
        "decoder_res_blocks": blocks,
        "mid_blocks": shapes.count("pixel_decoder.mid.{}.conv1.weight"),
        "z_channels": shapes.of("pixel_decoder.conv_in.weight", 4)[1],
    }


class _Shapes:
    """Shapes of a file's tensors, checked."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str):
        self._tensors, self._where = tensors, where

    def of(self, name: str, axes: int) -> tuple[int, ...]:
        shape = self._tensors[name].shape if name in self._tensors else None
        if shape is None or len(shape) != axes or min(shape) < 1:
            raise UserError(f"{self._where}: not a whole TiTok: {name} is {shape or 'missing'}")
        return shape

    def count(self, pattern: str) -> int:
        return next(i for i in count() if pattern.format(i) not in self._tensors)


def _no_names(*_: Any) -> tuple[str, ...]:
    raise AssertionError("its parameters are renamed one by one")


LAYOUT = KeyLayout(
    name="titok",
    marker="encoder.latent_token_positional_embedding",
    from_torch=True,
    names=_no_names,
    native=_native,
    ignored=re.compile(r"quantize\.embed_prob"),
    fields={
        "input_range": (0.0, 1.0),
        "quant_conv": False,
        "attn_resolutions": (),
        "mid_attention": False,
    },
    classes=re.compile("TiTok", re.IGNORECASE),
    rename=_rename,
    infer=_infer,
)
