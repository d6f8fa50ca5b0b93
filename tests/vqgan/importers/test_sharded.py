"""Checkpoints in several files: joined by their index, lazily, or refused in one line."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqgan import UserError
from vqgan.importers import import_checkpoint, looks_foreign
from vqgan.importers.containers import READERS
from vqgan.importers.torch_files import read_torch_zip

INDEX = {"safetensors": "model.safetensors.index.json", "bin": "pytorch_model.bin.index.json"}


def write_shards(folder: Path, foreign: Any, suffix: str = "safetensors", shards: int = 3) -> dict[str, Any]:
    """A VQGAN over several shards, among tensors of a language model; returns the weight map."""
    folder.mkdir(exist_ok=True)
    config = foreign.config_for("taming")
    tensors = foreign.foreign_tensors("taming", config, foreign.random_weights(config))
    tensors = {f"model.vqmodel.{name}": value for name, value in tensors.items()}
    tensors |= {f"model.layers.{n}.mlp.weight": np.zeros((4, 4), np.float32) for n in range(shards)}
    homes: dict[str, str] = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.{suffix}"
        part = {key: tensors[key] for key in list(tensors)[number::shards]}
        homes |= dict.fromkeys(part, name)
        write = foreign.write_safetensors if suffix == "safetensors" else foreign.write_torch_zip
        write(folder / name, part)
    write_map(folder, homes, suffix)
    return homes


def write_map(folder: Path, homes: Any, suffix: str = "safetensors") -> None:
    (folder / INDEX[suffix]).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": homes}))


def same_weights(first: Any, second: Any) -> bool:
    return all(
        np.array_equal(first.weights[part][name], value)
        for part, named in second.weights.items()
        for name, value in named.items()
    )


@pytest.mark.parametrize("suffix", INDEX)
def test_an_index_s_shards_are_one_checkpoint(suffix: str, foreign: Any, tmp_path: Path) -> None:
    write_shards(tmp_path / "s", foreign, suffix)
    one, _, _ = foreign.write("taming", tmp_path / "one")
    (tmp_path / "one" / "config.json").unlink()
    expected = import_checkpoint(str(one))
    for name in ("", INDEX[suffix], f"model-00002-of-00003.{suffix}"):
        found = import_checkpoint(str(tmp_path / "s" / name))
        assert found.config == expected.config
        assert same_weights(found, expected)
        assert found.origin["file"] == INDEX[suffix]
        assert found.origin["part"] == "model.vqmodel"
        assert found.origin["shards"] == [f"model-0000{n}-of-00003.{suffix}" for n in (1, 2, 3)]
    assert looks_foreign(tmp_path / "s")


def test_only_the_model_s_tensors_are_read(
    foreign: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shards of a large model are never read whole: torch's reader is asked for the VQ part alone."""
    write_shards(tmp_path, foreign, "bin")
    asked: list[str] = []

    def watched(path: Path) -> Any:
        tree = read_torch_zip(path)
        return {name: _watch(tensor, name, asked) for name, tensor in tree.items()}

    monkeypatch.setitem(READERS, "torch zip", watched)  # type: ignore[index]
    import_checkpoint(str(tmp_path))
    assert asked
    assert not any("layers" in name for name in asked)


def _watch(tensor: Any, name: str, asked: list[str]) -> Any:
    def read() -> np.ndarray:
        asked.append(name)
        return tensor.read()

    return dataclasses.replace(tensor, read=read)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<html>", "HTML page"),
        (b'{"weight_map": {"a": "x"}', "no JSON"),
        (b'{"weight_map": [1]}', "no weight_map"),
        (b'{"weight_map": {}}', "no weight_map"),
        (b"[1]", "no weight_map"),
        (b'{"weight_map": {"a": 3}}', "the file of a is no name"),
        (b'{"weight_map": {"a": "../a.bin"}}', "which is no file beside it"),
        (b'{"weight_map": {"a": "/etc/passwd"}}', "which is no file beside it"),
        (b'{"weight_map": {"a": "b\\\\c"}}', "which is no file beside it"),
        (b'{"weight_map": {"a": ".."}}', "which is no file beside it"),
        (b'{"weight_map": {"a": "model.safetensors.index.json"}}', "which is no file beside it"),
        (b'{"weight_map": {"a": "b", "a": "c"}}', "names a twice"),
        (b'{"weight_map": {"a": "none.bin"}}', r"1 of its 1 shards are missing \(none.bin\)"),
        (b'{"weight_map": ' + b"[" * 100_000, "no JSON"),
        (b'{"weight_map": {"a": "\xff.bin"}}', "no utf-8 text"),
    ],
)
def test_an_index_that_is_none(content: bytes, says: str, foreign: Any, tmp_path: Path) -> None:
    write_shards(tmp_path, foreign)
    (tmp_path / INDEX["safetensors"]).write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        import_checkpoint(str(tmp_path))
    assert INDEX["safetensors"] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_an_index_in_any_encoding(encoding: str, foreign: Any, tmp_path: Path) -> None:
    write_shards(tmp_path, foreign)
    expected = import_checkpoint(str(tmp_path))
    path = tmp_path / INDEX["safetensors"]
    path.write_bytes(path.read_text().encode(encoding))
    assert same_weights(import_checkpoint(str(tmp_path)), expected)


def test_index_and_shards_that_do_not_belong_together(foreign: Any, tmp_path: Path) -> None:
    homes = write_shards(tmp_path, foreign)
    first, last = next(iter(homes)), list(homes)[-1]
    write_map(tmp_path, {**homes, "more.weight": homes[first]})
    with pytest.raises(UserError, match=r"1 tensors are not where it says \(more\.weight in model-00001"):
        import_checkpoint(str(tmp_path))
    write_map(tmp_path, {**homes, first: homes[last], last: homes[first]})
    with pytest.raises(UserError, match="do not belong together"):
        import_checkpoint(str(tmp_path))
    (tmp_path / "other.safetensors").write_bytes((tmp_path / homes[first]).read_bytes())
    write_map(tmp_path, {**homes, "more.weight": "other.safetensors"})
    with pytest.raises(UserError, match=r"lies in model-0000\d-of-00003\.safetensors and in other"):
        import_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "it is empty"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")],
)
def test_a_shard_that_is_none(content: bytes, says: str, foreign: Any, tmp_path: Path) -> None:
    write_shards(tmp_path, foreign)
    (tmp_path / "model-00002-of-00003.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=f"model-00002-of-00003.safetensors: .*{says}"):
        import_checkpoint(str(tmp_path))


def test_an_index_among_the_shards(foreign: Any, tmp_path: Path) -> None:
    homes = write_shards(tmp_path, foreign)
    (tmp_path / "inner.index.json").write_text((tmp_path / INDEX["safetensors"]).read_text())
    write_map(tmp_path, {**homes, "a": "inner.index.json"})
    with pytest.raises(UserError, match=r"inner\.index\.json: not a shard"):
        import_checkpoint(str(tmp_path / INDEX["safetensors"]))


def test_shards_without_an_index(foreign: Any, tmp_path: Path) -> None:
    write_shards(tmp_path, foreign)
    (tmp_path / INDEX["safetensors"]).unlink()
    with pytest.raises(UserError, match="without the index"):
        import_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["last.ckpt", "any.bin", "model.safetensors.index.json", "flax_model.msgpack"]
)
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"<html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs"),
    ],
)
def test_a_folder_tells_why_its_weights_are_none(
    name: str, content: bytes, says: str, foreign: Any, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert looks_foreign(tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        import_checkpoint(str(tmp_path))
    assert name in str(caught.value)
    foreign.write_torch_zip(tmp_path / "old.ckpt", {"a": np.ones(3, np.float32)})
    with pytest.raises(UserError, match=name):  # never another file in its place
        import_checkpoint(str(tmp_path))


@pytest.mark.parametrize("suffix", INDEX)
def test_mutated_shards_give_an_error_or_the_same_architecture(
    suffix: str, foreign: Any, tmp_path: Path
) -> None:
    write_shards(tmp_path, foreign, suffix, shards=2)
    expected = import_checkpoint(str(tmp_path))
    path = tmp_path / f"model-00002-of-00002.{suffix}"
    original, rng = path.read_bytes(), random.Random(0)
    refused: list[str] = []
    for number in range(40):
        data = bytearray(original)
        span = len(data) if number % 2 else 6000  # where structure stands
        for _ in range(rng.choice([1, 3])):
            data[rng.randrange(span)] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data[: rng.randrange(len(data))]) if rng.random() < 0.3 else bytes(data))
        try:
            assert import_checkpoint(str(tmp_path)).config == expected.config
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 10
    assert not any("\n" in line for line in refused)


def test_mutated_indexes_give_an_error_or_the_same_weights(foreign: Any, tmp_path: Path) -> None:
    write_shards(tmp_path, foreign)
    expected = import_checkpoint(str(tmp_path))
    path = tmp_path / INDEX["safetensors"]
    original, rng = path.read_bytes(), random.Random(0)
    refused: list[str] = []
    for _ in range(60):
        data = bytearray(original)
        for _ in range(rng.choice([1, 1, 4])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data[: rng.randrange(len(data))]) if rng.random() < 0.3 else bytes(data))
        try:
            assert same_weights(import_checkpoint(str(tmp_path)), expected)
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 30
    assert not any("\n" in line for line in refused)
