"""Formats that share the names of their parameters: told apart by what the configuration says, or refused."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqgan import Codec, UserError, codec_checkpoint
from vqgan.importers import import_checkpoint

# Kinds of model to what they are read as without a configuration.
UNCONFIGURED = {
    "maskgit-torch": "maskgit-torch",
    "open-magvit2": "open-magvit2",
    "ibq": "taming-transformers",
    "chameleon": "chameleon",
    "janus": "janus",
    "janus-original": "llamagen",
}
IBQ, MAGVIT2 = "src.IBQ.models.ibqgan", "src.Open_MAGVIT2.models.lfqgan"
TAMING, LDM = "taming.models.vqgan", "ldm.models.autoencoder"


def _native(folder: Path) -> tuple[Path, dict[str, Any]]:
    path = next(path for path in folder.iterdir() if path.stem == "config")
    return path, json.loads(path.read_text())


def _yaml(config: Any, target: str, **params: Any) -> str:
    names = ("resolution", "ch", "num_res_blocks", "z_channels")
    dd = {name: getattr(config, name) for name in names} | {"ch_mult": list(config.ch_mult)}
    sizes = {"n_embed": config.codebook_size, "embed_dim": config.embed_dim}
    return json.dumps({"model": {"target": target, "params": {"ddconfig": dd, **sizes, **params}}})


def _write(kind: str, folder: Path, foreign: Any, target: str, **params: Any) -> None:
    """A checkpoint of that kind beside a configuration that names another class."""
    _, config, _ = foreign.write(kind, folder)
    _native(folder)[0].unlink()
    (folder / "config.yaml").write_text(_yaml(config, target, **params))


@pytest.mark.parametrize("kind", UNCONFIGURED)
def test_without_a_configuration_it_is_said_what_is_assumed(kind: str, foreign: Any, tmp_path: Path) -> None:
    foreign.write(kind, tmp_path)
    assert import_checkpoint(str(tmp_path)).origin["format"] == kind
    assert "assumed" not in import_checkpoint(str(tmp_path)).origin
    _native(tmp_path)[0].unlink()
    origin = import_checkpoint(str(tmp_path)).origin
    assert origin["format"] == UNCONFIGURED[kind]
    assert "no configuration names the model's class" in origin["assumed"]


@pytest.mark.parametrize("kind", UNCONFIGURED)
def test_a_class_that_is_unknown_is_refused(kind: str, foreign: Any, tmp_path: Path) -> None:
    foreign.write(kind, tmp_path)
    path, native = _native(tmp_path)
    if "model" in native:
        native["model"]["class_path"] = "somebody.models.VQModel"
    else:
        native["architectures" if "architectures" in native else "_class_name"] = ["SomebodyVQModel"]
    path.write_text(json.dumps(native))
    with pytest.raises(UserError, match=r"omebody.*which we do not know"):
        import_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "target", "quantizer"),
    [
        ("taming", f"{TAMING}.VQModel", "nearest"),
        ("taming", f"{LDM}.VQModelInterface", "nearest"),
        ("taming", f"{IBQ}.IBQ", "inner_product"),
        ("taming", f"{IBQ}.VQModel", "nearest"),
        ("ibq", f"{TAMING}.VQModel", "nearest"),
        ("gumbel", f"{TAMING}.GumbelVQ", "gumbel"),
    ],
)
def test_the_class_that_a_configuration_names_is_obeyed(
    kind: str, target: str, quantizer: str, foreign: Any, tmp_path: Path
) -> None:
    sides = list(foreign.config_for(kind).attn_resolutions)
    _write(kind, tmp_path, foreign, target)
    path, native = _native(tmp_path)
    native["model"]["params"]["ddconfig"]["attn_resolutions"] = sides
    path.write_text(json.dumps(native))
    imported = import_checkpoint(str(tmp_path))
    assert imported.config.quantizer == quantizer
    assert "assumed" not in imported.origin


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("open-magvit2", f"{TAMING}.VQModel"),
        ("open-magvit2", f"{IBQ}.IBQ"),
        ("maskgit-torch", f"{LDM}.VQModel"),
        ("janus", f"{TAMING}.VQModel"),
        ("ldm", f"{MAGVIT2}.VQModel"),
        ("ldm", f"{LDM}.AutoencoderKL"),
        ("ldm", "src.IBQ.models.ibqgan.IBQSharedEntropy"),
        ("ldm", f"{TAMING}.GumbelVQ"),
        ("gumbel", f"{TAMING}.VQModel"),
    ],
)
def test_a_class_of_another_layout_is_refused(kind: str, target: str, foreign: Any, tmp_path: Path) -> None:
    _write(kind, tmp_path, foreign, target)
    with pytest.raises(UserError, match=r"config\.yaml|do not fit the architecture"):
        import_checkpoint(str(tmp_path))


@pytest.mark.parametrize(("kind", "other"), [("chameleon", "janus"), ("janus", "chameleon")])
def test_cousins_in_transformers_are_not_mixed_up(
    kind: str, other: str, foreign: Any, tmp_path: Path
) -> None:
    foreign.write(kind, tmp_path)
    path, native = _native(tmp_path)
    path.write_text(json.dumps(native).replace(kind, other).replace(kind.capitalize(), other.capitalize()))
    with pytest.raises(UserError):
        import_checkpoint(str(tmp_path))
    path.write_text(json.dumps(native | {"model_type": other}))  # at odds with itself
    with pytest.raises(UserError, match="which we do not know"):
        import_checkpoint(str(tmp_path))


@pytest.mark.parametrize("kind", ["ibq", "open-magvit2", "chameleon", "janus", "maskgit-torch"])
def test_a_setting_that_is_unknown_is_refused_where_it_is_on(kind: str, foreign: Any, tmp_path: Path) -> None:
    foreign.write(kind, tmp_path)
    path, native = _native(tmp_path)
    part = native.get("vq_config", native)
    part = part["model"]["init_args"]["ddconfig"] if "model" in part else part
    part["cosine_lookup"] = False
    path.write_text(json.dumps(native))
    import_checkpoint(str(tmp_path))
    part["cosine_lookup"] = True
    path.write_text(json.dumps(native))
    with pytest.raises(UserError, match="'cosine_lookup' is set"):
        import_checkpoint(str(tmp_path))


@pytest.mark.parametrize("params", [{"remap": "used.npy"}, {"l2_norm": True}, {"use_ema": True}])
@pytest.mark.parametrize("kind", ["ibq", "open-magvit2"])
def test_settings_that_cannot_be_obeyed_are_refused(
    kind: str, params: dict[str, Any], foreign: Any, tmp_path: Path
) -> None:
    foreign.write(kind, tmp_path)
    path, native = _native(tmp_path)
    native["model"]["init_args"] |= params
    path.write_text(json.dumps(native))
    with pytest.raises(UserError):
        import_checkpoint(str(tmp_path))


@pytest.mark.parametrize("kind", ["ibq", "open-magvit2"])
def test_averages_are_taken_where_the_original_code_takes_them(
    kind: str, foreign: Any, tmp_path: Path
) -> None:
    path, config, raw = foreign.write(kind, tmp_path)
    averaged = foreign.random_weights(config, 1)
    tensors, twins = (foreign.foreign_tensors(kind, config, weights) for weights in (raw, averaged))
    tensors |= {f"model_ema.{name.replace('.', '')}": value for name, value in twins.items()}
    foreign.write_torch_zip(path, {"state_dict": tensors})
    file, native = _native(tmp_path)

    def taken(source: str = "") -> str:
        found = import_checkpoint(f"{tmp_path}{source}")
        name = "encoder.conv_in.kernel"
        same = [np.array_equal(found.weights["encoder"][name], w["encoder"][name]) for w in (raw, averaged)]
        assert found.origin["weights"] == ("raw" if same[0] else "ema")
        return str(found.origin["weights"])

    assert taken() == "raw"  # use_ema is false
    assert taken("?weights=ema") == "ema"
    native["model"]["init_args"]["use_ema"] = True
    file.write_text(json.dumps(native))
    assert taken() == "ema"
    assert taken("?weights=raw") == "raw"
    native["model"]["init_args"].pop("use_ema")
    file.write_text(json.dumps(native))
    assert taken() == "raw"
    file.unlink()
    assert taken() == ("ema" if kind == "open-magvit2" else "raw")


JUNK = (None, -1, 0, 3, 1 << 70, 2.5, "x", "", [], [0], [1, "a"], {}, {"a": {}}, True, [[1]], "none")


@pytest.mark.parametrize("kind", UNCONFIGURED)
def test_damaged_configurations_give_an_error_or_the_same_weights(
    kind: str, foreign: Any, tmp_path: Path
) -> None:
    foreign.write(kind, tmp_path)
    path, native = _native(tmp_path)
    right = import_checkpoint(str(tmp_path)).weights
    rng, lines = random.Random(0), 0
    for _ in range(20):
        changed = copy.deepcopy(native)
        _spoil(changed, rng)
        path.write_text(json.dumps(changed))
        try:
            found = import_checkpoint(str(tmp_path)).weights
        except UserError as error:
            lines += str(error).count("\n")
            continue
        for part, named in right.items():
            assert found[part].keys() == named.keys()
            assert all(np.array_equal(found[part][name], value) for name, value in named.items())
    assert lines == 0


def _spoil(tree: dict[str, Any], rng: random.Random) -> None:
    """Replaces one value, however deep it lies, or takes it away."""
    name = rng.choice(sorted(tree))
    if isinstance(tree[name], dict) and tree[name] and rng.random() < 0.9:
        _spoil(tree[name], rng)
    elif rng.random() < 0.2:
        del tree[name]
    else:
        tree[name] = rng.choice(JUNK)


def test_a_codec_without_a_decoder_makes_tokens_alone(foreign: Any, tmp_path: Path) -> None:
    path, config, weights = foreign.write("chameleon", tmp_path / "foreign")
    codec = Codec.load(path.parent, batch_size=1)
    tokens = codec.encode(np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8))
    with pytest.raises(UserError, match="no decoder"):
        codec.decode(tokens)
    saved = codec_checkpoint.save_codec(tmp_path / "ours", config, weights)
    assert saved.fingerprint == codec.fingerprint
    assert not (tmp_path / "ours" / "decoder").exists()
    with pytest.raises(UserError, match="no decoder"):
        Codec.load(tmp_path / "ours").decode(tokens)


def test_tokens_are_known_by_their_encoder_and_codebook(foreign: Any, tmp_path: Path) -> None:
    """The original file of a tokenizer, decoder included, decodes what the one without has made."""
    path, config, weights = foreign.write("chameleon", tmp_path / "without")
    whole = foreign.random_weights(type(config)(**{**vars(config), "has_decoder": True}), 1)
    weights = {**weights, "decoder": whole["decoder"]}
    full = type(config)(**{**vars(config), "has_decoder": True})
    (tmp_path / "with").mkdir()
    tensors = foreign.foreign_tensors("taming", full, weights)
    foreign.write_torch_zip(tmp_path / "with" / "vqgan.ckpt", {"state_dict": tensors})
    (tmp_path / "with" / "vqgan.yaml").write_text(_yaml(full, f"{TAMING}.VQModel", sane_index_shape=True))
    one, other = (codec_checkpoint.read_info(folder) for folder in (path.parent, tmp_path / "with"))
    assert one.fingerprint == other.fingerprint
    assert (one.config.has_decoder, other.config.has_decoder) == (False, True)


def test_a_token_in_two_parts_is_refused(foreign: Any, tmp_path: Path) -> None:
    foreign.write("open-magvit2", tmp_path)
    path, native = _native(tmp_path)
    native["model"]["init_args"] |= {"token_factorization": True, "factorized_bits": [3, 3]}
    path.write_text(json.dumps(native))
    with pytest.raises(UserError, match="token_factorization is set"):
        import_checkpoint(str(tmp_path))
