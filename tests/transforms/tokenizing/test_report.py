"""The report: one page, balanced, self-contained, and safe whatever the keys."""

import base64
import io
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.tokenize_images import TokenizeConfig, plan_tokenize
from transforms.tokenizing.report import REPORT_BATCH_SIZE, Pair, render_token_page, sample_pairs
from vqgan.codec import Codec

Configure = Callable[..., TokenizeConfig]
Run = Callable[[TokenizeConfig], dict[str, Any]]
VOID = {"meta", "img", "br", "hr", "link", "input", "line", "rect"}
HOSTILE = "<script>alert('x')</script>\"'><img src=http://evil/x>&amp;.jpg"


class Page(HTMLParser):
    """Checks nesting; remembers texts, images and where links lead."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def pixels(image: dict[str, str | None]) -> np.ndarray:
    kind, _, data = (image["src"] or "").partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as opened:
        return np.asarray(opened)


@pytest.fixture
def made(configure: Configure, run: Run, photos: Path, tmp_path: Path) -> TokenizeConfig:
    shutil.copytree(photos, tmp_path / "in")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no image")
    config = configure(tmp_path / "in", report=True)
    run(config)
    return config


def test_page(made: TokenizeConfig, codec: Codec) -> None:
    text = (Path(made.output) / "report.html").read_text()
    page = Page(text)
    assert len(page.images) == 2 * REPORT_BATCH_SIZE  # a batch of originals, each with its reconstruction
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "http" not in text
    assert not {"script", "iframe", "link", "object"} & set(page.tags)
    assert "decode: UnidentifiedImageError" in page.text
    assert "20 images as tokens" in page.text
    for original, reconstruction in zip(page.images[::2], page.images[1::2], strict=True):
        decoded = codec.decode(codec.encode(pixels(original)[None]))[0]
        np.testing.assert_array_equal(decoded, pixels(reconstruction))


def test_samples_come_from_all_slices(made: TokenizeConfig, codec: Codec) -> None:
    pairs = sample_pairs([plan_tokenize(made).task], codec, images=6)
    assert len({pair.key for pair in pairs}) == 6


@pytest.fixture
def manifest(configure: Configure, run: Run, photos: Path) -> dict[str, Any]:
    return run(configure(photos))


def test_hostile_keys(manifest: dict[str, Any]) -> None:
    square = np.zeros((8, 8, 3), np.uint8)
    manifest["reject_reasons"] = {f"decode: {HOSTILE}": 3}
    manifest["codec"]["name"] = HOSTILE
    page = Page(render_token_page(manifest, [Pair(HOSTILE, square, square, 10.0)]))
    assert not {"script", "iframe"} & set(page.tags)
    assert len(page.images) == 2
    assert all(link.startswith("data:") for link in page.links)
    assert page.images[0]["alt"] == f"original of {HOSTILE}"
    assert page.text.count(HOSTILE) >= 2


def test_nothing_to_show(manifest: dict[str, Any]) -> None:
    manifest["codebook"]["histogram"] = [0] * 64
    page = Page(render_token_page(manifest, []))
    assert page.images == []
    assert "There is no image to show" in page.text
    assert "No tokens." in page.text
    assert "nan" not in page.text


def test_perfect_reconstruction(manifest: dict[str, Any]) -> None:
    square = np.zeros((8, 8, 3), np.uint8)
    assert "inf dB" in Page(render_token_page(manifest, [Pair("a", square, square, float("inf"))])).text
