"""The demo: photographs to tokens and back."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines import demo
from vqgan.data.splits import is_validation

Vqgan = Callable[..., Any]


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch, codec_path: str) -> None:
    """The demo's own codec takes longer to compile."""
    monkeypatch.setattr(demo, "CODEC", codec_path)
    monkeypatch.setattr(demo, "IMAGE_SIZE", 32)
    monkeypatch.setattr(demo, "CROP_SIZE", 8)
    monkeypatch.setattr(demo, "CROPS_PER_IMAGE", 4)
    model = ("model.layers=1", "model.width=16", "data.samples=2")
    train = ("train.steps=4", "train.evaluate_every=2", "train.save_every=2")
    monkeypatch.setattr(demo, "PRIOR_SETTINGS", (*model, *train))
    monkeypatch.setattr(demo, "SAMPLES", 5)


def test_demo(vqgan: Vqgan, tmp_path: Path) -> None:
    output = tmp_path / "demo"
    result = vqgan("demo", "--output", output)
    assert result.code == 0, result.err
    assert "verified: 1 shard, 0 rejects files: 10 planned, 10 images, 10 rows, 0 rejects" in result.err
    assert "Traceback" not in result.err
    assert str(output) in result.err
    pictures = sorted((output / "pictures" / "images").glob("*.png"))
    assert len(pictures) == 10
    samples = sorted((output / "samples" / "pictures").iterdir())
    assert len(samples) == 5
    for paths, side in ((pictures, 32), (samples, 8)):
        for path in paths:
            with Image.open(path) as image:
                assert image.size == (side, side)
                assert np.asarray(image).std() > 1
    for part in ("tokens", "pictures", "prior", "."):
        assert (output / part / "report.html").stat().st_size > 5_000
    page = (output / "report.html").read_text()
    assert page.count("<img") == 11  # the ten photographs and the sheet of samples
    assert "bits per token" in page
    again = vqgan("demo", "--output", output)
    assert again.code == 0
    assert again.err.count("is complete") == 4


def test_own_images(vqgan: Vqgan, few: Path, tmp_path: Path) -> None:
    (few / "a").mkdir()
    shutil.move(min(few.glob("*.jpg")), few / "a" / "b.jpg")
    (few / "broken.jpg").write_bytes(b"no image")
    result = vqgan("demo", "--output", tmp_path / "demo", "--input", few)
    assert result.code == 0, result.err
    folder = tmp_path / "demo" / "pictures" / "images"
    assert len(list(folder.rglob("*.png"))) == 10
    assert (folder / "a" / "b.jpg.png").is_file()


def test_one_image(vqgan: Vqgan, photos: Path, tmp_path: Path) -> None:
    """It has none to spare for validation."""
    folder = tmp_path / "own"
    folder.mkdir()
    shutil.copy(min(photos.iterdir()), folder / "cat.jpg")
    result = vqgan("demo", "--output", tmp_path / "demo", "--input", folder)
    assert result.code == 0, result.err
    assert len(list((tmp_path / "demo" / "samples" / "pictures").iterdir())) == 5
    assert (tmp_path / "demo" / "report.html").is_file()


def test_damaged_result(vqgan: Vqgan, few: Path, tmp_path: Path) -> None:
    assert vqgan("demo", "--output", tmp_path / "demo", "--input", few).code == 0
    (path,) = (tmp_path / "demo" / "tokens").glob("data/tokens-*")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")  # of the same size: what has another one is made again
    result = vqgan("demo", "--output", tmp_path / "demo", "--input", few)
    assert result.code == 2
    assert "has changed" in result.err.splitlines()[-1]


def test_missing_images(vqgan: Vqgan, tmp_path: Path) -> None:
    result = vqgan("demo", "--output", tmp_path / "demo", "--input", tmp_path / "none")
    assert result.code == 2
    assert "none: cannot be read" in result.err.splitlines()[-1]


@pytest.mark.parametrize(("count", "found"), [(1, 0), (2, 0), (3, 4), (40, 5)])
def test_some_images_are_for_validation_and_some_are_not(
    monkeypatch: pytest.MonkeyPatch, count: int, found: int
) -> None:
    keys = pa.RecordBatch.from_pydict({"key": [f"{number}.jpg" for number in range(count)]})
    monkeypatch.setattr(demo, "all_keys", lambda _: iter([keys]))
    holdout = demo.choose_holdout("tokens")
    validation = sum(is_validation(key, holdout) for key in keys.column("key").to_pylist())
    assert holdout == found
    assert validation == 0 if found == 0 else 0 < validation < count
