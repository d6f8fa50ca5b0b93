"""Chameleon and Janus as transformers keeps them: a tokenizer under ``model.vqmodel.`` in a language model.

Names are taming's, but for Janus's decoder, whose levels come in order of execution. Chameleon's has no
decoder: it makes tokens alone. Janus looks the nearest code up and decodes it at unit length; its original,
which is LlamaGen's layout, normalises both ways.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from vqgan.config import MOST_LEVELS
from vqgan.errors import UserError
from vqgan.importers.formats import taming
from vqgan.importers.layout import (
    Fields,
    KeyLayout,
    NativeConfig,
    ParameterPlace,
    check_image_channels,
    check_known,
    declared_classes,
)
from vqgan.importers.tensors import shown

_FIELDS = {
    "base_channels": "ch",
    "channel_multiplier": "ch_mult",
    "num_res_blocks": "num_res_blocks",
    "latent_channels": "z_channels",
    "embed_dim": "embed_dim",
    "num_embeddings": "codebook_size",
    "double_latent": "double_z",
}
# What transformers writes into the configuration of any part, and what concerns the language model.
_KNOWN = re.compile(
    "|".join(_FIELDS) + "|resolution|attn_resolutions|attn_type|in_channels|out_channels|dropout|model_type|"
    "num_patches|projection_dim|num_hidden_layers|hidden_act|image_token_embed_dim|initializer_range|"
    "(torch_)?dtype|transformers_version|return_dict|_.*|architectures|chunk_size_feed_forward|id2label|label2id|"
    "is_encoder_decoder|max_length|min_length|num_beams|num_beam_groups|num_return_sequences|temperature|top_k|"
    "top_p|typical_p|length_penalty|diversity_penalty|repetition_penalty|early_stopping|tie_word_embeddings|"
    "use_bfloat16"
)
# transformers leaves a setting out where it has its default.
_CHAMELEON_RESOLUTION = 512
_JANUS_IMAGE_SIZE, _JANUS_PATCH_SIZE, _JANUS_PATCHES, _JANUS_LEVELS = 384, 16, 32, 5


def _part(native: NativeConfig) -> Mapping[str, Any] | None:
    """Returns the tokenizer's part of a configuration, or None where it has none."""
    alone = str(native.data.get("model_type")).endswith("_vqgan")
    part = native.data.get("vq_config", native.data if alone else None)
    if part is not None and not isinstance(part, Mapping):
        raise UserError(f"{native.path}: vq_config is {shown(part)}; expected the tokenizer's settings")
    return part


def _read_part(native: NativeConfig, part: Mapping[str, Any]) -> Fields:
    where = f"{native.path}: vq_config"
    check_known(where, part, _KNOWN)
    check_image_channels(where, part, ("in_channels", "out_channels"))
    return {ours: part[theirs] for theirs, ours in _FIELDS.items() if theirs in part}


def _chameleon(native: NativeConfig) -> Fields:
    part = _part(native)
    if part is None:
        return {"resolution": _CHAMELEON_RESOLUTION} if declared_classes(native) else {}
    fields = _read_part(native, part) | {"resolution": part.get("resolution", _CHAMELEON_RESOLUTION)}
    if part.get("attn_type", "vanilla") != "vanilla":  # any other is none, in the middle as well
        return fields | {"attn_resolutions": [], "mid_attention": False}
    return fields | {"attn_resolutions": part.get("attn_resolutions") or []}


def _janus(native: NativeConfig) -> Fields:
    part = _part(native)
    if part is None:
        return {}
    fields = _read_part(native, part)
    patches = _patches(native, part)
    multiples = part.get("channel_multiplier")
    levels = len(multiples) if isinstance(multiples, (list, tuple)) else _JANUS_LEVELS
    if patches and 1 <= levels <= MOST_LEVELS:
        fields["resolution"] = patches << (levels - 1)
    return fields


def _patches(native: NativeConfig, part: Mapping[str, Any]) -> int | None:
    """Returns the side of the token grid, which the vision model's patches give; None for nonsense."""
    vision = native.data.get("vision_config", {} if part is not native.data else None)
    if not isinstance(vision, Mapping):
        side, patch = part.get("num_patches", _JANUS_PATCHES), 1
    else:
        side = vision.get("image_size", _JANUS_IMAGE_SIZE)
        patch = vision.get("patch_size", _JANUS_PATCH_SIZE)
    if type(side) is not int or type(patch) is not int or not 0 < patch <= side < 1 << 20:
        return None
    return side // patch


def _janus_names(place: ParameterPlace, levels: int, blocks: int) -> tuple[str, ...]:
    theirs = taming.LAYOUT.names(place, levels, blocks)
    if place.side != "decoder" or not place.part or place.part.startswith("middle"):
        return theirs
    backward, forward = f"decoder.up.{levels - 1 - place.level}.", f"decoder.up.{place.level}."
    return tuple(name.replace(backward, forward) for name in theirs)


def _has_no_decoder(names: Collection[str]) -> bool:
    return not any(name.startswith("decoder.") for name in names)


def _runs_upwards(names: Collection[str]) -> bool:
    """Tells whether the decoder's first level is the lowest one, which is doubled."""
    return "decoder.up.0.upsample.conv.weight" in names


def _has_one_level(names: Collection[str]) -> bool:
    return not any(name.startswith("decoder.up.1.") for name in names)


CHAMELEON = KeyLayout(
    name="chameleon",
    marker=taming.LAYOUT.marker,
    from_torch=True,
    names=taming.LAYOUT.names,
    native=_chameleon,
    ignored=re.compile(r"post_quant_conv\..*"),
    fits=taming.has_taming_names,
    unnamed=_has_no_decoder,
    classes=re.compile("Chameleon(ForConditionalGeneration|Model|VQVAE)|chameleon(_vqgan)?"),
    assumed="the nearest code, as in Chameleon's tokenizer",
    encoder_only=True,
)

JANUS = KeyLayout(
    name="janus",
    marker=taming.LAYOUT.marker,
    from_torch=True,
    names=_janus_names,
    native=_janus,
    fields={"quantizer": "nearest_unit"},
    fits=lambda names: _runs_upwards(names) or (_has_one_level(names) and taming.has_taming_names(names)),
    unnamed=_runs_upwards,
    classes=re.compile("Janus(ForConditionalGeneration|Model|VQVAE)|janus(_vqgan)?"),
    assumed="the nearest code, decoded at unit length, as in transformers' Janus",
)
