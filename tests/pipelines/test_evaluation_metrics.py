"""Metrics of ``vqgan evaluate``: which are available, what becomes of odd values, what is called FID."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipelines.evaluating.evaluation_metrics import (
    MetricChoice,
    Scores,
    frechet_metric,
    frechet_name,
    image_metrics,
    load_metrics,
)
from pipelines.evaluating.evaluation_report import choose_examples
from vqgan.metrics.frechet import feature_statistics

from .conftest import network

PIXEL = MetricChoice(("psnr", "ssim", "l1"))


def test_small_images_leave_out_what_has_no_value_for_them(stand_ins: None, refused: Any) -> None:
    metrics = load_metrics(MetricChoice(), 8)
    assert set(metrics.skipped) == {"ssim", "lpips-alex", "lpips-vgg"}
    assert (set(metrics.on_host), set(metrics.on_device)) == ({"psnr", "l1"}, set())
    with refused("ssim: images of 8 pixels are smaller than its window of 11"):
        load_metrics(PIXEL, 8)
    with refused("use at least 16x16"):
        load_metrics(MetricChoice(("lpips-vgg",)), 8)
    assert load_metrics(MetricChoice(), 16).skipped == {}


def test_paths_reach_the_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_lpips(*given: Any) -> jax.Array:
        asked.append(given)
        return jnp.float32(1)

    def load_features(*given: Any) -> Any:
        asked.append(given)
        return network("n", "d")

    monkeypatch.setattr("vqgan.metrics.lpips.load_lpips", load_lpips)
    monkeypatch.setattr("vqgan.metrics.lpips.distance", lambda weights, x, y: weights * x[:, 0, 0, 0])
    monkeypatch.setattr("vqgan.features.load_features", load_features)
    load_metrics(MetricChoice(("lpips-vgg", "frechet"), "inception", "i.pth", "h.pth", "b.pth"), 32)
    load_metrics(MetricChoice(("frechet",)), 32)
    assert asked == [
        ("vgg", Path("h.pth"), Path("b.pth")),
        ("inception", Path("i.pth")),
        ("efficientnet-lite0", None),
    ]


@pytest.mark.parametrize(
    ("name", "distance", "figure"),
    [
        ("inception-fid", "FID", "fid"),
        (
            "inception-torchvision",
            "Fréchet distance (torchvision InceptionV3)",
            "frechet_inception_torchvision",
        ),
    ],
)
def test_only_the_original_network_gives_fid(name: str, distance: str, figure: str) -> None:
    used = network(name, distance)
    assert frechet_name(used) == figure
    points = feature_statistics(np.eye(3)), feature_statistics(np.eye(3) + np.array([0, 0, 2]))
    found = frechet_metric(used, *points)
    assert (found["value"], found["images"], found["features"]) == (pytest.approx(4), 3, name)
    assert found["biased"]  # the covariance of three points in space is flat
    more = feature_statistics(np.eye(3)[[0, 1, 2, 0]])
    assert "biased" not in frechet_metric(used, more, more)


def test_networks_that_give_no_numbers(
    stand_ins: None, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.zeros((2, 16, 16, 3), np.uint8)
    monkeypatch.setattr("vqgan.metrics.lpips.distance", lambda weights, x, y: x[:, 0, 0, 0] * jnp.nan)
    with refused("lpips-vgg: its network gives values that are not numbers"):
        measured(images, images, MetricChoice(("lpips-vgg",)))
    broken = SimpleNamespace(features=lambda images: np.full((len(images), 1), np.nan))
    monkeypatch.setattr("vqgan.features.load_features", lambda *given: broken)
    with refused("frechet: its network gives values that are not numbers"):
        measured(images, images, MetricChoice(("frechet",)))


def measured(images: np.ndarray, reconstructions: np.ndarray, choice: MetricChoice = PIXEL) -> Scores:
    scores = Scores(load_metrics(choice, 16), 4)
    tokens = np.zeros((len(images), 2, 2), np.int32)
    with ThreadPoolExecutor(2) as pool:
        scores.add(images, reconstructions, tokens, len(images) - 1, pool)  # the last is padding
    return scores


def test_equal_images_have_no_psnr_and_are_counted() -> None:
    images = np.zeros((4, 16, 16, 3), np.uint8)
    others = images.copy()
    others[1], others[2] = 51, 255  # 20 log10 5 and 0 dB
    figure = image_metrics(measured(images, others))["psnr"]
    assert (figure["images"], figure["equal_images"]) == (3, 1)
    assert figure["value"] == pytest.approx(20 * np.log10(5) / 2)
    assert (figure["lowest"], figure["highest"]) == (0, pytest.approx(20 * np.log10(5)))
    every = image_metrics(measured(images, images))
    assert (every["psnr"]["value"], every["psnr"]["equal_images"]) == (None, 3)
    assert (every["ssim"]["value"], every["l1"]["value"]) == (1, 0)


@pytest.mark.parametrize(
    ("levels", "worst", "median", "best"),
    [
        ([5], [0], [], []),
        ([5, 9], [1], [], [0]),
        ([5, 9, 1], [1], [0], [2]),
        ([1, 2, 3, 4, 5, 6, 7], [6, 5], [4, 3], [1, 0]),
    ],
)
def test_images_to_look_at(levels: list[int], worst: list[int], median: list[int], best: list[int]) -> None:
    images = np.zeros((len(levels) + 1, 16, 16, 3), np.uint8)
    others = images.copy()
    for index, level in enumerate(levels):
        others[index] = level
    groups = choose_examples(measured(images, others))
    found = {title.removesuffix(" by psnr"): rows for title, rows in groups.items()}
    expected = {"worst": worst, "median": median, "best": best}
    assert found == {title: rows for title, rows in expected.items() if rows}
