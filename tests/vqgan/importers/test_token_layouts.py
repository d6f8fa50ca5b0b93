"""Tokenizers that are no plain grid of convolutions, other sizes than the fixtures', come back as written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqgan import Codec, UserError
from vqgan.config import ModelConfig
from vqgan.importers import import_checkpoint
from vqgan.importers.convert import _candidates
from vqgan.importers.exporting import export_checkpoint
from vqgan.importers.formats import cosmos, diffusers, titok, var
from vqgan.importers.layout import KeyLayout
from vqgan.token_layouts import ScalesConfig, ViTConfig
from vqgan.training.codec.config import CodecTrainConfig

Named = dict[str, np.ndarray]
GROUPS = {"norm_groups": 32, "ch": 32, "num_res_blocks": 1}
MOVQ = ModelConfig(
    **GROUPS, resolution=32, ch_mult=(1, 3, 2), attn_resolutions=(16,), z_channels=6, embed_dim=6,
    codebook_size=40, spatial_norm=True,
)  # fmt: skip
MOVQ_CONFIG = '{"norm_type": "spatial", "block_out_channels": [32, 96, 64], "vq_embed_dim": 6}'
VAR = ModelConfig(
    **GROUPS, resolution=28, ch_mult=(1, 2, 2), attn_resolutions=(7,), z_channels=8, embed_dim=8,
    codebook_size=30, quantizer="scales", clip_output=True, quant_conv_kernel=3,
    scales=ScalesConfig((1, 3, 4, 7), 3),
)  # fmt: skip
COSMOS = ModelConfig(
    **GROUPS, resolution=64, ch_mult=(1, 1, 2), attn_resolutions=(), z_channels=5, embed_dim=2,
    codebook_size=28, quantizer="fsq", fsq_levels=(7, 4), fsq_bound="atanh", haar_patch=2, halvings=1,
    decoder_attn_levels=(2,),
)  # fmt: skip
TITOK_RGB = ModelConfig(
    resolution=48, ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), mid_attention=False,
    z_channels=6, embed_dim=6, codebook_size=20, input_range=(0.0, 1.0), quant_conv=False,
    vit=ViTConfig(tokens=5, patch=16, encoder_width=64, encoder_layers=2, decoder_patch=12, decoder_width=128,
                  decoder_layers=3),
)  # fmt: skip
TITOK = ModelConfig(
    resolution=32, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), mid_attention=False,
    z_channels=7, embed_dim=6, codebook_size=20, input_range=(0.0, 1.0), quant_conv=False,
    quantizer="cosine", bias=False, shortcut_from_branch=True, pool_downsample=True, encoder_out_kernel=1,
    mid_blocks=1, decoder_res_blocks=1,
    vit=ViTConfig(tokens=4, patch=8, encoder_width=64, encoder_layers=1, decoder_patch=2, decoder_width=64,
                  decoder_layers=1, mixed_latents=True, pixel_codes=9),
)  # fmt: skip


def _titok_config(**settings: Any) -> str:
    return json.dumps({"model": {"vq_model": settings}})


@pytest.fixture
def write(foreign: Any, tmp_path: Path) -> Any:
    """Writes a random model of an architecture in a layout; gives its folder and its weights."""

    def tensors_of(layout: KeyLayout, config: ModelConfig, part: Named) -> Named:
        found = {}
        for name, value in part.items():
            stored = value
            if name.endswith(".kernel"):
                linear = layout is diffusers.MOVQ and "attention" in name and ".norm." not in name
                stored = (
                    value[0, 0].T if linear else value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
                )
            found[_candidates(name, layout, config)[0]] = stored
        return found

    def make(layout: KeyLayout, config: ModelConfig, native: str | None = None) -> tuple[Path, Any]:
        weights = foreign.random_weights(config)
        parts = [tensors_of(layout, config, part) for part in weights.values()]
        encoder, quantizer, decoder = parts
        if layout is cosmos.LAYOUT:
            levels = np.array(config.fsq_levels, np.int32)
            buffers = {"encoder.patcher.wavelets": np.ones(2, np.float32), "quantizer._levels": levels}
            foreign.write_torch_script(tmp_path / "encoder.jit", {**encoder, **buffers})
            foreign.write_torch_script(tmp_path / "decoder.jit", {**decoder, "inv_quant._levels": levels})
        elif layout is var.LAYOUT:
            assert config.scales is not None
            merged = _with_one_convolution({**encoder, **quantizer, **decoder})
            hits = np.zeros((len(config.scales.sides), config.codebook_size), np.float32)
            foreign.write_torch_zip(tmp_path / "vae.pth", {**merged, "quantize.ema_vocab_hit_SV": hits})
        else:
            foreign.write_safetensors(tmp_path / "model.safetensors", {**encoder, **quantizer, **decoder})
        if native is not None:
            (tmp_path / "config.json").write_text(native)
        return tmp_path, weights

    return make


def _with_one_convolution(tensors: Named) -> Named:
    """Joins queries, keys and values, as VAR stores them."""
    joined = {n: value for n, value in tensors.items() if ".attn" not in n or n.split(".")[-2] not in "qkv"}
    for name in tensors:
        if name.endswith((".q.weight", ".q.bias")):
            tree, _, leaf = name.rpartition(".q.")
            joined[f"{tree}.qkv.{leaf}"] = np.concatenate([tensors[f"{tree}.{x}.{leaf}"] for x in "qkv"])
    return joined


@pytest.mark.parametrize(
    ("layout", "config", "native", "options"),
    [
        (diffusers.MOVQ, MOVQ, MOVQ_CONFIG, "?resolution=32"),
        (var.LAYOUT, VAR, None, "?scales=1,3,4,7"),
        (var.LAYOUT, VAR, '{"v_patch_nums": [1, 3, 4, 7]}', ""),
        (cosmos.LAYOUT, COSMOS, '{"patch_size": 2, "resolution": 64, "attn_resolutions": [1]}', ""),
        (titok.LAYOUT, TITOK_RGB, _titok_config(is_legacy=False), ""),
        (titok.LAYOUT, TITOK, _titok_config(use_l2_norm=True, finetune_decoder=True), ""),
    ],
    ids=["movq", "var", "var-configured", "cosmos-di", "titok-rgb", "titok"],
)
def test_import_gives_the_weights_and_the_architecture_back(
    layout: KeyLayout, config: ModelConfig, native: str | None, options: str, write: Any
) -> None:
    folder, weights = write(layout, config, native)
    imported = import_checkpoint(f"{folder}{options}")
    changed = {"attn_resolutions": (1,)} if layout is cosmos.LAYOUT else {}
    assert imported.config == ModelConfig(**{**vars(config), **changed})
    assert imported.origin["format"] == layout.name
    for part, named in weights.items():
        assert imported.weights[part].keys() == named.keys()
        for name, value in named.items():
            np.testing.assert_array_equal(imported.weights[part][name], value)


@pytest.mark.parametrize("to", ["safetensors", "diffusers"])
@pytest.mark.parametrize("config", [MOVQ, VAR, TITOK_RGB], ids=["movq", "var", "titok-rgb"])
def test_formats_that_cannot_express_it_say_so(to: str, config: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot express this codec.*(spatial_norm|scales|vit)"):
        export_checkpoint(str(tmp_path / "none"), to, config, {}, {})


@pytest.mark.parametrize("config", [VAR, COSMOS, TITOK], ids=["var", "cosmos-di", "titok"])
def test_what_is_imported_alone_is_not_trained(config: ModelConfig) -> None:
    with pytest.raises(UserError, match="not trained here"):
        CodecTrainConfig(model=config)


def test_halves_in_two_files_are_both_recorded_and_either_may_be_named(write: Any) -> None:
    folder, _ = write(cosmos.LAYOUT, COSMOS)
    whole, other = (import_checkpoint(str(folder / name)) for name in ("encoder.jit", "decoder.jit"))
    assert whole.origin["other_file"] == "decoder.jit"
    assert whole.origin["sha256"] == other.origin["other_sha256"]
    assert whole.config == other.config


def test_scales_that_no_file_says_are_asked_for(write: Any) -> None:
    folder, _ = write(var.LAYOUT, VAR)
    for options in ("", "?scales=1,2,7"):
        with pytest.raises(UserError, match=r"VAR tokenizer of 4 scales.*scales="):
            import_checkpoint(f"{folder}{options}")


def test_titok_without_what_it_does_not_say_is_refused(write: Any) -> None:
    folder, _ = write(titok.LAYOUT, TITOK)
    with pytest.raises(UserError, match="only that says whether codes are normalised"):
        import_checkpoint(str(folder))
    for settings, reason in (({"quantize_mode": "vae"}, "only vq"), ({"surprise": 1}, "unknown")):
        (folder / "config.json").write_text(_titok_config(**settings))
        with pytest.raises(UserError, match=reason):
            import_checkpoint(str(folder))


def test_a_codec_of_a_sequence_takes_one_size_and_gives_rows(write: Any) -> None:
    folder, _ = write(titok.LAYOUT, TITOK_RGB, _titok_config(is_legacy=False))
    codec = Codec.load(folder, batch_size=2)
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), np.uint8)
    tokens = codec.encode(images)
    assert (tokens.shape, codec.config.layout, codec.config.grid(48, 48)) == ((3, 5), "sequence", (1, 5))
    decoded = codec.decode(tokens)
    assert decoded.shape == images.shape
    np.testing.assert_array_equal(codec.decode(tokens[:, None]), decoded)
    assert codec.decode(codec.encode(images[None])).shape == (1, *images.shape)
    with pytest.raises(UserError, match="takes 48x48 alone"):
        codec.encode(images[:, :24])
    with pytest.raises(UserError, match="every image has 5"):
        codec.decode(tokens[:, :4])
