"""The demo: photographs to tokens and back, digits to a prior and to new digits."""

import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import demo
from pipelines.demo import DIGITS

Vqgan = Callable[..., Any]


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch, codec_path: str, tmp_path: Path) -> None:
    """The demo's own codec takes longer to compile, and all the digits to encode."""
    pq.write_table(pq.read_table(DIGITS).slice(0, 200), tmp_path / "digits.parquet")
    monkeypatch.setattr(demo, "DIGITS", tmp_path / "digits.parquet")
    monkeypatch.setattr(demo, "CODEC", codec_path)
    monkeypatch.setattr(demo, "IMAGE_SIZE", 32)
    monkeypatch.setattr(demo, "DIGIT_SIZE", 8)
    model = ("model.layers=1", "model.width=16", "data.samples=2", "data.holdout=10")
    train = ("train.steps=4", "train.evaluate_every=2", "train.save_every=2")
    monkeypatch.setattr(demo, "PRIOR_SETTINGS", (*model, *train))
    monkeypatch.setattr(demo, "SAMPLES", 20)


class Links(HTMLParser):
    """Collects what a page leads to and what it shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.links += [found["href"] or ""] if "href" in found else []
        self.images += [found["src"] or ""] if "src" in found else []


def test_demo(vqgan: Vqgan, tmp_path: Path) -> None:
    output = tmp_path / "demo"
    result = vqgan("demo", "--output", output)
    assert result.code == 0, result.err
    assert "verified: 1 shard, 0 rejects files: 10 planned, 10 images, 10 rows, 0 rejects" in result.err
    assert "200 planned, 200 images, 200 rows, 0 rejects" in result.err
    assert re.search(r"\n\d+ of 20 new digits are read as the digit that was asked for", result.err)
    assert "Traceback" not in result.err
    assert str(output) in result.err
    images = sorted((output / "decoded" / "images").glob("*.png"))
    assert len(images) == 10
    samples = sorted((output / "samples" / "images").glob("*.png"))
    assert len(samples) == 20
    for paths, side in ((images, 32), (samples, 8)):
        for path in paths:
            with Image.open(path) as image:
                assert image.size == (side, side)
                assert np.asarray(image).std() > 1
    for part in ("tokens", "decoded", "digits", "prior", "."):
        assert (output / part / "report.html").stat().st_size > 5_000
    text = (output / "report.html").read_text()
    page = Links(text)
    assert len(page.images) == 20 + 2 * 10  # samples, and the photographs beside their reconstructions
    assert all(source.startswith("data:image/png;base64,") for source in page.images)
    assert len(page.links) == 4
    assert all((output / link).is_file() for link in page.links)
    assert "bits a token" in text
    again = vqgan("demo", "--output", output)
    assert again.code == 0
    assert again.err.count("is complete") == 4


def test_own_images(vqgan: Vqgan, few: Path, tmp_path: Path) -> None:
    (few / "a").mkdir()
    shutil.move(min(few.glob("*.jpg")), few / "a" / "b.jpg")
    (few / "broken.jpg").write_bytes(b"no image")
    result = vqgan("demo", "--output", tmp_path / "demo", "--input", few)
    assert result.code == 0, result.err
    folder = tmp_path / "demo" / "decoded" / "images"
    assert len(list(folder.rglob("*.png"))) == 10
    assert (folder / "a" / "b.jpg.png").is_file()


def test_one_image(vqgan: Vqgan, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    shutil.copy(min(photos.iterdir()), folder / "cat.jpg")
    result = vqgan("demo", "--output", tmp_path / "demo", "--input", folder)
    assert result.code == 0, result.err
    assert len(list((tmp_path / "demo" / "samples" / "images").glob("*.png"))) == 20
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


def test_real_digits_are_read_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "DIGITS", DIGITS)
    pixels, classes = demo.real_digits()
    assert pixels.shape == (1797, 64)
    assert (pixels.min(), pixels.max()) == (0, 255)
    own = np.arange(0, 1797, 9)
    votes = demo.read_by_neighbours(pixels[own], pixels, classes, own=own)
    assert np.mean(votes == classes[own]) > 0.97
    # Enlarged to images and shrunk again they are the same pixels.
    large = pixels[own].reshape(-1, 8, 8).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(large[..., None], 3, axis=-1)
    np.testing.assert_allclose(demo.shrink_to_digits(images), pixels[own], atol=1)
