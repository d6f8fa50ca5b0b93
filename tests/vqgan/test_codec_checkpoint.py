"""A codec folder is there whole or not at all, and damage never passes for a codec."""

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgan import codec_checkpoint, folders
from vqgan.channels import ChannelsConfig
from vqgan.codec_checkpoint import (
    PARTS,
    codec_fingerprint,
    load_weights,
    module_state,
    module_weights,
    read_info,
    recover_codec,
    resolve_codec,
    save_codec,
)
from vqgan.config import ModelConfig
from vqgan.errors import UserError
from vqgan.model.layers import conv
from vqgan.token_layouts import ScalesConfig, ViTConfig

Weights = dict[str, Any]

FINGERPRINT_SCRIPT = """
import numpy as np
from vqgan.codec_checkpoint import codec_fingerprint
from vqgan.channels import ChannelsConfig
from vqgan.config import ModelConfig
encoder = {"b.kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.ones(3, np.float32)}
quantizer = {"codebook": np.linspace(0, 1, 8, dtype=np.float32).reshape(4, 2)}
print(codec_fingerprint(ModelConfig(codebook_size=4, embed_dim=2), encoder, quantizer))
"""
# Recorded in every shard ever written: if this changes, no stored shard fits its codec any more.
FINGERPRINT = "69a4d0587343c2790d582c4d1a0d8e585f6911d45d7503407ca6f1bcb3829020"


@pytest.fixture
def copy(toy_path: Path, tmp_path: Path) -> Path:
    """The toy codec in a folder that a test may damage."""
    return Path(shutil.copytree(toy_path, tmp_path / "codec"))


def same(left: Weights, right: Weights) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def edit(path: Path, **changes: Any) -> None:
    document = json.loads((path / "codec.json").read_text())
    (path / "codec.json").write_text(json.dumps({**document, **changes}))


def test_round_trip(toy_path: Path, toy_config: ModelConfig, toy_weights: Weights) -> None:
    info = read_info(toy_path)
    loaded = load_weights(info, PARTS)
    assert info.config == toy_config
    assert all(same(loaded[part], toy_weights[part]) for part in PARTS)
    assert {value.dtype for part in PARTS for value in loaded[part].values()} == {np.dtype("float32")}


def test_information_read_is_information_returned(
    tmp_path: Path, toy_config: ModelConfig, toy_weights: Weights
) -> None:
    card = {"data": "toys", "psnr": 20.5}
    info = save_codec(tmp_path / "new" / "codec", toy_config, toy_weights, card=card)
    assert read_info(tmp_path / "new" / "codec") == info
    assert info.card == card
    assert os.listdir(tmp_path / "new") == ["codec"]


def test_folder_may_be_moved(toy_weights: Weights, copy: Path) -> None:
    moved = copy.rename(copy.with_name("elsewhere"))
    assert same(load_weights(read_info(moved), ["encoder"])["encoder"], toy_weights["encoder"])


def test_float16_storage(tmp_path: Path, toy_config: ModelConfig, toy_weights: Weights) -> None:
    info = save_codec(tmp_path / "half", toy_config, toy_weights, storage=np.float16)
    loaded = load_weights(info, PARTS)
    rounded = {name: value.astype(np.float16) for name, value in toy_weights["encoder"].items()}
    assert same(loaded["encoder"], rounded)
    assert not same(loaded["encoder"], toy_weights["encoder"])
    assert {value.dtype for value in loaded["encoder"].values()} == {np.dtype("float32")}
    assert info.fingerprint == codec_fingerprint(toy_config, loaded["encoder"], loaded["quantizer"])
    assert info.fingerprint != codec_fingerprint(toy_config, toy_weights["encoder"], toy_weights["quantizer"])


def test_all_parts_are_wanted(tmp_path: Path, toy_config: ModelConfig, toy_weights: Weights) -> None:
    with pytest.raises(ValueError, match="expected the parts"):
        save_codec(tmp_path / "codec", toy_config, {"encoder": toy_weights["encoder"]})


# Fingerprint


def test_fingerprint_is_the_same_in_every_process_and_release() -> None:
    for seed in ("0", "1"):
        command = [sys.executable, "-c", FINGERPRINT_SCRIPT]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == FINGERPRINT


def toy_fingerprint(config: ModelConfig, weights: Weights) -> str:
    return codec_fingerprint(config, weights["encoder"], weights["quantizer"])


def test_fingerprint_ignores_the_order_of_names(toy_config: ModelConfig, toy_weights: Weights) -> None:
    turned = {part: dict(reversed(weights.items())) for part, weights in toy_weights.items()}
    assert toy_fingerprint(toy_config, turned) == toy_fingerprint(toy_config, toy_weights)


@pytest.mark.parametrize("part", ["encoder", "quantizer"])
def test_fingerprint_sees_the_last_bit_of_every_weight(
    part: str, toy_config: ModelConfig, toy_weights: Weights
) -> None:
    before = toy_fingerprint(toy_config, toy_weights)
    for name, value in toy_weights[part].items():
        changed = np.array(value)
        changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(9))
        weights = {**toy_weights, part: {**toy_weights[part], name: changed}}
        assert toy_fingerprint(toy_config, weights) != before, name


def test_fingerprint_sees_names_and_shapes(toy_config: ModelConfig) -> None:
    one, other = {"a": np.ones((2, 3), np.float32)}, {"a": np.ones((3, 2), np.float32)}
    renamed = {"b": one["a"]}
    assert len({codec_fingerprint(toy_config, weights, {}) for weights in (one, other, renamed)}) == 3


CHANGES: dict[str, Any] = {
    "channels": ChannelsConfig(3, input_ranges=((0, 1), (0, 1), (-1, 1))),
    "resolution": 32,
    "ch": 16,
    "ch_mult": (1, 4),
    "num_res_blocks": 2,
    "attn_resolutions": (8,),
    "mid_attention": False,
    "z_channels": 16,
    "double_z": True,
    "embed_dim": 8,
    "codebook_size": 64,
    "resamp_with_conv": False,
    "norm_groups": 2,
    "input_range": (0.0, 1.0),
    "quantizer": "gumbel",
    "attention": "linear",
    "clip_output": True,
    "bias": False,
    "shortcut_from_branch": True,
    "pool_downsample": True,
    "mid_blocks": 3,
    "decoder_res_blocks": 3,
    "encoder_out_kernel": 1,
    "stem_channels": 24,
    "has_decoder": False,
    "symmetric_downsample": True,
    "depth_to_space": True,
    "adaptive_norm": True,
    "fsq_bound": "atanh",
    "quant_conv_kernel": 3,
    "spatial_norm": True,
    "haar_patch": 2,
    "halvings": 0,
    "decoder_attn_levels": (0,),
    "decoder_ch": 16,
    "decoder_added_blocks": 1,
    "scales": ScalesConfig((1, 2, 4)),
    "vit": ViTConfig(tokens=16, patch=8, decoder_patch=8),
}
# What both configurations have where a field does not go with the toy's.
BESIDE: dict[str, dict[str, Any]] = {
    "spatial_norm": {"ch": 32},
    "scales": {"quantizer": "scales", "scales": ScalesConfig((1, 4))},
    "vit": {"quant_conv": False, "vit": ViTConfig(tokens=32, patch=8, decoder_patch=8)},
}


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(ModelConfig) if field.name != "fsq_levels"]
)
def test_fingerprint_sees_every_field_that_determines_tokens(
    name: str, toy_config: ModelConfig, toy_weights: Weights
) -> None:
    config = dataclasses.replace(toy_config, **BESIDE.get(name, {}))
    changed = dataclasses.replace(config, **{name: CHANGES.get(name, 0.5)})
    differs = toy_fingerprint(changed, toy_weights) != toy_fingerprint(config, toy_weights)
    assert differs == (name not in ("dropout", "has_decoder", "decoder_ch", "decoder_added_blocks"))


def test_fingerprint_sees_the_order_of_levels(toy_config: ModelConfig, toy_weights: Weights) -> None:
    """Which means nothing but to ``fsq``."""
    one, other = (
        dataclasses.replace(toy_config, quantizer="fsq", fsq_levels=levels)
        for levels in ((2, 2, 2, 4), (4, 2, 2, 2))
    )
    weights = {**toy_weights, "quantizer": {}}
    assert toy_fingerprint(one, weights) != toy_fingerprint(other, weights)


def test_fingerprint_ignores_fields_at_their_default(
    toy_config: ModelConfig, toy_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a codec of today under a release with one field more."""
    before = toy_fingerprint(toy_config, toy_weights)
    plain = codec_checkpoint.to_dict
    monkeypatch.setattr(codec_checkpoint, "to_dict", lambda config: {**plain(config), "new_field": 3})
    assert toy_fingerprint(toy_config, toy_weights) == before


def test_fingerprint_ignores_the_decoder(
    tmp_path: Path, toy_path: Path, toy_config: ModelConfig, toy_weights: Weights
) -> None:
    decoder = {name: value + 1 for name, value in toy_weights["decoder"].items()}
    info = save_codec(tmp_path / "codec", toy_config, {**toy_weights, "decoder": decoder})
    assert info.fingerprint == read_info(toy_path).fingerprint
    assert info.decoder_sha256 != read_info(toy_path).decoder_sha256


# Quantizers without weights


@pytest.fixture
def without_codebook(tmp_path: Path, toy_config: ModelConfig, toy_weights: Weights) -> Path:
    config = dataclasses.replace(toy_config, quantizer="lfq", codebook_size=16)
    return save_codec(tmp_path / "lfq", config, {**toy_weights, "quantizer": {}}).path


def test_round_trip_without_a_codebook(without_codebook: Path, toy_weights: Weights) -> None:
    info = read_info(without_codebook)
    loaded = load_weights(info, PARTS)
    assert loaded["quantizer"] == {}
    assert all(same(loaded[part], toy_weights[part]) for part in ("encoder", "decoder"))
    assert info.fingerprint == toy_fingerprint(info.config, {**toy_weights, "quantizer": {}})
    assert not any(name.startswith("quantizer") for name in info.files)


def test_configuration_says_whether_there_must_be_a_codebook(
    without_codebook: Path, toy_path: Path, refused: Any
) -> None:
    edit(without_codebook, config=json.loads((toy_path / "codec.json").read_text())["config"])
    with refused("the weights in quantizer/ cannot be read"):
        load_weights(read_info(without_codebook), ["quantizer", "decoder"])


def test_a_codebook_that_is_missing_is_noticed(
    tmp_path: Path, toy_config: ModelConfig, toy_weights: Weights
) -> None:
    with pytest.raises(ValueError, match="empty"):
        save_codec(tmp_path / "codec", toy_config, {**toy_weights, "quantizer": {}})
    assert not list(tmp_path.iterdir())


# Damage


def test_resolve(toy_path: Path, tmp_path: Path, refused: Any) -> None:
    assert resolve_codec(toy_path) == resolve_codec(str(toy_path)) == toy_path
    assert (resolve_codec("tiny") / "codec.json").is_file()
    with refused("nothing there; give a codec folder, .*tiny"):
        resolve_codec(tmp_path / "nothing")
    assert resolve_codec(tmp_path) is None  # it may be another code base's
    with refused("no codec and no checkpoint in this folder"):
        read_info(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", "{}", '{"version": 1}', "[" * 100_000, '{"version": 1, "config": {}}'],
)
def test_broken_json(text: str, copy: Path, refused: Any) -> None:
    (copy / "codec.json").write_text(text)
    with refused(r"codec\.json cannot be read .*copy the codec again"):
        read_info(copy)


def test_json_that_is_not_text(copy: Path, refused: Any) -> None:
    (copy / "codec.json").write_bytes(b"\xff\xfe\x00")
    with refused("cannot be read"):
        read_info(copy)


@settings(max_examples=50)
@given(st.data())
def test_truncated_json_is_refused(toy_path: Path, tmp_path_factory: Any, data: st.DataObject) -> None:
    text = (toy_path / "codec.json").read_text().rstrip()
    folder = tmp_path_factory.mktemp("truncated")
    (folder / "codec.json").write_text(text[: data.draw(st.integers(0, len(text) - 1))])
    with pytest.raises(UserError, match="cannot be read"):
        read_info(folder)


@pytest.mark.parametrize("config", [None, [], 3, "ch", {"ch": "8"}, {"chh": 8}, {"ch": 0}])
def test_wrong_configuration(config: Any, copy: Path, refused: Any) -> None:
    edit(copy, config=config)
    with refused("ch|expected an object"):
        read_info(copy)


def test_future_version(copy: Path, refused: Any) -> None:
    edit(copy, version=2, config={"a field of": "the future"})
    with refused("format version 2, this release reads 1; upgrade"):
        read_info(copy)


@pytest.mark.parametrize("part", PARTS)
def test_missing_part(part: str, copy: Path, refused: Any) -> None:
    shutil.rmtree(copy / part)
    with refused(rf"{part}/\S+ is missing, expected \d+ bytes; copy the codec again"):
        load_weights(read_info(copy), [part])


def test_codec_that_is_replaced_while_it_is_read(copy: Path, refused: Any) -> None:
    info = read_info(copy)
    weights = load_weights(info, PARTS)
    weights["decoder"]["decoder.conv_out.bias"] = weights["decoder"]["decoder.conv_out.bias"] + 1
    save_codec(copy, info.config, weights)
    with refused("it was replaced while it was being read, as a training does"):
        load_weights(info, PARTS)
    load_weights(read_info(copy), PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_missing_part_of_a_folder_without_sizes(part: str, copy: Path, refused: Any) -> None:
    edit(copy, files={})
    shutil.rmtree(copy / part)
    with refused(rf"the weights in {part}/ cannot be read .*copy the codec again"):
        load_weights(read_info(copy), [part])


def data_files(folder: Path) -> list[Path]:
    """Files of an Orbax item, the largest first; markers that hold nothing are left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    return sorted(files, key=lambda path: (-path.stat().st_size, path.name))


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flip(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


READS = [("encoder", "quantizer"), ("quantizer", "decoder")]  # as for encoding and for decoding


@pytest.mark.parametrize("damage", [truncate, flip])
@pytest.mark.parametrize("parts", READS)
def test_damage_is_refused_or_harmless(
    damage: Callable[[bytes, random.Random], bytes],
    parts: tuple[str, ...],
    copy: Path,
    toy_weights: Weights,
) -> None:
    rng, info, refusals = random.Random(4), read_info(copy), []
    for path in (path for part in parts for path in data_files(copy / part)):
        whole = path.read_bytes()
        path.write_bytes(damage(whole, rng))
        try:
            loaded = load_weights(info, parts)
            assert all(same(loaded[part], toy_weights[part]) for part in parts), path.name
        except UserError as error:
            refusals.append(str(error))
        path.write_bytes(whole)
    assert len(refusals) >= 4
    assert not any("\n" in refusal for refusal in refusals)


@pytest.mark.parametrize(("part", "reads"), [("encoder", 0), ("decoder", 1)])
def test_flipped_weight_is_refused(part: str, reads: int, copy: Path, refused: Any) -> None:
    """One bit in the file that holds the numbers, which TensorStore does not check."""
    largest = data_files(copy / part)[0]
    damaged = bytearray(largest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    largest.write_bytes(damaged)
    with refused("cannot be read|do not belong together"):
        load_weights(read_info(copy), READS[reads])


@pytest.mark.parametrize(
    ("part", "reads"), [("encoder", 0), ("quantizer", 0), ("quantizer", 1), ("decoder", 1)]
)
def test_part_of_another_codec_is_refused(
    part: str,
    reads: int,
    copy: Path,
    tmp_path: Path,
    toy_config: ModelConfig,
    toy_weights: Weights,
    refused: Any,
) -> None:
    other = {name: value + 1 for name, value in toy_weights[part].items()}
    save_codec(tmp_path / "other", toy_config, {**toy_weights, part: other})
    shutil.rmtree(copy / part)
    shutil.copytree(tmp_path / "other" / part, copy / part)
    edit(copy, files={})  # sizes may differ by chance of compression; the sums are what counts here
    with refused(r"do not belong together \(recorded \w{12}, found \w{12}\); copy the codec again"):
        load_weights(read_info(copy), READS[reads])


def test_folder_without_a_sum_of_the_codebook_can_be_read(copy: Path) -> None:
    edit(copy, quantizer_sha256="")
    assert load_weights(read_info(copy), ["quantizer"])["quantizer"]["codebook"].shape == (32, 4)


# Interruption


@pytest.fixture
def failing_save(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes the third part's save raise."""

    def arm(error: BaseException) -> None:
        save, calls = ocp.Checkpointer.save, []

        def fail(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            if len(calls) == 3:
                raise error
            return save(self, *args, **kwargs)

        monkeypatch.setattr(ocp.Checkpointer, "save", fail)

    return arm


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(28, "No space left on device"), UserError),
        (ValueError("INTERNAL: Error writing: No space left on device"), UserError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ValueError("a mistake of ours"), ValueError),
    ],
)
def test_interrupted_save_leaves_nothing(
    error: BaseException,
    raised: type[BaseException],
    tmp_path: Path,
    toy_config: ModelConfig,
    toy_weights: Weights,
    failing_save: Callable[[BaseException], None],
) -> None:
    failing_save(error)
    with pytest.raises(raised):
        save_codec(tmp_path / "codec", toy_config, toy_weights)
    assert not list(tmp_path.iterdir())


def test_interrupted_replacement_keeps_the_old(
    copy: Path,
    toy_config: ModelConfig,
    toy_weights: Weights,
    failing_save: Callable[[BaseException], None],
    refused: Any,
) -> None:
    before = read_info(copy)
    failing_save(OSError("no space"))
    with refused("codec .* cannot be written .no space.; free space or check permissions"):
        save_codec(copy, dataclasses.replace(toy_config, resolution=32), toy_weights)
    assert read_info(copy) == before
    assert load_weights(before, PARTS)
    assert os.listdir(copy.parent) == ["codec"]


def test_replacement(copy: Path, toy_config: ModelConfig, toy_weights: Weights) -> None:
    info = save_codec(copy, dataclasses.replace(toy_config, resolution=32), toy_weights)
    assert read_info(copy) == info
    assert info.config.resolution == 32
    assert load_weights(info, PARTS)
    assert os.listdir(copy.parent) == ["codec"]


def test_old_codec_stays_until_the_new_one_is_complete(
    copy: Path, toy_config: ModelConfig, toy_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the moment of the exchange both are whole: the old at its place, the new beside it."""
    seen: list[tuple[str, set[str]]] = []
    before, replace = read_info(copy), folders.replace_folder

    def look(new: Path, path: Path) -> None:
        seen.append((read_info(path).fingerprint, {item.name for item in new.iterdir()}))
        replace(new, path)

    monkeypatch.setattr(folders, "replace_folder", look)
    save_codec(copy, dataclasses.replace(toy_config, resolution=32), toy_weights)
    assert seen == [(before.fingerprint, {*PARTS, "codec.json", "README.md"})]


def test_failing_exchange_puts_the_old_back(
    copy: Path,
    toy_config: ModelConfig,
    toy_weights: Weights,
    refused: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, rename = read_info(copy), Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError("cannot be renamed")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with refused("cannot be renamed"):
        save_codec(copy, toy_config, toy_weights)
    assert read_info(copy) == before
    assert os.listdir(copy.parent) == ["codec"]


def test_nothing_but_a_codec_is_replaced(
    tmp_path: Path, toy_config: ModelConfig, toy_weights: Weights, refused: Any
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis.txt"):
        with refused("something else than a codec; name a folder of its own"):
            save_codec(path, toy_config, toy_weights)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_empty_folder_is_taken(tmp_path: Path, toy_config: ModelConfig, toy_weights: Weights) -> None:
    (tmp_path / "codec").mkdir()
    info = save_codec(tmp_path / "codec", toy_config, toy_weights)
    assert read_info(tmp_path / "codec") == info


# Strict loading


def abstract_conv() -> nnx.Conv:
    return nnx.eval_shape(lambda: conv(2, 3, 1, dtype=jnp.float32, rngs=nnx.Rngs(0)))


def test_state_of_named_weights() -> None:
    weights = {"kernel": np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3), "bias": np.ones(3, np.float32)}
    module = nnx.merge(nnx.graphdef(abstract_conv()), module_state(abstract_conv(), weights, "here"))
    assert same(module_weights(module), weights)


def test_strict_loading_lists_both_sides(refused: Any) -> None:
    weights = {"kernel": np.ones((1, 1, 3, 2), np.float32), "scale": np.ones(3, np.float32)}
    expected = (
        r"^here: weights do not fit the configuration: missing bias; unknown scale; "
        r"kernel is \(1, 1, 3, 2\), expected \(1, 1, 2, 3\)$"
    )
    with refused(expected):
        module_state(abstract_conv(), weights, "here")


def test_codec_whose_replacement_was_killed(
    tmp_path: Path, toy_config: ModelConfig, toy_weights: Any
) -> None:
    path = save_codec(tmp_path / "codec", toy_config, toy_weights).path
    path.rename(tmp_path / ".codec.123.old")
    (tmp_path / ".codec.456.tmp").mkdir()
    recover_codec(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["codec"]
    assert load_weights(read_info(path), ("decoder",))["decoder"].keys() == toy_weights["decoder"].keys()
    (tmp_path / ".codec.789.old").mkdir()
    recover_codec(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["codec"]


def test_run_folder_stands_for_its_codec(tmp_path: Path, toy_config: ModelConfig, toy_weights: Any) -> None:
    saved = save_codec(tmp_path / "run" / "codec", toy_config, toy_weights)
    assert read_info(tmp_path / "run").fingerprint == saved.fingerprint
