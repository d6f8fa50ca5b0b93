"""Writes a codec for torch users: safetensors in taming's key layout, or a diffusers ``VQModel`` folder.

The configuration stands in the file's metadata as well, so that importing it again gives the same
codec, fingerprint included, whatever the format itself can say.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vqgan.config import UNTRAINED_QUANTIZERS, ModelConfig, to_dict
from vqgan.errors import UserError
from vqgan.extras import require_extra
from vqgan.importers.formats import diffusers, llamagen, taming
from vqgan.importers.layout import KeyLayout, parse_parameter

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
# What neither taming nor diffusers has.
_OTHERS_ONLY = (
    "shortcut_from_branch", "pool_downsample", "symmetric_downsample", "depth_to_space", "adaptive_norm",
    "spatial_norm", "scales", "vit", "decoder_attn_levels",
)  # fmt: skip


def export_checkpoint(
    folder: str,
    to: str,
    config: ModelConfig,
    weights: Mapping[str, Mapping[str, np.ndarray]],
    card: Mapping[str, Any],
) -> Path:
    """Writes ``config.json`` and the weights into a folder.

    Args:
      folder: where to; it is created, and must not hold such files yet.
      to: ``safetensors`` or ``diffusers``.
      config: architecture.
      weights: parameters by part and our names.
      card: the codec's card, kept in the metadata.

    Returns:
      The folder.

    Raises:
      UserError: the format cannot express the architecture, or there is something in the folder already.
    """
    require_extra("import", "export", "safetensors")
    from safetensors.numpy import save_file

    if config.quantizer == "ema":  # the averages act in training only
        config = dataclasses.replace(config, quantizer="nearest")
    layout = _layout(to, config)
    path = Path(folder)
    file = path / (WEIGHTS_FILE if to == "diffusers" else "model.safetensors")
    if file.exists():
        raise UserError(f"{file}: exists already; give another folder")
    _check_empty(path)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {
        _foreign_name(name, layout, config): _for_torch(name, value, linear=to == "diffusers")
        for part in weights.values()
        for name, value in part.items()
    }
    document = {"config": to_dict(config), "card": dict(card)}
    save_file(tensors, file, metadata={"format": "pt", "vqgan": json.dumps(document)})
    native = _diffusers_config(config) if to == "diffusers" else to_dict(config)
    (path / "config.json").write_text(json.dumps(native, indent=2) + "\n")
    return path


def _check_empty(path: Path) -> None:
    if path.is_dir():
        others = sorted(entry.name for entry in path.iterdir())
        if others:
            raise UserError(f"{path}: there is something else in it, such as {others[0]}; give a new folder")
    elif path.exists():
        raise UserError(f"{path}: is a file; give a new folder")


def _layout(to: str, config: ModelConfig) -> KeyLayout:
    """Returns the key layout, after a look at whether it can express the model."""
    if to == "safetensors" and config.quantizer == "cosine":
        layout = llamagen.LAYOUT
    else:
        layout = diffusers.LAYOUT if to == "diffusers" else taming.LAYOUT
    if config.quantizer in ("fsq", "lfq"):
        raise UserError(f"--to {to} cannot express this codec: quantizer {config.quantizer} has no codebook")
    cannot = [name for name in _OTHERS_ONLY if getattr(config, name)]
    if config.quantizer in UNTRAINED_QUANTIZERS or not config.has_decoder:
        cannot.append(f"quantizer {config.quantizer}" if config.has_decoder else "no decoder")
    if not config.quant_conv or not config.bias or config.encoder_out_kernel != 3:
        cannot.append("layers without biases or without quant_conv")
    if config.mid_blocks != 2 or config.decoder_blocks != config.num_res_blocks + 1:
        cannot.append("another number of blocks")
    if to == "diffusers" and (config.quantizer != "nearest" or config.attention != "full" or config.double_z):
        cannot.append(f"quantizer {config.quantizer}, attention {config.attention} or double_z")
    if to == "diffusers" and (config.channels.ranges or config.channels.input_ranges):
        cannot.append("ranges by channel")
    if to == "diffusers" and not config.resamp_with_conv:
        cannot.append("resampling without convolutions")
    if cannot:
        raise UserError(f"--to {to} cannot express this codec: {', '.join(cannot)}")
    return layout


def _foreign_name(name: str, layout: KeyLayout, config: ModelConfig) -> str:
    candidates = layout.names(parse_parameter(name), len(config.ch_mult), config.num_res_blocks)
    if config.quantizer == "gumbel" and name == "codebook":
        return candidates[1]
    if config.attention == "linear" and "attention" in name and ".out." in name:
        return candidates[1]
    return candidates[0]


def _for_torch(name: str, value: np.ndarray, *, linear: bool) -> np.ndarray:
    if name.endswith(".kernel"):
        if value.ndim == 2:  # the Gumbel projection is a 1x1 convolution there
            value = value[None, None]
        attention = "attention" in name
        value = value[0, 0].T if linear and attention else value.transpose(3, 2, 0, 1)
    return np.ascontiguousarray(value, np.float32)


def _diffusers_config(config: ModelConfig) -> dict[str, Any]:
    """Returns the constructor's arguments of diffusers' ``VQModel``."""
    levels = len(config.ch_mult)
    sides = [config.resolution >> level for level in range(levels)]
    attended = [side in config.attn_resolutions for side in sides]
    widths = [config.ch * multiple for multiple in config.ch_mult]
    if config.stem != widths[0]:
        raise UserError("--to diffusers cannot express this codec: its first convolution has another width")
    return {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": [f"{'Attn' if one else ''}DownEncoderBlock2D" for one in attended],
        "up_block_types": [f"{'Attn' if one else ''}UpDecoderBlock2D" for one in reversed(attended)],
        "in_channels": config.channels.count,
        "out_channels": config.channels.count,
        "latent_channels": config.z_channels,
        "layers_per_block": config.num_res_blocks,
        "mid_block_add_attention": config.mid_attention,
        "norm_num_groups": config.norm_groups,
        "norm_type": "group",
        "num_vq_embeddings": config.codebook_size,
        "vq_embed_dim": config.embed_dim,
        "sample_size": config.resolution,
        "scaling_factor": 1.0,
        "lookup_from_codebook": False,
        "force_upcast": False,
    }
