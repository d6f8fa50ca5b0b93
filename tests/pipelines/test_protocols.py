"""``vqgan evaluate --protocol``: what it fixes, the line to cite, and what contradicts it."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipelines.evaluating.protocols import PROTOCOLS
from transforms.images.crops import Geometry
from vqgan.codec_checkpoint import read_info

from .conftest import Vqgan

NAME = "imagenet-50k"
PUBLISHED = PROTOCOLS[NAME]


def mean_colour(images: np.ndarray) -> np.ndarray:
    return images.mean(axis=(1, 2), dtype=np.float32)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol over ten images at 32 pixels, by a network of three features that passes for FID's."""
    geometry = dataclasses.replace(PUBLISHED.geometry, image_size=32)
    monkeypatch.setitem(PROTOCOLS, NAME, dataclasses.replace(PUBLISHED, images=10, geometry=geometry))

    def load(name: str, path: Path | None) -> Any:
        distance = "FID" if path is not None else "another distance"
        return SimpleNamespace(name=name, distance=distance, dimension=3, features=mean_colour)

    monkeypatch.setattr("vqgan.features.load_features", load)


@pytest.fixture
def evaluate(vqgan: Vqgan, few: Path, codec_path: str, tmp_path: Path) -> Vqgan:
    """Measures ten photographs by the protocol; later flags override."""

    def evaluate(*flags: Any) -> Any:
        what = ["--codec", codec_path, "--input", few, "--protocol", NAME, "--output", tmp_path / "out"]
        metrics = ["--metrics", "psnr,ssim,frechet", "--features-weights", "fid.pth", "--quiet"]
        return vqgan("evaluate", *what, *metrics, *flags)

    return evaluate


def test_a_line_to_cite(evaluate: Vqgan, codec_path: str, tmp_path: Path) -> None:
    result = evaluate()
    assert result.code == 0, result.err
    line = result.out.splitlines()[-1]
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["citations"] == [line]
    metrics = found["codecs"][0]["metrics"]
    start = (
        f"{NAME} v1: codec {read_info(codec_path).fingerprint[:12]}, n 10, fid {metrics['fid']['value']:.4g}"
    )
    assert line.startswith(f"{start}, psnr {metrics['psnr']['value']:.4g} dB, ssim ")
    assert line.endswith(f"(vqgan-pipelines {found['versions']['vqgan-pipelines']})")
    preprocessing = found["reference"]["preprocessing"]
    assert preprocessing["geometry"]["filter"] == "adm"
    assert preprocessing["geometry"]["image_size"] == 32
    assert preprocessing["decode"]["jpeg_draft"] is False
    assert metrics["fid"]["images"] == 10


def test_without_it_nothing_is_cited(vqgan: Vqgan, few: Path, codec_path: str) -> None:
    flags = ["--metrics", "psnr", "--image-size", 32, "--quiet"]
    result = vqgan("evaluate", "--codec", codec_path, "--input", few, *flags)
    assert result.code == 0
    assert NAME not in result.out


def test_rejects_leave_nothing_to_cite(evaluate: Vqgan, few: Path) -> None:
    min(few.glob("*.jpg")).write_bytes(b"no image")
    result = evaluate()
    assert result.code == 0
    assert result.out.splitlines()[-1].startswith(f"{NAME} v1: nothing to cite, 9 of 10 images were measured")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--image-size", 128], "--image-size 128: --protocol imagenet-50k fixes it at 32; leave it out"),
        (
            ["--image-size", "32x64"],
            "--image-size 32x64: --protocol imagenet-50k fixes it at 32",
        ),
        (["--split", "validation"], "--split validation: --protocol imagenet-50k fixes it at all"),
        (["--limit", 5], "--limit 5: --protocol imagenet-50k takes all images"),
        (["--features", "efficientnet-lite0"], "fixes it at inception"),
        (["--metrics", "psnr"], "is about FID; add frechet"),
    ],
)
def test_contradictions(evaluate: Vqgan, flags: list[Any], said: str) -> None:
    result = evaluate(*flags)
    assert result.code == 2
    assert said in result.line


def test_what_it_fixes_may_be_said(evaluate: Vqgan) -> None:
    assert evaluate("--image-size", 32, "--split", "all", "--features", "inception").code == 0


def test_the_wrong_images_or_weights(
    vqgan: Vqgan, evaluate: Vqgan, few: Path, codec_path: str, tmp_path: Path
) -> None:
    flags = ["--codec", codec_path, "--input", few, "--protocol", NAME, "--metrics", "frechet", "--quiet"]
    assert "--features-weights pt_inception" in vqgan("evaluate", *flags).line
    min(few.glob("*.jpg")).unlink()
    result = evaluate()
    assert result.code == 2
    assert "has 9 images, and --protocol imagenet-50k is over 10" in result.line
    assert not (tmp_path / "out").exists()


def test_weights_are_asked_for_before_anything_is_loaded(
    vqgan: Vqgan, few: Path, codec_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqgan.features.load_features", lambda *_: pytest.fail("loaded"))
    result = vqgan("evaluate", "--codec", codec_path, "--input", few, "--protocol", NAME)
    assert (result.code, "--features-weights pt_inception" in result.line) == (2, True)


def test_the_published_one() -> None:
    """Read before the table was made smaller."""
    assert PUBLISHED.images == 50_000
    assert PUBLISHED.geometry == Geometry(image_size=256, filter="adm")
    assert PUBLISHED.features == "inception"
