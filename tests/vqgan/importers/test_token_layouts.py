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


def _titok_config(config: ModelConfig, **settings: Any) -> str:
    """A model's configuration as it is published."""
    assert config.vit is not None
    given = {
        "codebook_size": config.codebook_size,
        "token_size": config.embed_dim,
        "use_l2_norm": config.quantizer == "cosine",
        "num_latent_tokens": config.vit.tokens,
        "vit_enc_patch_size": config.vit.patch,
        "vit_dec_patch_size": config.vit.decoder_patch,
        "finetune_decoder": config.vit.pixel_codes > 0,
        "is_legacy": config.vit.mixed_latents,
    }
    return json.dumps({"model": {"vq_model": given | settings}})


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
        (titok.LAYOUT, TITOK_RGB, _titok_config(TITOK_RGB), ""),
        (titok.LAYOUT, TITOK, _titok_config(TITOK), ""),
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


def test_of_a_vision_transformer_nothing_else_is_said(tmp_path: Path, refused: Any) -> None:
    with refused("^--to diffusers cannot express this codec: model.vit$"):
        export_checkpoint(str(tmp_path / "none"), "diffusers", TITOK_RGB, {}, {})


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
        (folder / "config.json").write_text(_titok_config(TITOK, **settings))
        with pytest.raises(UserError, match=reason):
            import_checkpoint(str(folder))


def test_a_codec_of_a_sequence_takes_one_size_and_gives_rows(write: Any) -> None:
    folder, _ = write(titok.LAYOUT, TITOK_RGB, _titok_config(TITOK_RGB))
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


COSMOS_CONFIG = {
    "patch_size": 2, "resolution": 64, "attn_resolutions": [1], "levels": [7, 4], "embedding_dim": 2,
    "spatial_compression": 4, "channels_mult": [1, 1, 2],
}  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "config", "settings", "reason"),
    [
        (
            titok.LAYOUT,
            TITOK,
            {"codebook_size": 21},
            "says that codebook_size is 21, its tensors that it is 20",
        ),
        (titok.LAYOUT, TITOK, {"token_size": 13}, "says that embed_dim is 13"),
        (titok.LAYOUT, TITOK, {"num_latent_tokens": 64}, "says that tokens is 64, its tensors that it is 4"),
        (titok.LAYOUT, TITOK, {"vit_enc_patch_size": 16}, "says that patch is 16"),
        (titok.LAYOUT, TITOK, {"finetune_decoder": False}, "says that pixel decoder is False"),
        (cosmos.LAYOUT, COSMOS, {}, ""),
        (cosmos.LAYOUT, COSMOS, {"levels": [4, 7]}, r"says that fsq_levels is \(4, 7\)"),
        (cosmos.LAYOUT, COSMOS, {"embedding_dim": 4}, "says that embed_dim is 4"),
        (cosmos.LAYOUT, COSMOS, {"patch_size": 4}, "says that haar_patch is 4"),
        (cosmos.LAYOUT, COSMOS, {"spatial_compression": 8}, "says that halvings is None"),
        (cosmos.LAYOUT, COSMOS, {"num_codebooks": 2}, "num_codebooks is 2; only 1"),
        (cosmos.LAYOUT, COSMOS, {"_class_name": "VQModel"}, "names VQModel, which we do not know"),
    ],
)
def test_a_configuration_of_another_model_is_refused(
    layout: KeyLayout, config: ModelConfig, settings: dict[str, Any], reason: str, write: Any
) -> None:
    native = _titok_config(config, **settings) if config.vit else json.dumps(COSMOS_CONFIG | settings)
    folder, _ = write(layout, config, native)
    if not reason:
        assert import_checkpoint(str(folder)).config.halvings == 1
        return
    with pytest.raises(UserError, match=reason) as caught:
        import_checkpoint(str(folder))
    assert str(caught.value).startswith(f"{folder}/")


def test_var_says_what_it_assumes_and_obeys_its_arguments(write: Any) -> None:
    folder, _ = write(var.LAYOUT, VAR)
    assert "half smoothed" in import_checkpoint(f"{folder}?scales=1,3,4,7").origin["assumed"]
    arguments = {"v_patch_nums": [1, 3, 4, 7], "vocab_size": 30, "z_channels": 8, "ch": 32, "test_mode": True}
    path = folder / "config.json"

    def imported(**settings: Any) -> Any:
        path.write_text(json.dumps(arguments | settings))
        return import_checkpoint(str(folder))

    assert imported(using_znorm=False, quant_resi=0.5).config == VAR
    for settings, reason in (
        ({"using_znorm": True}, "using_znorm is True; only False"),
        ({"quant_resi": 0.3}, r"quant_resi is 0\.3; only 0\.5"),
        ({"vocab_size": 10}, "do not fit"),
        ({"surprise": 1}, "'surprise' is set"),
        ({"_class_name": "VQModel"}, "which we do not know"),
    ):
        with pytest.raises(UserError, match=reason):
            imported(**settings)
    path.write_text('{"model": {"target": "taming.models.vqgan.VQModel", "params": {"ddconfig": {}}}}')
    with pytest.raises(UserError, match=r"names taming\.models\.vqgan\.VQModel, which we do not know"):
        import_checkpoint(f"{folder}?scales=1,3,4,7")


def test_without_a_configuration_levels_that_do_not_halve_are_one_side(write: Any) -> None:
    config = ModelConfig(**{**vars(COSMOS), "attn_resolutions": (16,), "decoder_attn_levels": ()})
    folder, _ = write(cosmos.LAYOUT, config)
    assert import_checkpoint(f"{folder}?resolution=64").config == config


def test_half_a_model_asks_for_the_other_half(write: Any) -> None:
    folder, _ = write(cosmos.LAYOUT, COSMOS)
    for lost, left in (("decoder.jit", "encoder.jit"), ("encoder.jit", "decoder.jit")):
        (folder / lost).rename(folder / "away.bin")
        with pytest.raises(UserError, match=rf"{left}: one half of a tokenizer; put {lost} beside it"):
            import_checkpoint(str(folder / left))
        (folder / "away.bin").rename(folder / lost)


def test_scales_of_a_model_that_has_none_are_refused(write: Any) -> None:
    folder, _ = write(diffusers.MOVQ, MOVQ)
    with pytest.raises(UserError, match="scales= is for tokenizers of several scales, and this is movq"):
        import_checkpoint(f"{folder}?scales=1,2")
