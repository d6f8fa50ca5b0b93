"""A prior folder is there whole or not at all, and damage never passes for a prior."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from vqgan import folders
from vqgan.codec_checkpoint import module_state, module_weights
from vqgan.prior.checkpoint import (
    CodecIdentity,
    PriorInfo,
    load_prior_weights,
    prior_fingerprint,
    read_prior,
    recover_prior,
    require_codec,
    save_prior,
)
from vqgan.prior.config import PriorConfig, prior_parameter_count, prior_parameter_shapes
from vqgan.prior.transformer import PriorTransformer

CONFIG = PriorConfig(codebook_size=12, grid=(2, 3), classes=3, layers=1, heads=1, width=8)
CODEC = CodecIdentity("c0dec" * 12 + "0123", "codecs/f4|512", {"ch": 16}, 32)
CARD = {
    "name": "toy",
    "metrics": {"loss": {"value": 2.5, "samples": 7, "reference": "held back"}},
    "steps": 9,
}
NAMES = ("cat", "dog", "emu")
Weights = dict[str, np.ndarray]


def random_weights(config: PriorConfig, seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    shapes = prior_parameter_shapes(config)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights(CONFIG)


@pytest.fixture(scope="module")
def saved(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> PriorInfo:
    path = tmp_path_factory.mktemp("prior") / "toy"
    return save_prior(path, CONFIG, weights, codec=CODEC, class_names=NAMES, card=CARD)


@pytest.fixture
def copy(saved: PriorInfo, tmp_path: Path) -> Path:
    """The prior in a folder that a test may damage."""
    return Path(shutil.copytree(saved.path, tmp_path / "prior"))


def edit(path: Path, **changes: Any) -> None:
    document = json.loads((path / "prior.json").read_text())
    (path / "prior.json").write_text(json.dumps({**document, **changes}))


def same(left: Weights, right: Weights) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def test_round_trip(saved: PriorInfo, weights: Weights) -> None:
    assert read_prior(saved.path) == saved
    assert (saved.config, saved.codec, saved.class_names, saved.card) == (CONFIG, CODEC, NAMES, CARD)
    loaded = load_prior_weights(saved)
    assert same(loaded, weights)
    assert {value.dtype for value in loaded.values()} == {np.dtype("float32")}
    assert sorted(os.listdir(saved.path)) == ["README.md", "prior.json", "weights"]
    assert all(name.startswith("weights/") for name in saved.files)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        PriorConfig(block="gpt", codebook_size=5, grid=(2, 2), layers=2, heads=2, width=8),
        PriorConfig(kind="masked", codebook_size=5, grid=(2, 2), layers=2, heads=2, width=8, hidden=12),
        dataclasses.replace(CONFIG, condition_codebook_size=4, condition_grid=(1, 2), block="gpt"),
        dataclasses.replace(CONFIG, condition_codebook_size=4, condition_grid=(1, 2)),
        PriorConfig(
            block="gpt", heads=1, width=8, condition_codebook_size=4, condition_grid=(1, 2), start_token=False
        ),
    ],
)
def test_names_and_shapes_are_those_of_the_module(config: PriorConfig) -> None:
    model = nnx.eval_shape(lambda: PriorTransformer(config, rngs=nnx.Rngs(0)))
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    shapes = {".".join(map(str, path)): tuple(param.shape) for path, param in flat}
    assert shapes == prior_parameter_shapes(config)
    assert prior_parameter_count(config) == sum(int(np.prod(shape)) for shape in shapes.values())


def test_saved_weights_fill_a_module(saved: PriorInfo, weights: Weights) -> None:
    abstract = nnx.eval_shape(lambda: PriorTransformer(CONFIG, rngs=nnx.Rngs(0)))
    state = module_state(abstract, load_prior_weights(saved), "here")
    graph, _, others = nnx.split(abstract, nnx.Param, ...)
    assert same(module_weights(nnx.merge(graph, state, others)), weights)


def test_weights_of_another_configuration(tmp_path: Path, weights: Weights) -> None:
    more = {**weights, "other": np.ones(1, np.float32)}
    for config, given, named in (
        (dataclasses.replace(CONFIG, classes=4), weights, "class_embedding"),
        (CONFIG, more, "other"),
    ):
        with pytest.raises(ValueError, match=f"not those of the configuration: {named}$"):
            save_prior(tmp_path / "x", config, given, codec=CODEC)
    assert not list(tmp_path.iterdir())


def test_reading_needs_no_jax(saved: PriorInfo) -> None:
    code = (
        "import sys; from vqgan.prior.checkpoint import read_prior; "
        "print(read_prior(sys.argv[1]).fingerprint, {'jax', 'orbax', 'flax'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(saved.path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [saved.fingerprint, "set()"]


def test_folder_of_a_run(tmp_path: Path, copy: Path, saved: PriorInfo) -> None:
    assert read_prior(tmp_path).path == copy
    assert read_prior(tmp_path).fingerprint == saved.fingerprint


def test_names_of_classes_that_the_prior_has_not(tmp_path: Path, weights: Weights) -> None:
    names = (*NAMES, "fox")
    assert save_prior(tmp_path / "x", CONFIG, weights, codec=CODEC, class_names=names).class_names == NAMES


# Fingerprint


def test_fingerprint() -> None:
    """Recorded with every set of samples: it must not change from release to release."""
    fixed = {"a": np.arange(3, dtype=np.float32)}
    config = PriorConfig(codebook_size=5)
    content = b'{"codebook_size":5}' + b"a[3]" + np.arange(3, dtype="<f4").tobytes()
    assert prior_fingerprint(config, fixed) == hashlib.sha256(content).hexdigest()
    assert prior_fingerprint(dataclasses.replace(config, dropout=0.5), fixed) == prior_fingerprint(
        config, fixed
    )
    changed = np.array(fixed["a"])
    changed[-1] = np.nextafter(changed[-1], np.float32(9))
    others = [
        prior_fingerprint(dataclasses.replace(config, heads=2), fixed),
        prior_fingerprint(config, {"a": changed}),
        prior_fingerprint(config, {"b": fixed["a"]}),
    ]
    assert len({prior_fingerprint(config, fixed), *others}) == 4


# Damage


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"version": 1}', "[" * 100_000])
def test_broken_json(text: str, copy: Path, refused: Any) -> None:
    (copy / "prior.json").write_text(text)
    with refused(r"prior .*: prior\.json cannot be read .*copy the prior again"):
        read_prior(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"codec": None},
        {"codec": {"fingerprint": "x"}},
        {"codec": {**dataclasses.asdict(CODEC), "image_size": "large"}},
        {"class_names": 3},
        {"card": [1]},
        {"files": "all"},
    ],
)
def test_fields_of_another_type(changes: dict[str, Any], copy: Path, refused: Any) -> None:
    edit(copy, **changes)
    with refused(r"prior\.json cannot be read"):
        read_prior(copy)


@pytest.mark.parametrize("config", [None, {"layers": "6"}, {"layer": 6}, {"layers": 0}])
def test_wrong_configuration(config: Any, copy: Path, refused: Any) -> None:
    edit(copy, config=config)
    with refused("layer|expected an object"):
        read_prior(copy)


def test_newer_version(copy: Path, refused: Any) -> None:
    edit(copy, version=2, config={"a field of": "the future"})
    with refused("format version 2, this release reads 1; upgrade"):
        read_prior(copy)


def test_nothing_there(tmp_path: Path, toy_path: Path, refused: Any) -> None:
    with refused("nothing: nothing there; give the folder of a prior"):
        read_prior(tmp_path / "nothing")
    with refused(r"there is no prior\.json"):
        read_prior(tmp_path)
    with refused("this is a codec; give the folder of a prior"):
        read_prior(toy_path)


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_damaged_weights(copy: Path, refused: Any) -> None:
    info = read_prior(copy)
    path = largest(copy / "weights")
    whole = path.read_bytes()
    for damaged, says in (
        (whole[:-7], r"\S+ is \d+ bytes, expected \d+ bytes"),
        (whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :], ""),
    ):
        path.write_bytes(damaged)
        with refused(says or "cannot be read|do not belong together"):
            load_prior_weights(info)
    path.unlink()
    with refused(r"\S+ is missing, expected \d+ bytes; copy the prior again"):
        load_prior_weights(info)


def test_weights_of_another_prior(copy: Path, tmp_path: Path, refused: Any) -> None:
    other = save_prior(tmp_path / "other", CONFIG, random_weights(CONFIG, 1), codec=CODEC)
    shutil.rmtree(copy / "weights")
    shutil.copytree(other.path / "weights", copy / "weights")
    edit(copy, files={})
    with refused(r"do not belong together \(recorded \w{12}, found \w{12}\); copy the prior again"):
        load_prior_weights(read_prior(copy))


def test_numbers_that_are_not_finite(tmp_path: Path, weights: Weights, copy: Path, refused: Any) -> None:
    broken = {**weights, "norm.scale": np.full(8, np.nan, np.float32)}
    with refused(r"norm\.scale has values that are not finite; train with a smaller learning rate"):
        save_prior(tmp_path / "x", CONFIG, broken, codec=CODEC)
    assert not (tmp_path / "x").exists()
    shutil.rmtree(copy / "weights")
    folders.write_arrays(copy / "weights", broken)
    edit(copy, files={}, fingerprint=prior_fingerprint(CONFIG, broken))
    with refused(r"prior .*: norm\.scale has values that are not finite"):
        load_prior_weights(read_prior(copy))


# Replacement


def test_replacement(copy: Path) -> None:
    other = random_weights(CONFIG, 2)
    info = save_prior(copy, CONFIG, other, codec=CODEC)
    assert read_prior(copy) == info
    assert same(load_prior_weights(info), other)
    assert os.listdir(copy.parent) == ["prior"]


def test_interrupted_replacement_keeps_the_old(
    copy: Path, saved: PriorInfo, weights: Weights, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vqgan.folders.write_document", fail)
    with refused("prior .* cannot be written .*No space left on device"):
        save_prior(copy, CONFIG, random_weights(CONFIG, 3), codec=CODEC)
    assert read_prior(copy).fingerprint == saved.fingerprint
    assert same(load_prior_weights(read_prior(copy)), weights)
    assert os.listdir(copy.parent) == ["prior"]


def test_replacement_that_was_killed(copy: Path, saved: PriorInfo) -> None:
    copy.rename(copy.parent / ".prior.1.old")
    (copy.parent / ".prior.2.tmp").mkdir()
    recover_prior(copy)
    assert read_prior(copy).fingerprint == saved.fingerprint
    assert os.listdir(copy.parent) == ["prior"]


def test_nothing_but_a_prior_is_replaced(
    toy_path: Path, tmp_path: Path, weights: Weights, refused: Any
) -> None:
    for path in (toy_path, tmp_path):
        (tmp_path / "thesis.txt").write_text("years of work")
        with refused("something else than a prior; name a folder of its own"):
            save_prior(path, CONFIG, weights, codec=CODEC)


# Codec and card


def test_codec_of_the_prior(saved: PriorInfo, refused: Any) -> None:
    require_codec(saved, CODEC.fingerprint, "renamed")
    with refused(
        rf"prior {saved.path} was trained on tokens of codec codecs/f4\|512 \(c0decc0decc0\), "
        r"not those of tiny \(0123456789ab\); give the codec or data set that belongs to it"
    ):
        require_codec(saved, "0123456789abcdef", "tiny")
    unnamed = dataclasses.replace(saved, codec=dataclasses.replace(CODEC, name=""))
    with refused("codec without a name .*, not those of a codec without a name"):
        require_codec(unnamed, "0123456789abcdef", "")


def test_card(saved: PriorInfo) -> None:
    text = (saved.path / "README.md").read_text()
    assert text.startswith("---\nlicense: unknown\n")
    assert "pipeline_tag: unconditional-image-generation" in text
    for line in (
        "# toy",
        f"Its tokens are those of the codec codecs/f4\\|512, fingerprint `{CODEC.fingerprint}`.",
        "An autoregressive transformer over grids of 2 × 3 tokens of 12 codes, with 3 classes: "
        "1 layers, 1 heads, width 8, 0.00 million parameters.",
        "- **Steps**: 9",
        "| loss | 2.5000 | 7 | held back |",
        f"Fingerprint: `{saved.fingerprint}`",
    ):
        assert line in text
