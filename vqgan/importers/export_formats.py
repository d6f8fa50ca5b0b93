"""What each format that a codec can be exported to expresses, and how it says the architecture.

A format names its file, its key layout, what of a configuration it has no place for, and the configuration
that the code base itself reads.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from vqgan.config import UNTRAINED_QUANTIZERS, ModelConfig
from vqgan.config_json import to_dict
from vqgan.importers.formats import diffusers, llamagen, taming, vqgan_jax
from vqgan.importers.layout import KeyLayout

# What none of these code bases has.
_OTHERS_ONLY = (
    "shortcut_from_branch", "pool_downsample", "symmetric_downsample", "depth_to_space", "adaptive_norm",
    "spatial_norm", "scales", "decoder_attn_levels", "haar_patch", "halvings", "quant_conv_kernel",
    "decoder_ch",
)  # fmt: skip
# What is fixed in the published classes of LlamaGen and vqgan-jax.
_LLAMAGEN = {"ch": 128, "num_res_blocks": 2, "norm_groups": 32, "input_range": (-1.0, 1.0)}
_VQGAN_JAX = {"norm_groups": 32}


@dataclasses.dataclass(frozen=True)
class ExportFormat:
    """One format.

    Attributes:
      file: name of the file with the weights; its end says how they are stored.
      layout: how parameters are named.
      lacks: what of a configuration the format cannot express, in words.
      native: the contents of ``config.json``.
      linear_attention: 1x1 convolutions of attentions are stored as matrices.
      loading: how the code base itself reads the folder, for its README; nothing where that needs no words.
    """

    file: str
    layout: Callable[[ModelConfig], KeyLayout]
    lacks: Callable[[ModelConfig], list[str]]
    native: Callable[[ModelConfig], dict[str, Any]]
    linear_attention: bool = False
    loading: str = ""


def lacking(to: str, config: ModelConfig) -> list[str]:
    """Returns what of a configuration a format of :data:`FORMATS` cannot express, in words.

    A vision transformer differs in all else, too: it alone is said.
    """
    return ["model.vit"] if config.vit else list(dict.fromkeys(FORMATS[to].lacks(config)))


def _lacks_anywhere(config: ModelConfig) -> list[str]:
    if config.quantizer in ("fsq", "lfq"):
        return [f"quantizer {config.quantizer} has no codebook"]
    default = ModelConfig()
    cannot = [name for name in _OTHERS_ONLY if getattr(config, name) != getattr(default, name)]
    if config.quantizer in UNTRAINED_QUANTIZERS or not config.has_decoder:
        cannot.append(f"quantizer {config.quantizer}" if config.has_decoder else "no decoder")
    if not config.quant_conv or not config.bias or config.encoder_out_kernel != 3:
        cannot.append("layers without biases or without quant_conv")
    if config.mid_blocks != 2 or config.decoder_blocks != config.num_res_blocks + 1:
        cannot.append("another number of blocks")
    return cannot


def _lacks_in_diffusers(config: ModelConfig) -> list[str]:
    cannot = _lacks_anywhere(config)
    if config.quantizer != "nearest" or config.attention != "full" or config.double_z:
        cannot.append(f"quantizer {config.quantizer}, attention {config.attention} or double_z")
    if not config.resamp_with_conv:
        cannot.append("resampling without convolutions")
    if config.stem != config.ch * config.ch_mult[0]:
        cannot.append("its first convolution has another width")
    return cannot


def _lacks_in_llamagen(config: ModelConfig) -> list[str]:
    cannot = _lacks_anywhere(config) + _unlike(config, _LLAMAGEN) + _lacks_ranges(config)
    if config.channels.count != 3:
        cannot.append(f"images have 3 channels there, not {config.channels.count}")
    if config.quantizer not in ("cosine", "nearest"):
        cannot.append(f"quantizer {config.quantizer}")
    attended = [level for level in range(len(config.ch_mult)) if _attends(config, level)]
    if attended != [len(config.ch_mult) - 1] or not config.mid_attention or config.attention != "full":
        cannot.append("full attention stands at the lowest level and in the middle there, nowhere else")
    if not config.resamp_with_conv or config.double_z or config.stem != config.ch:
        cannot.append("resampling without convolutions, double_z or stem_channels")
    return cannot


def _lacks_in_vqgan_jax(config: ModelConfig) -> list[str]:
    cannot = _lacks_anywhere(config) + _unlike(config, _VQGAN_JAX) + _lacks_ranges(config)
    if config.quantizer != "nearest":
        cannot.append(f"quantizer {config.quantizer}")
    if not config.mid_attention or config.attention != "full":
        cannot.append("full attention always stands in the middle there")
    if config.stem != config.ch:
        cannot.append("its first convolution has another width")
    return cannot


def _lacks_ranges(config: ModelConfig) -> list[str]:
    """Lists ranges that a format with a configuration of its own alone has no place for."""
    names = [name for name in ("ranges", "input_ranges") if getattr(config.channels, name)]
    return [f"channels.{name}: pixels have one range there, the network's" for name in names]


def _unlike(config: ModelConfig, fixed: Mapping[str, Any]) -> list[str]:
    """Lists settings that differ from what is fixed in a code base."""
    return [
        f"{name} is {_shown(value)} there, not {_shown(getattr(config, name))}"
        for name, value in fixed.items()
        if getattr(config, name) != value
    ]


def _shown(value: Any) -> str:
    return ",".join(f"{each:g}" for each in value) if isinstance(value, tuple) else str(value)


def _attends(config: ModelConfig, level: int) -> bool:
    return config.resolution >> level in config.attn_resolutions


def _taming_layout(config: ModelConfig) -> KeyLayout:
    """Takes LlamaGen's names for codes of unit length, since nobody else has them."""
    return llamagen.LAYOUT if config.quantizer == "cosine" else taming.LAYOUT


def _diffusers_config(config: ModelConfig) -> dict[str, Any]:
    """Returns the constructor's arguments of diffusers' ``VQModel``."""
    attended = [_attends(config, level) for level in range(len(config.ch_mult))]
    return {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": [config.ch * multiple for multiple in config.ch_mult],
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


def _llamagen_config(config: ModelConfig) -> dict[str, Any]:
    """Returns the arguments of LlamaGen's ``ModelArgs`` that are not at their default in every release."""
    return {
        "codebook_size": config.codebook_size,
        "codebook_embed_dim": config.embed_dim,
        "codebook_l2_norm": config.quantizer == "cosine",
        "encoder_ch_mult": list(config.ch_mult),
        "decoder_ch_mult": list(config.ch_mult),
        "z_channels": config.z_channels,
    }


def _vqgan_jax_config(config: ModelConfig) -> dict[str, Any]:
    """Returns the arguments of vqgan-jax's ``VQGANConfig``; it keeps the input range, and does not use it."""
    return {
        "model_type": "vqgan",
        "ch": config.ch,
        "out_ch": config.channels.count,
        "in_channels": config.channels.count,
        "num_res_blocks": config.num_res_blocks,
        "resolution": config.resolution,
        "z_channels": config.z_channels,
        "ch_mult": list(config.ch_mult),
        "attn_resolutions": list(config.attn_resolutions),
        "n_embed": config.codebook_size,
        "embed_dim": config.embed_dim,
        "dropout": config.dropout,
        "double_z": config.double_z,
        "resamp_with_conv": config.resamp_with_conv,
        "give_pre_end": False,
        "input_range": list(config.input_range),
    }


_LOAD_LLAMAGEN = """```python
import json
from safetensors.torch import load_file
from tokenizer.tokenizer_image.vq_model import ModelArgs, VQModel

model = VQModel(ModelArgs(**json.load(open("config.json"))))
model.load_state_dict(load_file("model.safetensors"))
```

LlamaGen's scripts read `torch.load(PATH)["model"]`, so save `{"model": model.state_dict()}` for them."""
_LOAD_VQGAN_JAX = """```python
from vqgan_jax.modeling_flax_vqgan import VQModel

model = VQModel.from_pretrained(".")
```"""

FORMATS: Mapping[str, ExportFormat] = {
    "safetensors": ExportFormat("model.safetensors", _taming_layout, _lacks_anywhere, to_dict),
    "diffusers": ExportFormat(
        "diffusion_pytorch_model.safetensors",
        lambda _: diffusers.LAYOUT,
        _lacks_in_diffusers,
        _diffusers_config,
        linear_attention=True,
    ),
    "llamagen": ExportFormat(
        "model.safetensors",
        lambda _: llamagen.LAYOUT,
        _lacks_in_llamagen,
        _llamagen_config,
        loading=_LOAD_LLAMAGEN,
    ),
    "vqgan-jax": ExportFormat(
        "flax_model.msgpack",
        lambda _: vqgan_jax.LAYOUT,
        _lacks_in_vqgan_jax,
        _vqgan_jax_config,
        loading=_LOAD_VQGAN_JAX,
    ),
}
