"""A configuration of another model, cut short or meaningless is refused in a line that names the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vqgan import UserError
from vqgan.importers import import_checkpoint
from vqgan.importers.text_files import describe_unknown

GOLDEN = Path(__file__).parents[2] / "testdata" / "golden"


@pytest.fixture
def golden(tmp_path: Path) -> Callable[..., Path]:
    """Links a published model beside a configuration of which some settings are replaced."""

    def prepare(name: str, settings: dict[str, Any], *within: str) -> Path:
        for path in (GOLDEN / name).iterdir():
            if path.name not in ("expected.npz", "about.json", "config.json"):
                (tmp_path / path.name).symlink_to(path)
        native = json.loads((GOLDEN / name / "config.json").read_text())
        part = native
        for step in within:
            part = part[step]
        part.update(settings)
        (tmp_path / "config.json").write_text(json.dumps(native))
        return tmp_path

    return prepare


TITOK = ("model", "vq_model")


@pytest.mark.parametrize(
    ("name", "settings", "within", "reason"),
    [
        ("titok-rgb", {"finetune_decoder": True}, TITOK, "says that pixel decoder is True"),
        ("titok-rgb", {"use_l2_norm": "false"}, TITOK, "use_l2_norm is 'false'; expected true or false"),
        ("titok-rgb", {"is_legacy": 0}, TITOK, "is_legacy is 0; expected true or false"),
        ("titok-rgb", {"num_latent_tokens": 64}, TITOK, "says that tokens is 64, its tensors that it is 32"),
        ("diffusers-vq", {"block_out_channels": [32, 64, 64]}, (), "do not fit the architecture"),
        ("diffusers-vq", {"block_out_channels": [64, 128]}, (), "do not fit the architecture"),
        ("diffusers-vq", {"block_out_channels": ["a"]}, (), r"block_out_channels is \['a'\]"),
        ("diffusers-vq", {"block_out_channels": [32, 0]}, (), "expected a list of widths"),
        ("titok-rgb", {"vit_dec_patch_size": -1}, TITOK, r"config\.json: model\.vit\.decoder_patch is -1"),
        ("diffusers-vq", {"vq_embed_dim": 0}, (), "embed_dim is 0"),
        ("diffusers-vq", {"layers_per_block": 0}, (), "num_res_blocks is 0: it must be at least 1"),
        ("diffusers-vq", {"layers_per_block": "2"}, (), "num_res_blocks: expected int, got '2'"),
        ("maskgit-vqgan", {"quantizer": "gumbel"}, (), "quantizer is 'gumbel'"),
    ],
)
def test_a_configuration_at_odds_with_its_file_is_refused(
    name: str, settings: dict[str, Any], within: tuple[str, ...], reason: str, golden: Any
) -> None:
    folder = golden(name, settings, *within)
    with pytest.raises(UserError, match=reason) as caught:
        import_checkpoint(str(folder))
    assert str(caught.value).startswith(f"{folder}/")
    assert "\n" not in str(caught.value)


def test_what_titok_cannot_do_without_is_asked_for(golden: Any) -> None:
    folder = golden("titok-rgb", {})
    native = json.loads((folder / "config.json").read_text())
    del native["model"]["vq_model"]["use_l2_norm"]
    (folder / "config.json").write_text(json.dumps(native))
    with pytest.raises(UserError, match="vq_model lacks use_l2_norm"):
        import_checkpoint(str(folder))


@pytest.mark.parametrize("setting", [{"act_fn": "gelu"}, {"use_gumbel": True}, {"give_pre_end": True}])
def test_another_network_in_vqgan_jax_is_refused(
    setting: dict[str, Any], foreign: Any, tmp_path: Path
) -> None:
    foreign.write("vqgan-jax", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(setting))
    with pytest.raises(UserError, match=f"{next(iter(setting))} is .*; only"):
        import_checkpoint(str(tmp_path))


def test_llamagen_obeys_its_configuration(foreign: Any, tmp_path: Path) -> None:
    foreign.write("llamagen", tmp_path)
    sizes = {"codebook_size": 50, "codebook_embed_dim": 12, "encoder_ch_mult": [1, 2, 2], "z_channels": 24}

    def quantizer(**settings: Any) -> str:
        (tmp_path / "config.json").write_text(json.dumps(sizes | settings))
        return import_checkpoint(str(tmp_path)).config.quantizer

    assert (quantizer(), quantizer(codebook_l2_norm=True)) == ("cosine", "cosine")
    assert quantizer(codebook_l2_norm=False, decoder_ch_mult=[1, 2, 2], dropout_p=0.1) == "nearest"
    for settings, reason in (
        ({"codebook_l2_norm": "no"}, "codebook_l2_norm is 'no'"),
        ({"codebook_size": 60}, "do not fit"),
        ({"entropy_weighted": True}, "'entropy_weighted' is set"),
    ):
        with pytest.raises(UserError, match=reason):
            quantizer(**settings)


@pytest.mark.parametrize("kind", ["taming", "ibq", "open-magvit2"])
@pytest.mark.parametrize("lost", ["resolution", "z_channels", "ch_mult", "n_embed", "embed_dim"])
def test_a_yaml_that_is_cut_short_is_refused(kind: str, lost: str, foreign: Any, tmp_path: Path) -> None:
    path, config, _ = foreign.write(kind, tmp_path)
    (tmp_path / "config.json").unlink(missing_ok=True)
    names = ("resolution", "ch", "num_res_blocks", "z_channels")
    dd = {name: getattr(config, name) for name in names} | {"ch_mult": list(config.ch_mult)}
    sizes = {"n_embed": config.codebook_size, "embed_dim": config.embed_dim}
    dd.pop(lost, None)
    sizes.pop(lost, None)
    (tmp_path / "config.yaml").write_text(json.dumps({"model": {"params": {"ddconfig": dd, **sizes}}}))
    with pytest.raises(UserError, match=rf"config\.yaml: it lacks {lost}"):
        import_checkpoint(str(path))


@pytest.mark.parametrize(
    "rest", [{}, {"init_args": None}, {"init_args": {"ddconfig": None}}, {"params": [1]}]
)
@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("src.IBQ.models.ibqgan.IBQ", "it lacks ddconfig"),
        ("taming.models.vqgan.VQModel", "it lacks ddconfig"),
        ("somebody.Model", "it names somebody.Model, which we do not know"),
    ],
)
def test_a_class_without_its_settings_is_not_passed_over(
    target: str, reason: str, rest: dict[str, Any], foreign: Any, tmp_path: Path
) -> None:
    foreign.write("ibq", tmp_path)
    (tmp_path / "config.yaml").write_text(json.dumps({"model": {"class_path": target, **rest}}))
    with pytest.raises(UserError, match=rf"config\.yaml: {reason}"):
        import_checkpoint(str(tmp_path))


@pytest.mark.parametrize("folder", ["checkpoints", "ckpts", "checkpoint", "ckpt", "weights"])
def test_a_run_s_folder_of_weights_is_found_with_the_configuration_above(
    folder: str, foreign: Any, tmp_path: Path
) -> None:
    path, _, _ = foreign.write("ibq", tmp_path)
    (tmp_path / folder).mkdir()
    path.rename(tmp_path / folder / "last.ckpt")
    for source in (tmp_path, tmp_path / folder, tmp_path / folder / "last.ckpt"):
        assert import_checkpoint(str(source)).config.quantizer == "inner_product"


def test_yaml_files_that_are_not_used_are_said(foreign: Any, tmp_path: Path) -> None:
    foreign.write("llamagen", tmp_path)
    for name in ("first.yaml", "second.yml"):
        (tmp_path / name).write_text("lr: 1\n")
    assert import_checkpoint(str(tmp_path)).origin["unused_configurations"] == ["first.yaml", "second.yml"]


def test_a_shard_alone_is_said_to_be_one(foreign: Any, tmp_path: Path) -> None:
    _, config, weights = foreign.write("chameleon", tmp_path / "whole")
    tensors = foreign.foreign_tensors("chameleon", config, weights)
    del tensors["quantize.embedding.weight"]
    foreign.write_safetensors(tmp_path / "model-00001-of-00002.safetensors", tensors)
    with pytest.raises(UserError, match="one of several shards: get the index"):
        import_checkpoint(str(tmp_path / "model-00001-of-00002.safetensors"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"Entry not found", "the text 'Entry not found'"),
        (b'{"error": "no access"}\n', 'the text \'{"error": "no access"}\''),
        (b"\xef\xbb\xbf<!doctype html>", "an HTML page"),
        (b"GGUF\x00\x01", "its first bytes are 47 47 55 46 00 01"),
    ],
)
def test_what_stands_in_a_file_s_place_is_told(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    assert reason in describe_unknown(path)
    assert b"GGUF" not in data or "text" not in describe_unknown(path)


@pytest.mark.parametrize("part", [[], "x", 3])
def test_a_tokenizer_s_part_that_is_none_is_refused(part: Any, foreign: Any, tmp_path: Path) -> None:
    foreign.write("chameleon", tmp_path)
    path = tmp_path / "config.json"
    native = json.loads(path.read_text())
    path.write_text(json.dumps(native | {"vq_config": part}))
    with pytest.raises(UserError, match=r"config\.json: vq_config is .*; expected the tokenizer's settings"):
        import_checkpoint(str(tmp_path))
    del native["vq_config"]  # transformers leaves out what has its default
    path.write_text(json.dumps(native))
    assert import_checkpoint(str(tmp_path)).config.resolution == 512
