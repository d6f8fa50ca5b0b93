"""Configurations beside weights: found, read in any encoding, never taken for absent; references in them."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgan import UserError
from vqgan.importers import import_checkpoint
from vqgan.importers.interpolation import find_unresolved, resolve_references
from vqgan.importers.tensors import DamagedError

GOLDEN = Path(__file__).parents[2] / "testdata" / "golden"
YAML = """
codes: 50
model:
  target: taming.models.vqgan.VQModel
  params:
    embed_dim: 12
    n_embed: {codes}
    ddconfig: {dd}
dd:
  double_z: false
  z_channels: 24
  resolution: {size}
  in_channels: 3
  out_ch: 3
  ch: 32
  ch_mult: {mult}
  num_res_blocks: 2
  attn_resolutions: [32, 16]
key: size
mults: [1, 2, 2]
data: {{size: 64, root: '${{oc.env:DATA}}', name: 'f${{data.size}}'}}
"""


def yaml_text(**changed: str) -> str:
    return YAML.format(**{"codes": "50", "dd": "${dd}", "size": "64", "mult": "[1, 2, 2]", **changed})


@pytest.fixture(scope="module")
def checkpoint(foreign: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path, *_ = foreign.write("taming", tmp_path_factory.mktemp("taming"))
    content: bytes = path.read_bytes()
    return content


@pytest.fixture
def weights(checkpoint: bytes, tmp_path: Path) -> Path:
    """A checkpoint of taming's in a folder of its own, without a configuration."""
    path = tmp_path / "model" / "model.ckpt"
    path.parent.mkdir()
    path.write_bytes(checkpoint)
    return path


# Where it lies


@pytest.mark.parametrize(
    ("place", "config"),
    [
        ("m/last.ckpt", "m/config.yaml"),
        ("m/last.ckpt", "m/last.yml"),
        ("m/last.ckpt", "m/any.yaml"),
        ("m/last.ckpt", "m/2020-01-01T00-00-00-project.yaml"),
        ("m/ckpts/last.ckpt", "m/configs/model.yaml"),
        ("m/checkpoints/epoch=1-step=2.ckpt", "m/hparams.yaml"),
        ("m/checkpoints/last.ckpt", "m/configs/2020-project.yaml"),
        ("m/last.ckpt", "m/configs/model.yaml"),
    ],
)
def test_a_configuration_is_found_where_code_bases_leave_it(
    place: str, config: str, weights: Path, tmp_path: Path
) -> None:
    for name, content in ((place, weights.read_bytes()), (config, yaml_text().encode())):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    for source in (tmp_path / place, tmp_path / "m"):
        found = import_checkpoint(str(source))
        assert found.config.resolution == 64
        assert found.origin["configuration"] == Path(config).name


def test_what_was_found_and_not_used_is_said(weights: Path) -> None:
    (weights.parent / "config.yaml").write_text("unrelated: 1\n")
    (weights.parent / "model.yaml").write_text(yaml_text())
    origin = import_checkpoint(str(weights)).origin
    assert origin["configuration"] == "model.yaml"
    assert origin["unused_configurations"] == ["config.yaml"]
    with pytest.raises(UserError, match=r"config\.yaml: it says nothing of a taming-transformers model"):
        import_checkpoint(f"{weights}?config={weights.parent / 'config.yaml'}")


# How it is read


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["config.yaml", "config.json"])
def test_a_configuration_in_any_encoding(encoding: str, name: str, foreign: Any, tmp_path: Path) -> None:
    kind = "vqgan-jax" if name.endswith("json") else "taming"
    path, *_ = foreign.write(kind, tmp_path)
    (tmp_path / "config.json").unlink()
    text = '{"resolution": 64}' if name.endswith("json") else yaml_text()
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert import_checkpoint(str(path)).config.resolution == 64


UNREADABLE: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n",
    "zeros": bytes(100),
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "page": b"<!DOCTYPE html><html></html>",
    "cut short": b'{"resolution": 64, "ch',
    "trailing comma": b'{"resolution": 64,}x',
    "list": b"[1, 2]",
    "text": b'"resolution"',
    "nested": b'{"a":' * 20_000,
    "no text": b'{"resolution": "\xff\xfe"}',
    "odd utf-16": b"\xff\xfe{",
    "large": b'{"resolution": 64}' + b" " * (5 << 20),
}


@pytest.mark.parametrize("kind", [*UNREADABLE, "folder", "dangling link"])
@pytest.mark.parametrize("name", ["config.json", "config.yaml", "../configs/model.yaml"])
def test_a_configuration_that_cannot_be_read_is_never_absent(kind: str, name: str, weights: Path) -> None:
    path = weights.parent / name
    path.parent.mkdir(exist_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to("nothing")
    else:
        path.write_bytes(UNREADABLE[kind])
    with pytest.raises(UserError, match=r"cannot be read as a configuration") as caught:
        import_checkpoint(str(weights))
    assert Path(name).name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_configuration_without_permission(weights: Path) -> None:
    path = weights.parent / "config.json"
    path.write_text("{}")
    path.chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        import_checkpoint(str(weights))


@pytest.mark.parametrize(
    "text", ["a: !!int ''", "a: !!timestamp x", "a: !!bool x", "a: !!python/name:os.system"]
)
def test_values_that_are_not_of_their_tag(text: str, weights: Path) -> None:
    (weights.parent / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml: cannot be read as a configuration \(it is no YAML"):
        import_checkpoint(str(weights))


def test_tuples_of_python(weights: Path) -> None:
    (weights.parent / "config.yaml").write_text(yaml_text(mult="!!python/tuple [1, 2, 2]"))
    assert import_checkpoint(str(weights)).config.ch_mult == (1, 2, 2)


# References


@pytest.mark.parametrize(
    "changed",
    [
        {"codes": "${codes}"},
        {"codes": "${.own}\n    own: 50"},  # which no model knows
        {"size": "${data.size}"},
        {"size": "${..data.size}"},
        {"size": "${data[${key}]}"},
        {"mult": "${mults}"},
        {"mult": "[1, '${mults[1]}', '${mults.2}']"},
        {"dd": "{double_z: false, z_channels: '${dd.z_channels}', ch: 32, ch_mult: '${dd.ch_mult}', "
         "num_res_blocks: 2, resolution: '${dd.resolution}', attn_resolutions: '${dd.attn_resolutions}'}"},
    ],
)  # fmt: skip
def test_references_stand_for_what_they_name(changed: dict[str, str], weights: Path) -> None:
    (weights.parent / "config.yaml").write_text(yaml_text(**changed))
    found = import_checkpoint(str(weights))
    assert (found.config.resolution, found.config.codebook_size) == (64, 50)
    assert found.config.ch_mult == (1, 2, 2)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"size": "${oc.env:RES,64}"}, "depends on a resolver"),
        ({"size": "${env:RES}"}, "depends on a resolver"),
        ({"size": "${nothing.there}"}, "names nothing"),
        ({"size": "${.....x}"}, "names nothing"),
        ({"size": "${dd.resolution}"}, "refers to itself"),
        ({"dd": "${model}"}, "refers to itself"),
        ({"dd": "${hydra:dd}"}, "depends on a resolver"),
        ({"codes": "${model.params.n_embed}"}, "refers to itself"),
        ({"mult": "[1, '${oc.env:X}', 2]"}, "depends on a resolver"),
    ],
)
def test_references_that_stand_for_nothing(changed: dict[str, str], says: str, weights: Path) -> None:
    (weights.parent / "config.yaml").write_text(yaml_text(**changed))
    with pytest.raises(UserError, match=rf"config\.yaml: \w+ has \$.*, which {says}") as caught:
        import_checkpoint(str(weights))
    assert "\n" not in str(caught.value)


def test_an_option_takes_the_place_of_a_reference(weights: Path) -> None:
    (weights.parent / "config.yaml").write_text(yaml_text(size="${oc.env:RES}"))
    assert import_checkpoint(f"{weights}?resolution=128").config.resolution == 128


@pytest.mark.parametrize(
    "data",
    [
        {"a": "${b}", "b": "${a}"},
        {"a": {"b": "${a}"}},
        {"a": ["${a}"]},
        {"a": "x${a}"},
        {"a": "${b.c}", "b": "${a}"},
        {"a": "${${a}}"},
        {"a": "${a.b.c}"},
    ],
)
def test_circles_end(data: Any) -> None:
    assert find_unresolved(resolve_references(data, 1000)) is not None


def test_references_that_stand_for_too_much() -> None:
    levels: dict[str, Any] = {"a0": [1] * 10}
    for level in range(1, 60):
        levels[f"a{level}"] = [f"${{a{level - 1}}}"] * 10
    with pytest.raises(DamagedError, match="more values than"):
        resolve_references(levels, 50_000)
    texts = {"a0": "x" * 10} | {f"a{n}": f"${{a{n - 1}}}${{a{n - 1}}}" for n in range(1, 60)}
    with pytest.raises(DamagedError, match="a text of more than"):
        resolve_references(texts, 50_000)
    chain = {f"a{n}": f"${{a{n + 1}}}" for n in range(5000)}
    with pytest.raises(DamagedError, match="100 times"):
        resolve_references(chain, 50_000)


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(-9, 9), st.text("ab. :$[]}", max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abcd"), inner, max_size=3)
    ),
    max_leaves=12,
)  # fmt: skip


@given(values, st.lists(st.sampled_from("xyz"), min_size=1, max_size=4))
@settings(max_examples=60)
def test_any_tree_behind_any_chain_of_references(value: Any, names: list[str]) -> None:
    """Whatever a value is, a reference to it, to the mapping around it or by a chain gives it unchanged."""
    place = ".".join(f"{name}{number}" for number, name in enumerate(names))
    tree: Any = value
    for part in reversed(place.split(".")):
        tree = {part: tree}
    data = {
        "whole": tree,
        "r0": f"${{whole.{place}}}",
        "r1": "${r0}",
        "r2": "${ho.r1}",
        "ho": {"r1": "${..r1}"},
    }
    found = resolve_references(data, 10_000)
    for name in ("r0", "r1", "r2"):
        assert found[name] == value
    assert found["whole"] == tree


# Whatever its fields are

OTHERS: tuple[Any, ...] = (
    *(None, True, -1, 0, 3, 10**18, 10**30, 0.5, float("inf"), float("nan")),
    *("", "x", "3", [], [None], [1], [[1]], {}, {"x": 1}, [10**30], [0.5], [-1], [1] * 100),
)
TAMING = {
    "model": {
        "target": "taming.models.vqgan.VQModel",
        "params": {
            "embed_dim": 12, "n_embed": 50, "remap": None, "sane_index_shape": False,
            "ddconfig": {
                "double_z": False, "z_channels": 24, "resolution": 32, "in_channels": 3, "out_ch": 3,
                "ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": 2, "attn_resolutions": [16, 8],
                "dropout": 0.0, "attn_type": "vanilla", "use_linear_attn": False, "tanh_out": False,
                "resamp_with_conv": True,
            },
        },
    }
}  # fmt: skip


def _golden(name: str) -> Callable[[Any, Path], Any]:
    def prepare(_: Any, folder: Path) -> Any:
        for path in (GOLDEN / name).iterdir():
            if path.name not in ("expected.npz", "about.json"):
                shutil.copy(path, folder / path.name)
        return json.loads((GOLDEN / name / "config.json").read_text())

    return prepare


def _written(kind: str, config: Any) -> Callable[[Any, Path], Any]:
    def prepare(foreign: Any, folder: Path) -> Any:
        foreign.write(kind, folder)
        return config

    return prepare


FORMATS = {
    "diffusers": _golden("diffusers-vq"),
    "lwm": _golden("lwm"),
    "maskgit": _golden("maskgit-vqgan"),
    "vqgan-jax": _written(
        "vqgan-jax",
        {"resolution": 32, "ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": 2, "attn_resolutions": [8]}
        | {"z_channels": 24, "double_z": False, "embed_dim": 12, "n_embed": 50, "in_channels": 3},
    ),
    "taming": _written("taming", TAMING),
    "latent-diffusion": _written("ldm", {"model": {"target": "ldm.models.autoencoder.VQModel", "params": {
        "embed_dim": 3, "n_embed": 50, "ddconfig": {"ch": 32, "z_channels": 3, "attn_type": "vanilla",
        "ch_mult": [1, 2, 2], "num_res_blocks": 2, "resolution": 32}}}}),
    "llamagen": _written("llamagen", {"resolution": 32}),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_a_field_of_any_type_is_taken_or_refused(name: str, foreign: Any, tmp_path: Path) -> None:
    config = FORMATS[name](foreign, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    expected = import_checkpoint(str(tmp_path))
    rng = random.Random(name)
    refused: list[str] = []
    for owner, field in list(_fields(config)):
        for other in rng.sample(OTHERS, 4):
            original, owner[field] = owner[field], other
            path.write_text(json.dumps(config))
            try:
                found = import_checkpoint(str(tmp_path))
            except UserError as error:
                refused.append(str(error))
            else:
                assert found.weights.keys() == expected.weights.keys()
            owner[field] = original
    assert not any("\n" in line for line in refused)
    assert refused or name == "llamagen"


def test_mutated_yaml_gives_an_error_or_a_model(weights: Path) -> None:
    path = weights.parent / "config.yaml"
    original, rng = yaml_text(mult="[1, '${mults[1]}', 2]").encode(), random.Random(0)
    refused: list[str] = []
    for _ in range(80):
        data = bytearray(original)
        for _ in range(rng.choice([1, 1, 3])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data[: rng.randrange(len(data))]) if rng.random() < 0.2 else bytes(data))
        try:
            assert import_checkpoint(str(weights)).config.ch_mult == (1, 2, 2)
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert not any("\n" in line for line in refused)


def _fields(value: Any) -> Any:
    for name, inner in value.items():
        yield value, name
        if isinstance(inner, dict):
            yield from _fields(inner)
