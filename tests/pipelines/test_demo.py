"""The demo: photographs to tokens and back."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines import demo
from pipelines.demo import _file_name

Vqgan = Callable[..., Any]


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch, codec_path: str) -> None:
    """The demo's own codec takes longer to compile."""
    monkeypatch.setattr(demo, "CODEC", codec_path)
    monkeypatch.setattr(demo, "IMAGE_SIZE", 32)


def test_demo(vqgan: Vqgan, tmp_path: Path) -> None:
    output = tmp_path / "demo"
    result = vqgan("demo", "--output", output)
    assert result.code == 0, result.err
    assert "verified: 1 shards, 0 rejects files: 10 planned, 10 images, 10 rows, 0 rejects" in result.err
    assert "Traceback" not in result.err
    assert str(output) in result.err
    pictures = sorted((output / "pictures").iterdir())
    assert len(pictures) == 10
    for path in pictures:
        with Image.open(path) as image:
            assert image.size == (32, 32)
            assert np.asarray(image).std() > 1
    assert (output / "tokens" / "report.html").stat().st_size > 10_000
    again = vqgan("demo", "--output", output)
    assert again.code == 0
    assert "is complete" in again.err


def test_own_images(vqgan: Vqgan, few: Path, tmp_path: Path) -> None:
    (few / "a").mkdir()
    shutil.move(min(few.glob("*.jpg")), few / "a" / "b.jpg")
    (few / "broken.jpg").write_bytes(b"no image")
    result = vqgan("demo", "--output", tmp_path / "demo", "--input", few)
    assert result.code == 0, result.err
    names = {path.name for path in (tmp_path / "demo" / "pictures").iterdir()}
    assert len(names) == 10
    assert "a%2Fb.jpg-0.png" in names


def test_damaged_result(vqgan: Vqgan, few: Path, tmp_path: Path) -> None:
    assert vqgan("demo", "--output", tmp_path / "demo", "--input", few).code == 0
    (path,) = (tmp_path / "demo" / "tokens").glob("tokens-*")
    path.write_bytes(path.read_bytes() + b"x")
    result = vqgan("demo", "--output", tmp_path / "demo", "--input", few)
    assert result.code == 2
    assert "has changed" in result.err.splitlines()[-1]


def test_missing_images(vqgan: Vqgan, tmp_path: Path) -> None:
    result = vqgan("demo", "--output", tmp_path / "demo", "--input", tmp_path / "none")
    assert (result.code, "none" in result.line) == (2, True)


@pytest.mark.parametrize("key", ["../../etc/passwd", "/abs/x.jpg", "..", ".hidden", "a/b", "x\0y", "ä é.jpg"])
def test_names_stay_inside(key: str) -> None:
    name = _file_name(key, 3)
    assert name.endswith("-3.png")
    assert Path(name).name == name
    assert "\0" not in name


def test_different_keys_have_different_names() -> None:
    keys = ["a/b", "a_b", "a%2Fb", "a\\b"]
    assert len({_file_name(key, 0) for key in keys}) == len(keys)
