"""``vqgan inspect`` tells what anything of ours is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.inspecting import format_description

Vqgan = Callable[..., Any]


def described(vqgan: Vqgan, path: Any) -> dict[str, Any]:
    result = vqgan("inspect", path, "--json")
    assert (result.code, result.err) == (0, "")
    text = vqgan("inspect", path)
    assert text.code == 0
    found: dict[str, Any] = json.loads(result.out)
    assert all(name in text.out for name in found)
    return found


def test_codec_by_name(vqgan: Vqgan) -> None:
    found = described(vqgan, "tiny")
    assert (found["kind"], found["downsampling"]) == ("codec", 8)
    assert found["config"]["codebook_size"] == 1024


def test_codec_by_path(vqgan: Vqgan, codec_path: str) -> None:
    found = described(vqgan, codec_path)
    assert (found["kind"], found["path"]) == ("codec", codec_path)
    assert found["config"]["ch_mult"] == [1, 2]


def test_data_set(vqgan: Vqgan, finished: Path) -> None:
    found = described(vqgan, finished / "out")
    assert (found["kind"], found["images"], found["rejects"], found["shards"]) == ("data set", 40, 1, 4)
    assert found["preprocessing"]["geometry"]["image_size"] == 32
    assert "histogram" not in found["codebook"]


def test_unfinished_data_set(vqgan: Vqgan, copied: Path) -> None:
    (copied / "manifest.json").unlink()
    min(copied.glob("data/tokens-*")).unlink()
    found = described(vqgan, copied)
    assert found["kind"] == "unfinished data set"
    assert (found["planned"], found["shards"]) == (41, "3 of 4")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_shard(vqgan: Vqgan, finished: Path, scheme: str) -> None:
    found = described(vqgan, f"{scheme}{finished}/out/data/tokens-00002-of-00004.parquet")
    assert (found["kind"], found["slice"], found["grid"]) == ("shard", "2 of 4", [16, 16])
    assert found["images"] + found["rejects"] in (10, 11)
    assert found["columns"]["key"] == "string"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "nothing there; give a codec"),
        (lambda path: path.mkdir(), "neither a codec (codec.json) nor a data set"),
        (lambda path: path.write_bytes(b""), "not a checkpoint that we know: it is empty"),
        (lambda path: path.write_bytes(b"nonsense" * 100), "not a checkpoint that we know"),
        (lambda path: path.write_bytes(b"PAR1" + b"nonsense" * 100), "not a readable Parquet file"),
    ],
)
def test_nonsense(vqgan: Vqgan, tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    make(tmp_path / "x")
    result = vqgan("inspect", tmp_path / "x")
    assert (result.code, result.out) == (2, "")
    assert says in result.line


def test_other_parquet_files(vqgan: Vqgan, copied: Path) -> None:
    assert "not a token shard" in vqgan("inspect", copied / "plan" / "keys-00000.parquet").line
    assert "not a token shard" in vqgan("inspect", next(copied.glob("rejects/rejects-*"))).line
    shutil.copy(copied / "plan" / "plan.json", copied / "codec.json")
    assert "cannot be read" in vqgan("inspect", copied).line


def test_format_description() -> None:
    assert format_description({"a": 1, "longer": 0.123456, "part": {"b": "x"}, "none": {}}) == (
        "a       1\nlonger  0.1235\npart:\n  b  x\nnone:"
    )
