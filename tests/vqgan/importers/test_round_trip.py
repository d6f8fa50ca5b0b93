"""Random models in every key layout, at other architectures than the fixtures': import gives them back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgan import Codec, UserError, codec_checkpoint
from vqgan.config import ModelConfig
from vqgan.config_json import to_dict
from vqgan.importers import import_checkpoint
from vqgan.importers.convert import infer_config
from vqgan.importers.registry import PUBLISHED, find_published
from vqgan.importers.tensors import Tensor, dtype_named
from vqgan.model.parameters import codec_parameter_count, codec_parameter_shapes
from vqgan.model.vqgan import VQGAN

KINDS = [
    "taming", "gumbel", "ldm", "ldm-noattn", "ldm-linear", "llamagen", "diffusers", "vqgan-jax", "lwm",
    "maskgit", "maskgit-torch", "open-magvit2", "ibq", "chameleon", "janus", "janus-original",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_import_gives_the_weights_and_the_architecture_back(kind: str, foreign: Any, tmp_path: Path) -> None:
    path, config, weights = foreign.write(kind, tmp_path)
    for source in (str(path), str(tmp_path), f"{path}?resolution=32"):
        imported = import_checkpoint(source)
        for part, named in weights.items():
            assert imported.weights[part].keys() == named.keys()
            for name, value in named.items():
                np.testing.assert_array_equal(imported.weights[part][name], value)
    assert imported.config == config


@pytest.mark.parametrize("kind", ["gumbel", "ldm-linear"])
def test_tokens_are_those_of_the_model_that_was_written(kind: str, foreign: Any, tmp_path: Path) -> None:
    path, config, weights = foreign.write(kind, tmp_path / "foreign")
    codec_checkpoint.save_codec(tmp_path / "ours", config, weights)
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8)
    ours, theirs = (Codec.load(p, batch_size=2) for p in (tmp_path / "ours", f"{path}?resolution=32"))
    tokens = theirs.encode(images)
    assert ours.fingerprint == theirs.fingerprint
    assert len(np.unique(tokens)) > 1
    np.testing.assert_array_equal(ours.encode(images), tokens)
    np.testing.assert_array_equal(ours.decode(tokens), theirs.decode(tokens))


SIZES = {
    "vqgan_imagenet_f16_1024": 72.14, "vqgan_imagenet_f16_16384": 76.07, "vq-f4": 55.32, "vq-f8": 67.72,
    "vq-f16": 69.59, "VQ-16": 71.88, "VQ-8": 70.11, "lwm": 146.24,
}  # fmt: skip
F8: dict[str, Any] = {"ch_mult": (1, 2, 2, 4), "attn_resolutions": (32,)}
FULL: dict[str, tuple[str, dict[str, Any]]] = {
    "vqgan_imagenet_f16_1024": ("taming", {}),
    "vqgan_imagenet_f16_16384": ("taming", {"codebook_size": 16384}),
    "vqgan_gumbel_f8": (
        "gumbel",
        {"ch_mult": (1, 1, 2, 4), "attn_resolutions": (32,), "codebook_size": 8192, "quantizer": "gumbel"},
    ),
    "vq-f4": (
        "ldm",
        {"ch_mult": (1, 2, 4), "attn_resolutions": (), "z_channels": 3, "embed_dim": 3}
        | {"codebook_size": 8192},
    ),
    "vq-f8": ("ldm", {**F8, "z_channels": 4, "embed_dim": 4, "codebook_size": 16384}),
    "vq-f8-n256": ("ldm", {**F8, "z_channels": 4, "embed_dim": 4, "codebook_size": 256}),
    "vq-f16": ("ldm", {"z_channels": 8, "embed_dim": 8, "codebook_size": 16384}),
    "VQ-16": ("llamagen", {"embed_dim": 8, "codebook_size": 16384, "quantizer": "cosine"}),
    "VQ-8": ("llamagen", {**F8, "embed_dim": 8, "codebook_size": 16384, "quantizer": "cosine"}),
    "dalle-mini/vqgan_imagenet_f16_16384": ("vqgan-jax", {"codebook_size": 16384}),
    "lwm": (
        "lwm",
        {"ch_mult": (1, 2, 2, 4, 6), "attn_resolutions": (), "mid_attention": False, "z_channels": 64}
        | {"embed_dim": 64, "codebook_size": 8192, "clip_output": True},
    ),
}


@pytest.mark.parametrize("name", FULL)
def test_published_architectures_follow_from_shapes_alone(name: str, foreign: Any) -> None:
    kind, fields = FULL[name]
    config = ModelConfig(**fields)
    shapes = codec_parameter_shapes(config)
    empty = {part: {n: np.broadcast_to(np.float32(0), s) for n, s in shapes[part].items()} for part in shapes}
    arrays = foreign.foreign_tensors(kind, config, empty)
    tensors = {n: Tensor(a.shape, a.dtype, lambda: pytest.fail("read")) for n, a in arrays.items()}
    assert infer_config(tensors, foreign.LAYOUTS[kind], {}, "test") == config
    assert codec_parameter_count(config) == PUBLISHED[name].parameters
    if name in SIZES:
        assert round(codec_parameter_count(config) / 1e6, 2) == SIZES[name]


@st.composite
def configs(draw: Any) -> ModelConfig:
    levels = draw(st.integers(1, 3))
    z = draw(st.sampled_from([4, 8]))
    conv = draw(st.booleans())
    return ModelConfig(
        resolution=16,
        ch=8,
        ch_mult=tuple(draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels))),
        num_res_blocks=draw(st.integers(1, 2)),
        attn_resolutions=tuple(draw(st.sets(st.sampled_from([4, 8, 16]), max_size=2))),
        mid_attention=draw(st.booleans()),
        z_channels=z,
        double_z=conv and draw(st.booleans()),
        embed_dim=draw(st.sampled_from([2, 4])) if conv else z,
        codebook_size=draw(st.integers(2, 20)),
        resamp_with_conv=draw(st.booleans()),
        norm_groups=draw(st.sampled_from([1, 4])),
        quantizer=draw(st.sampled_from(["nearest", "cosine", "gumbel", "inner_product", "nearest_unit"])),
        attention=draw(st.sampled_from(["full", "linear"])),
        quant_conv=conv,
        bias=draw(st.booleans()),
        shortcut_from_branch=draw(st.booleans()),
        pool_downsample=draw(st.booleans()),
        symmetric_downsample=draw(st.booleans()),
        adaptive_norm=draw(st.booleans()),
        mid_blocks=draw(st.integers(1, 4)),
        decoder_res_blocks=draw(st.sampled_from([None, 1])),
        encoder_out_kernel=draw(st.sampled_from([1, 3])),
        stem_channels=draw(st.sampled_from([None, 16])),
        decoder_ch=draw(st.sampled_from([None, 16])),
        decoder_added_blocks=draw(st.sampled_from([0, 1])),
    )


@given(configs())
@settings(max_examples=15)
def test_parameters_listed_without_jax_are_those_of_the_modules(config: ModelConfig) -> None:
    model = nnx.eval_shape(lambda: VQGAN(config, rngs=nnx.Rngs(0)))
    for part in codec_checkpoint.PARTS:
        flat = nnx.to_flat_state(nnx.state(getattr(model, part), nnx.Param))
        found = {".".join(map(str, path)): tuple(param.shape) for path, param in flat}
        assert found == codec_parameter_shapes(config)[part]


@given(configs())
@settings(max_examples=2)
def test_a_saved_codec_gives_the_same_tokens(
    tmp_path_factory: Any, foreign: Any, config: ModelConfig
) -> None:
    folder = tmp_path_factory.mktemp("codec")
    weights = foreign.random_weights(config)
    saved = codec_checkpoint.save_codec(folder / "codec", config, weights)
    images = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    tokens = Codec.load(folder / "codec", batch_size=1).encode(images)
    again = codec_checkpoint.load_weights(
        codec_checkpoint.read_info(folder / "codec"), codec_checkpoint.PARTS
    )
    second = codec_checkpoint.save_codec(folder / "second", config, again)
    assert second.fingerprint == saved.fingerprint
    np.testing.assert_array_equal(Codec.load(folder / "second", batch_size=1).encode(images), tokens)


def test_a_native_configuration_that_does_not_fit_lists_both_sides(foreign: Any, tmp_path: Path) -> None:
    foreign.write("vqgan-jax", tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({"num_res_blocks": 3, "embed_dim": 13, "resolution": 32})
    )
    with pytest.raises(UserError) as error:
        import_checkpoint(str(tmp_path))
    assert "encoder.levels.0.blocks.2.conv1.kernel (encoder.down_0.block_2.conv1.kernel)" in str(error.value)
    assert "codebook (50, 13) (quantize.embedding.embedding (50, 12))" in str(error.value)


@pytest.mark.parametrize(
    "native",
    [
        {"resolution": "256"}, {"resolution": 0}, {"ch_mult": 3}, {"num_res_blocks": 10**9}, {"ch": -1},
        {"attn_resolutions": "16"}, {"ch_mult": [1] * 80, "resolution": 1 << 79}, {"n_embed": None},
    ],
)  # fmt: skip
def test_nonsense_in_a_native_configuration_is_an_error(native: Any, foreign: Any, tmp_path: Path) -> None:
    foreign.write("vqgan-jax", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(native))
    with pytest.raises(UserError):
        import_checkpoint(str(tmp_path))


def test_older_flax_files_keep_norms_as_four_dimensions(foreign: Any, tmp_path: Path) -> None:
    path, config, weights = foreign.write("vqgan-jax", tmp_path)
    tensors = foreign.foreign_tensors("vqgan-jax", config, weights)
    old = {n: t.reshape(1, 1, 1, -1) if ".norm" in n else t for n, t in tensors.items()}
    path.write_bytes(foreign.msgpack_bytes(foreign.nest(old)))
    found = import_checkpoint(str(path))
    assert found.weights["encoder"].keys() == weights["encoder"].keys()
    for name, value in weights["encoder"].items():
        np.testing.assert_array_equal(found.weights["encoder"][name], value)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32(dtype: str, foreign: Any, tmp_path: Path) -> None:
    config = foreign.config_for("taming")
    tensors = foreign.foreign_tensors("taming", config, foreign.random_weights(config))
    half = {name: value.astype(dtype_named(dtype)) for name, value in tensors.items()}
    foreign.write_torch_zip(tmp_path / "a.ckpt", {"state_dict": half})
    foreign.write_safetensors(tmp_path / "b.safetensors", half)
    first, second = (import_checkpoint(str(tmp_path / name)) for name in ("a.ckpt", "b.safetensors"))
    for part in codec_checkpoint.PARTS:
        for name, value in first.weights[part].items():
            assert value.dtype == np.float32
            np.testing.assert_array_equal(value, second.weights[part][name])
    codebook = half["quantize.embedding.weight"].astype(np.float32)
    np.testing.assert_array_equal(first.weights["quantizer"]["codebook"], codebook)


def test_an_unknown_or_missing_key_is_an_error(foreign: Any, tmp_path: Path) -> None:
    config = foreign.config_for("llamagen")
    tensors = foreign.foreign_tensors("llamagen", config, foreign.random_weights(config))
    tensors["encoder.surprise.weight"] = np.zeros(3, np.float32)
    del tensors["decoder.norm_out.bias"]
    foreign.write_torch_zip(tmp_path / "x.pt", {"model": tensors})
    with pytest.raises(UserError, match=r"decoder\.norm_out\.bias.*encoder\.surprise\.weight"):
        import_checkpoint(str(tmp_path / "x.pt"))


def test_options_and_published_names(foreign: Any, tmp_path: Path) -> None:
    path, config, _ = foreign.write("taming", tmp_path)
    found = import_checkpoint(f"{path}?input-range=0,1&resolution=64").config
    assert found.input_range == (0.0, 1.0)
    assert (found.resolution, found.attn_resolutions) == (64, (32, 16))
    with pytest.raises(UserError, match="did you mean input_range"):
        import_checkpoint(f"{path}?input_rang=0,1")
    with pytest.raises(UserError, match=r"72\.14 M"):
        import_checkpoint(f"{path}?name=vqgan_imagenet_f16_1024")
    with pytest.raises(UserError, match="no averaged weights"):
        import_checkpoint(f"{path}?weights=ema")
    assert to_dict(import_checkpoint(f"{path}?attn_resolutions=16,8").config) == to_dict(config)
    assert import_checkpoint(str(path)).origin["training_step"] == 7


def test_published_names_in_a_path_count_where_the_size_fits() -> None:
    size = PUBLISHED["dalle-mini/vqgan_imagenet_f16_16384"].parameters
    for folder in ("vqgan_imagenet_f16_16384", "models--dalle-mini--vqgan_imagenet_f16_16384/snapshots/abc"):
        path = Path(f"/models/{folder}/flax_model.msgpack")
        found = find_published(None, path, "vqgan-jax", size)
        assert found is not None
        assert found[1].fields == {"input_range": (0.0, 1.0)}
        assert find_published(None, path, "vqgan-jax", size + 1) is None
    taming = find_published(
        None, Path("/models/vqgan_imagenet_f16_16384/last.ckpt"), "taming-transformers", size
    )
    assert taming is not None
    assert taming[1].fields == {}
    with pytest.raises(UserError, match="known: vqgan_imagenet"):
        find_published("vqgan", Path("x"), "taming-transformers", size)


def test_averaged_weights_are_taken_where_asked_for(foreign: Any, tmp_path: Path) -> None:
    config = foreign.config_for("ldm")
    raw, ema = (foreign.random_weights(config, seed) for seed in (0, 1))
    tensors = foreign.foreign_tensors("ldm", config, raw)
    twins = foreign.foreign_tensors("ldm", config, ema)
    tensors |= {f"model_ema.{name.replace('.', '')}": value for name, value in twins.items()}
    foreign.write_torch_zip(tmp_path / "m.ckpt", {"state_dict": tensors})
    for source, wanted in (("m.ckpt", raw), ("m.ckpt?weights=ema", ema)):
        found = import_checkpoint(f"{tmp_path}/{source}")
        np.testing.assert_array_equal(found.weights["quantizer"]["codebook"], wanted["quantizer"]["codebook"])
        assert found.origin["format"] == "latent-diffusion"


def test_a_first_stage_inside_a_prior_is_found_and_said(foreign: Any, tmp_path: Path) -> None:
    config = foreign.config_for("taming")
    tensors = foreign.foreign_tensors("taming", config, foreign.random_weights(config))
    whole = {f"first_stage_model.{name}": value for name, value in tensors.items()}
    whole["transformer.tok_emb.weight"] = np.zeros((4, 4), np.float32)
    foreign.write_torch_zip(tmp_path / "net2net.ckpt", {"state_dict": whole})
    origin = import_checkpoint(str(tmp_path / "net2net.ckpt")).origin
    assert origin["part"] == "state_dict.first_stage_model"
    assert origin["unused_parts"] == ["transformer"]
    only = {"transformer.blocks.0.attn.key.weight": np.zeros((4, 4), np.float32)}
    foreign.write_torch_zip(tmp_path / "gpt.ckpt", {"state_dict": only})
    with pytest.raises(UserError, match="transformer prior"):
        import_checkpoint(str(tmp_path / "gpt.ckpt"))
