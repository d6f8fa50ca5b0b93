"""``vqgan evaluate``: metrics against direct computation, what is left out, and what is written."""

import csv
import functools
import hashlib
import html
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.evaluating.evaluate_codecs import EvaluateConfig, run_evaluation, select
from pipelines.evaluating.evaluation_metrics import (
    MetricChoice,
)
from pipelines.evaluating.evaluation_report import format_results
from transforms.images.crops import Geometry
from transforms.images.dataset import ImageDataset, split
from transforms.images.decode import DecodeConfig, prepare
from transforms.sharded.slices import collect
from transforms.sources import SourceConfig, open_source
from vqgan.codec import Codec
from vqgan.errors import UserError
from vqgan.metrics.codebook_usage import codebook_usage
from vqgan.metrics.frechet import feature_statistics, frechet_distance
from vqgan.metrics.image import mean_absolute_error, psnr, ssim

from .conftest import mean_colour

Vqgan = Callable[..., Any]
PIXEL = MetricChoice(("psnr", "ssim", "l1"))


@pytest.fixture(scope="module", autouse=True)
def codecs_compile_once() -> Iterator[None]:
    """Each codec is compiled for the first test that needs it, and kept for the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Codec, "load", functools.cache(Codec.load))
        yield


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights of other networks can be had, so no test looks for them elsewhere."""

    def refuse(name: str, *paths: Any) -> None:
        raise UserError(f"{name}: these weights cannot be had")

    monkeypatch.setattr("vqgan.metrics.lpips.load_lpips", refuse)
    monkeypatch.setattr("vqgan.features.load_features", refuse)


def squares(folder: Path, size: int) -> tuple[list[str], np.ndarray]:
    """Keys, and the images as tokenize prepares them."""
    paths = sorted(folder.glob("*.jpg"))
    geometry = Geometry(image_size=size)
    pixels = [prepare(path.read_bytes(), path.name, DecodeConfig(), geometry).pixels[0] for path in paths]
    return [path.name for path in paths], np.stack(pixels)


def settings(source: Path, *codecs: str, **changes: Any) -> EvaluateConfig:
    config = {"choice": PIXEL, "batch_size": 4, "threads": 2, "quiet": True}
    return EvaluateConfig(SourceConfig(str(source)), codecs, **(config | changes))


def test_metrics_are_those_of_the_rounded_reconstruction(few: Path, codec_path: str, stand_ins: None) -> None:
    found = run_evaluation(settings(few, codec_path, choice=MetricChoice()))
    metrics = {name: metric["value"] for name, metric in found["codecs"][0]["metrics"].items()}
    codec = Codec.load(codec_path, batch_size=4)
    _, images = squares(few, 32)
    tokens = codec.encode(images)
    decoded = codec.decode(tokens)
    assert decoded.dtype == np.uint8
    usage = codebook_usage(np.bincount(tokens.ravel(), minlength=64))
    furthest = np.abs(images.astype(float) - decoded).max(axis=(1, 2, 3)) / 127.5
    apart = frechet_distance(*(feature_statistics(mean_colour(part)) for part in (images, decoded)))
    expected = {
        "psnr": np.mean(psnr(images, decoded)),
        "ssim": np.mean(ssim(images, decoded)),
        "l1": np.mean(mean_absolute_error(images, decoded)),
        "lpips_alex": furthest.mean(),
        "lpips_vgg": 10 * furthest.mean(),
        "codes_used": usage.used,
        "codebook_usage": usage.used / 64,
        "perplexity": usage.perplexity,
        "entropy": usage.entropy,
        "frechet_efficientnet_lite0": apart,
    }
    assert metrics == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}
    assert list(metrics) == list(expected)
    assert found["skipped"] == {}
    assert found["reference"]["images"] == 10
    tokens_counted = found["codecs"][0]["metrics"]["entropy"]["tokens"]
    assert (tokens_counted, found["reference"]["image_size"]) == (10 * 16 * 16, 32)


@pytest.fixture(scope="module")
def written(
    photos: Path, codec_path: str, other_codec: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two codecs compared over ten photographs, one of them with a hostile name, and one reject."""
    root = tmp_path_factory.mktemp("evaluated")
    (root / "in").mkdir()
    for path in sorted(photos.iterdir())[::4]:
        shutil.copy(path, root / "in")
    next((root / "in").glob("wine*")).rename(root / "in" / "<b>&,'\".jpg")
    (root / "in" / "broken.jpg").write_bytes(b"no image")
    run_evaluation(settings(root / "in", codec_path, other_codec, output=str(root / "out")))
    return root


def per_image(written: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((written / "out" / "evaluation.csv").read_text().splitlines()))


def test_the_files_agree(written: Path, codec_path: str, other_codec: str) -> None:
    assert sorted(path.name for path in (written / "out").iterdir()) == [
        *("evaluation.csv", "evaluation.json", "report.html")
    ]
    result = json.loads((written / "out" / "evaluation.json").read_text())
    rows = per_image(written)
    assert [codec["codec"] for codec in result["codecs"]] == [codec_path, other_codec]
    keys = sorted({row["key"] for row in rows})
    assert len(keys) == 10
    assert "<b>&,'\".jpg" in keys
    for codec in result["codecs"]:
        own = [row for row in rows if row["codec"] == codec["codec"]]
        assert sorted(row["key"] for row in own) == keys
        for name in ("psnr", "ssim", "l1"):
            values = [float(row[name]) for row in own]
            figure = codec["metrics"][name]
            assert figure["value"] == pytest.approx(np.mean(values), rel=1e-12)
            assert (figure["lowest"], figure["highest"]) == (min(values), max(values))
            assert figure["images"] == 10
    assert result["codecs"][0]["metrics"]["psnr"] != result["codecs"][1]["metrics"]["psnr"]


def test_rejects_are_counted_and_named(written: Path) -> None:
    result = json.loads((written / "out" / "evaluation.json").read_text())
    reference = result["reference"]
    assert (reference["chosen"], reference["images"], reference["rejects"]) == (11, 10, 1)
    assert reference["reject_reasons"] == {"decode: UnidentifiedImageError": 1}
    assert [row["key"] for row in result["rejects"]] == ["broken.jpg"]
    text = format_results(result)
    assert "10 of 11 images measured" in text
    assert "rejected, decode: UnidentifiedImageError: 1" in text


def test_the_table_has_set_and_count_beside_every_metric(written: Path) -> None:
    result = json.loads((written / "out" / "evaluation.json").read_text())
    lines = format_results(result).splitlines()
    head, rows = lines[0], lines[1 : lines.index("")]
    assert head.split() == ["metric", "toy", "other", "better", "images", "reference", "set"]
    assert [row.split()[0] for row in rows] == [
        *("psnr", "ssim", "l1", "codes_used", "codebook_usage", "perplexity", "entropy")
    ]
    for row in rows:
        assert row[head.index("images") :].split()[0] == "10"
        assert row.endswith(f"{written / 'in'}, all, 32 px, center-crop, lanczos")
    best = result["codecs"][1]["metrics"]["psnr"]["value"]
    assert rows[0][head.index("other") :].startswith(f"{best:.4g} dB")


def test_the_page_shows_worst_and_best_of_each_codec(written: Path) -> None:
    page = (written / "out" / "report.html").read_text()
    rows = per_image(written)
    for label, codec in (("toy", rows[0]["codec"]), ("other", rows[-1]["codec"])):
        ranked = sorted((row for row in rows if row["codec"] == codec), key=lambda row: float(row["psnr"]))
        parts = [page.split(f"<h2>{label}: {which} by psnr</h2>")[1] for which in ("worst", "median", "best")]
        for part, expected in zip(parts, (ranked[:3], ranked[3:6], ranked[-3:]), strict=True):
            captions = part.split("</section>")[0].split("<figcaption>")[1:]
            shown = [html.unescape(caption.split("title='")[1].split("'>")[0]) for caption in captions]
            assert shown == [row["key"] for row in expected]
            assert f"psnr {float(expected[0]['psnr']):.4g}" in captions[0]
    assert "<b>&" not in page
    assert page.count("<img ") == 2 * 18
    assert "http" not in page


def test_text_and_json_on_the_command_line(vqgan: Vqgan, few: Path, codec_path: str) -> None:
    common = ["evaluate", "--codec", codec_path, "--input", few, "--batch-size", 4, "--limit", 3]
    result = vqgan(*common, "--json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert found["reference"]["images"] == 3
    assert set(found["skipped"]) == {"lpips-alex", "lpips-vgg", "frechet"}
    assert found["skipped"]["lpips-vgg"] == "vgg: these weights cannot be had"
    text = format_results(found)
    assert "skipped lpips-alex: alex: these weights cannot be had" in text
    assert f"{few}, all, sample of 3, 32 px" in text


def test_a_single_image_of_another_size(few: Path, codec_path: str, stand_ins: None, tmp_path: Path) -> None:
    only = sorted(few.iterdir())[0]
    output = tmp_path / "out"
    config = settings(only, codec_path, choice=MetricChoice(), image_size=48, output=str(output))
    found = run_evaluation(config)
    metrics = found["codecs"][0]["metrics"]
    assert metrics["psnr"]["images"] == 1
    assert metrics["psnr"]["lowest"] == metrics["psnr"]["highest"] == metrics["psnr"]["value"]
    assert metrics["entropy"]["tokens"] == 24 * 24
    assert "48 px" in metrics["psnr"]["reference_set"]
    assert not [name for name in metrics if "frechet" in name]
    assert found["skipped"] == {"frechet": "frechet: a covariance needs at least 2 images"}
    assert (output / "report.html").read_text().count("<img ") == 2


def test_a_checkpoint_of_another_code_base(
    vqgan: Vqgan, written: Path, codec_path: str, tmp_path: Path
) -> None:
    assert vqgan("export", codec_path, tmp_path / "foreign", "--to", "diffusers").code == 0
    found = run_evaluation(settings(written / "in", str(tmp_path / "foreign"), image_size=32))
    own = json.loads((written / "out" / "evaluation.json").read_text())["codecs"][0]["metrics"]
    foreign = found["codecs"][0]["metrics"]
    assert foreign["psnr"]["value"] == pytest.approx(own["psnr"]["value"], rel=1e-3)
    assert foreign["codes_used"]["value"] == own["codes_used"]["value"]


def fail(*anything: Any) -> None:
    raise AssertionError("no work may begin")


@pytest.mark.parametrize(
    "choice",
    [
        MetricChoice(("psnr", "lpips-alex")),
        MetricChoice(("frechet",)),
        MetricChoice(features="inception"),
        MetricChoice(features_weights="some.pth"),
        MetricChoice(("lpips-vgg",), lpips_heads="vgg.pth"),
    ],
)
def test_what_was_asked_for_by_name_is_needed(
    few: Path, codec_path: str, tmp_path: Path, refused: Any, monkeypatch: Any, choice: MetricChoice
) -> None:
    monkeypatch.setattr("pipelines.evaluating.evaluate_codecs.CodecEvaluation", fail)
    monkeypatch.setattr("pipelines.evaluating.evaluate_codecs.collect", fail)
    with refused("these weights cannot be had"):
        run_evaluation(settings(few, codec_path, choice=choice, output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def entries(folder: Path) -> Any:
    return collect(open_source(SourceConfig(str(folder))).list())


def test_the_split_is_that_of_training(photos: Path) -> None:
    images = ImageDataset(SourceConfig(str(photos)), DecodeConfig(), None, 1, 0)
    training, validation = split(images, 3)
    parts = {"train": training.keys, "validation": validation.keys}
    for name, keys in parts.items():
        chosen = select(entries(photos), settings(photos, "c", split=name, holdout=3))
        assert chosen.column("key").to_pylist() == keys
        assert 5 < len(keys) < 35
    assert len(select(entries(photos), settings(photos, "c"))) == 40


def test_the_limit_is_a_sample_that_does_not_depend_on_the_order(photos: Path) -> None:
    every = sorted(path.name for path in photos.iterdir())
    lowest = sorted(every, key=lambda key: hashlib.sha1(key.encode()).hexdigest())[:7]
    chosen = select(entries(photos), settings(photos, "c", limit=7)).column("key").to_pylist()
    assert chosen == sorted(lowest)
    assert chosen != every[:7]
    assert len(select(entries(photos), settings(photos, "c", limit=1000))) == 40


def test_nothing_to_measure(few: Path, codec_path: str, tmp_path: Path, refused: Any) -> None:
    with refused("leaves none of its 10 images; use --split all"):
        run_evaluation(settings(few, codec_path, split="train", holdout=1))
    empty = tmp_path / "empty"
    empty.mkdir()
    with refused("there are no images in it"):
        run_evaluation(settings(empty, codec_path))
    for name in ("a.jpg", "b.jpg"):
        (empty / name).write_bytes(b"no image")
    with refused("none of its 2 images can be used, such as 'a.jpg' .*; nothing was measured"):
        run_evaluation(settings(empty, codec_path))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--metrics", "psnr,fid"], "--metrics fid: known are psnr, ssim"),
        (["--metrics", ""], "known are psnr, ssim"),
        (["--split", "test"], "--split test: known are all, train, validation"),
        (["--holdout", 0], "--holdout 0: it must be at least 1"),
        (["--limit", 0], "--limit 0: it must be at least 1"),
        (["--lpips-heads", "vgg.pth"], "name lpips-alex or lpips-vgg, not both"),
        (["--metrics", "psnr", "--features", "inception"], "name it in --metrics too"),
        (["--image-size", 33], "multiples of 2"),
        (["--output", ""], "--output is empty"),
        (["--codec", "nowhere"], "nowhere"),
        (["--folder-label"], "did you mean --folder-labels"),
    ],
)
def test_mistakes(vqgan: Vqgan, few: Path, codec_path: str, flags: list[Any], says: str) -> None:
    result = vqgan("evaluate", "--codec", codec_path, "--input", few, *flags)
    assert (result.code, says in result.line) == (2, True), result.err


def test_the_same_codec_twice(vqgan: Vqgan, few: Path, codec_path: str) -> None:
    result = vqgan("evaluate", "--codec", codec_path, "--codec", codec_path, "--input", few)
    assert (result.code, "give one codec, or several different ones" in result.line) == (2, True)


def test_codecs_of_different_resolutions_need_a_size(few: Path, codec_path: str, refused: Any) -> None:
    with refused("these codecs are for 32, 128 pixels: give --image-size"):
        run_evaluation(settings(few, codec_path, "tiny"))
