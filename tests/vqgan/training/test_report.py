"""The report of a run: metrics, curves where they belong, small whatever the run's length, safe."""

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vqgan.training import charts, report
from vqgan.training.charts import (
    LEFT,
    RIGHT,
    Mark,
    Scale,
    Series,
    choose_scale,
    label,
    linear_ticks,
    log_ticks,
)
from vqgan.training.logs import read_metrics
from vqgan.training.report import write_training_report

Refused = Callable[[str], AbstractContextManager[None]]
VOID = {"meta", "img"}
HOSTILE = "<script>alert('x')</script>\"'><img src=http:x>&amp;"


class Page(HTMLParser):
    """Checks nesting; remembers tags, sources and texts."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def write_run(folder: Path, records: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def write_grid(folder: Path, step: int, size: int = 8) -> None:
    (folder / "grids").mkdir(exist_ok=True)
    noise = np.random.default_rng(step).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "grids" / f"validation-{step}.png")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A short run, interrupted for a day, with everything that can be in its folder."""
    records: list[dict[str, Any]] = []
    for step in range(10, 101, 10):
        time = 1000 + step + (86400 if step > 50 else 0)
        values = {"train/pixel": 1 / step, "train/skipped": 0.0, "train/images_per_second": 30.0 + step}
        records.append({"step": step, "time": time, **values})
    records[3]["train/pixel"] = None
    for step, psnr, lpips in ((50, 24.5, 0.3), (100, 23.0, 0.2)):
        metrics = {"validation/psnr": psnr, "validation/lpips": lpips, "validation/pixel": 0.02}
        records.append({"step": step, "time": 1000 + step + (86400 if step > 50 else 0), **metrics})
    records += [{"step": 60, "event": "discriminator starts"}, {"step": 20, "event": "codebook placed"}]
    folder = write_run(tmp_path / "my run", records)
    for step in (10, 40, 60, 100):
        write_grid(folder, step)
    (folder / "config.json").write_text(json.dumps({"seed": 5, "model": {"ch": 32}}))
    (folder / "evaluation.json").write_text(json.dumps({"psnr": {"value": 24.123456, "samples": 12000}}))
    return folder


def test_page(run: Path) -> None:
    assert write_training_report(run) == run / "report.html"
    text = (run / "report.html").read_text()
    page = Page(text)
    assert "http" not in text
    assert not {"script", "iframe", "link"} & set(page.tags)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert len(page.sources) == 3
    for expected in ("Training of my run", '"ch": 32', '"seed": 5'):
        assert expected in page.text
    # Step 40 is neither first, last nor nearest to the middle.
    assert re.findall("<figcaption>step (.*?)<", text) == ["10", "60", "100"]
    assert page.text.index("codebook placed, step 20") < page.text.index("discriminator starts, step 60")
    assert "psnr · samples\n12,000" in page.text
    assert "1 values were not finite" in page.text
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == []


def test_tiles(run: Path) -> None:
    write_training_report(run)
    found = re.findall(r"class=tile><b>(.*?)</b><span>(.*?)</span>", (run / "report.html").read_text())
    tiles = {name: value for value, name in found}
    assert tiles["steps"] == "100"
    assert tiles["PSNR, best at step 50"] == "24.5"
    assert tiles["LPIPS, best at step 100"] == "0.2"
    assert tiles["images per second"] == "85.0"
    assert tiles["time"] == "0:01:20"  # nine times 10 s, but for the pause


def test_evaluations_with_their_reference_set(run: Path) -> None:
    figure = {"value": 24.1, "unit": "dB", "images": 1280, "reference_set": "corpus, validation"}
    evaluation = {"codecs": [{"codec": "x", "figures": {"psnr": figure}}], "versions": {"jax": "1"}}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    write_training_report(run)
    assert (
        "psnr\n24.1 dB over 1,280 images: corpus, validation" in Page((run / "report.html").read_text()).text
    )


def test_panels_of_one_quantity_hold_both_splits(run: Path) -> None:
    found = report.to_curves(read_metrics(run / "metrics.jsonl"))
    validation, training = report.split_quantities(found)
    assert validation == ["psnr", "lpips"]
    assert training == ["pixel", "images_per_second"]
    write_training_report(run)
    text = (run / "report.html").read_text()
    assert text.count("<figure class=panel>") == 4
    pixel = text[text.index("<h3>pixel</h3>") :].split("</figure>")[0]
    assert "<g class=train>" in pixel
    assert "<g class=validation>" in pixel


def test_a_step_that_occurs_twice_and_events_that_do() -> None:
    records = [
        {"step": 2, "a": 1.0},
        {"step": 1, "a": None},
        {"step": 2, "a": 3},
        {"step": 3, "other": "text"},
    ]
    steps, values = report.to_curves(records)["a"]
    assert steps.tolist() == [1, 2]
    np.testing.assert_array_equal(values, [np.nan, 3.0])
    assert list(report.to_curves(records)) == ["a"]
    marks, more = report.to_marks([{"step": 5, "event": "b"}] * 2 + [{"step": 1, "event": "a"}])
    assert marks == [Mark(1, "A", "a"), Mark(5, "B", "b")]
    assert more == 0
    marks, more = report.to_marks([{"step": step, "event": "skipped"} for step in range(100)])
    assert (len(marks), more) == (12, 88)


def test_a_long_run_gives_a_small_page(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"train/{name}" for name in ("pixel", "perceptual", "adversarial", "discriminator", "weight")]
    noise = rng.standard_normal((30_000, len(names)))
    records = [
        {"step": step, **dict(zip(names, map(float, row), strict=True))} for step, row in enumerate(noise, 1)
    ]
    folder = write_run(tmp_path / "long", records)
    for step in (1, 2, 3):
        write_grid(folder, step, size=900)  # 2.4 MB of noise each
    write_training_report(folder)
    text = (folder / "report.html").read_text()
    assert len(text) < 3_000_000
    page = Page(text)
    assert [source[:15] for source in page.sources] == ["data:image/jpeg"] * 3


def test_hostile_names(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / HOSTILE.replace("/", "-"),
        [{"step": 1, f"train/{HOSTILE}": 1.0}, {"step": 1, "event": HOSTILE}],
    )
    (folder / "config.json").write_text(json.dumps({HOSTILE: {HOSTILE: HOSTILE}}))
    (folder / "evaluation.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    (folder / "grids").mkdir()
    (folder / "grids" / "<script>-5.png").write_bytes(b"no image")
    write_training_report(folder)
    page = Page((folder / "report.html").read_text())
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count(HOSTILE) >= 4
    assert "<script>-5.png cannot be read" in page.text


def test_nothing_finite_and_nothing_but_events(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [{"step": 1, "train/pixel": None}, {"step": 0, "event": "e"}])
    write_training_report(folder)
    assert "No finite value." in (folder / "report.html").read_text()
    Page((write_training_report(write_run(tmp_path / "b", [{"step": 0, "event": "e"}]))).read_text())


def test_refusals(tmp_path: Path, refused: Refused) -> None:
    with refused("no metrics.jsonl"):
        write_training_report(tmp_path)
    write_run(tmp_path, [{"step": 1, "a": 1.0}])
    (tmp_path / "config.json").write_text("{")
    with refused("config.json: cannot be read"):
        write_training_report(tmp_path)


def test_smooth_is_the_mean_of_a_window() -> None:
    values = np.random.default_rng(0).standard_normal(200)
    values[[7, 50, 51, 52, 53, 54]] = np.nan
    half = 200 // charts.SMOOTHING // 2
    assert half == 2
    expected = [
        np.nanmean(values[max(i - half, 0) : i + half + 1]) if i != 52 else np.nan for i in range(200)
    ]
    np.testing.assert_allclose(charts.smooth(values), expected)
    np.testing.assert_array_equal(charts.smooth(values[:40]), values[:40])
    values[20] = 1e30
    np.testing.assert_allclose(charts.smooth(values)[60:], expected[60:])


def test_thin_keeps_the_extremes() -> None:
    values = np.random.default_rng(0).standard_normal(10_007)
    values[100:200] = np.nan
    values[5000], values[7000] = 99.0, -99.0
    steps, low, high = charts.thin(np.arange(10_007) * 3, values)
    assert len(steps) == len(low) == len(high) == 300
    assert np.nanmax(high) == 99.0
    assert np.nanmin(low) == -99.0
    assert np.isnan(low).sum() >= 1
    assert (np.diff(steps) > 0).all()
    steps, low, high = charts.thin(np.arange(3), np.array([1.0, np.nan, 3.0]))
    np.testing.assert_array_equal(low, [1.0, np.nan, 3.0])
    np.testing.assert_array_equal(low, high)


def panel(values: list[float], steps: list[int], noisy: bool = False, marks: tuple[Mark, ...] = ()) -> str:
    series = Series("validation", "validation", np.array(steps), np.array(values), noisy)
    return charts.panel("PSNR", [series], marks, 100)


def test_points_lie_where_their_values_are() -> None:
    drawn = panel([10.0, 30.0, np.nan, 20.0], [0, 50, 75, 100])
    points = [(float(x), float(y)) for x, y in re.findall(r"<circle cx='([\d.]+)' cy='([\d.]+)'", drawn)]
    assert [x for x, _ in points] == [LEFT, (LEFT + RIGHT) / 2, RIGHT]
    ys = [y for _, y in points]
    assert ys[1] < ys[2] < ys[0]
    np.testing.assert_allclose(ys[2], (ys[0] + ys[1]) / 2, atol=0.1)
    # The NaN interrupts the line: the last value stands alone.
    line = re.search(r"<path class=line d='(.*?)'", drawn)
    assert line is not None
    assert re.fullmatch(r"M\S+ \S+L\S+ \S+M\S+ \S+h1", line[1])
    assert "<title>validation: 30 at step 50</title>" in drawn


def test_titles_of_a_noisy_line() -> None:
    values = [float(value) for value in range(1, 201)]
    series = Series("train", "train", np.arange(1, 201), np.array(values), True)
    drawn = charts.panel("pixel", [series], (), 200)
    # 60 strips over 200 steps: the first holds the steps up to 200 / 60 = 3.33.
    assert "<title>train: mean 2 of steps 1 to 3</title>" in drawn
    counted = re.findall(r"of steps (\d+) to (\d+)<", drawn)
    assert sum(int(last) - int(first) + 1 for first, last in counted) == 200


def test_marks_near_each_other_do_not_overlap() -> None:
    marks = tuple(Mark(step, letter, letter) for step, letter in ((50, "A"), (50, "B"), (51, "C"), (90, "D")))
    drawn = panel([1.0, 2.0], [0, 100], marks=marks)
    letters = [float(x) for x in re.findall(r"<text class=letter x='([\d.]+)'", drawn)]
    assert len(letters) == 4
    assert min(np.diff(letters)) >= 11
    lines = [float(x) for x in re.findall(r"<path class=mark d='M([\d.]+) ", drawn)]
    assert lines[0] == lines[1] == (LEFT + RIGHT) / 2


def test_scales() -> None:
    def scale(*values: float) -> Scale | None:
        return choose_scale([np.array(values)], [np.array(values)])

    assert scale(1.0, 10.0) == Scale(0.0, 10.45, False)
    assert scale(24.0, 25.0) == Scale(23.95, 25.05, False)
    assert scale(-1.0, 1.0) == Scale(-1.1, 1.1, False)
    assert scale(0.0, 0.0) == Scale(-1.0, 1.0, False)
    assert scale(np.nan) is None
    wide = scale(0.01, 10.0)
    assert wide is not None
    assert wide.log
    np.testing.assert_allclose(wide.position(np.array([wide.low, 0.0, wide.high, np.nan])), [0, 0, 1, np.nan])
    np.testing.assert_allclose(wide.position(np.sqrt(np.array([wide.low * wide.high]))), [0.5])
    assert not choose_scale([np.array([0.0, 100.0])], [np.array([1.0, 100.0])]).log  # type: ignore[union-attr]


def test_one_outlier_does_not_flatten_the_rest() -> None:
    raw = np.ones(1000)
    raw[::2] = 2.0
    raw[3] = 1e6
    scale = choose_scale([raw], [np.full(1000, 1.5)])
    assert scale is not None
    assert not scale.log
    assert scale.high < 3


@pytest.mark.parametrize(
    ("ticks", "expected"),
    [
        (linear_ticks(0, 1, 5), [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (linear_ticks(23.95, 25.05, 5), [24.0, 24.25, 24.5, 24.75, 25.0]),
        (linear_ticks(0, 6000, 5), [0, 2000, 4000, 6000]),
        (log_ticks(0.011, 0.9), [0.02, 0.05, 0.1, 0.2, 0.5]),
        (log_ticks(1e-5, 1.1), [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]),
    ],
)
def test_ticks(ticks: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(ticks, expected, rtol=1e-9)


def test_labels() -> None:
    values = (
        0.0,
        0.30000000000000004,
        1e-05,
        0.00075,
        -0.00025,
        0.001,
        1e15,
        2500.0,
        20_000.0,
        12_500.0,
        1_500_000.0,
        2e9,
        -10_000.0,
    )
    assert [label(value) for value in values] == [
        "0", "0.3", "1e-5", "7.5e-4", "-2.5e-4", "0.001", "1e15",
        "2500", "20k", "12.5k", "1.5M", "2G", "-10k",
    ]  # fmt: skip


def test_no_chart_stands_there_twice_and_axes_have_names(tmp_path: Path) -> None:
    """Of a prior: the loss in nats is what ``nats`` says again, and ``bits`` in another unit."""
    records: list[dict[str, Any]] = []
    for step in range(1, 9):
        loss = 5.0 - step / 4
        records.append(
            {"step": step, "train/accuracy": step / 10, "train/loss": loss, "train/nats": loss}
            | {"validation/loss": loss + 1, "validation/bits": (loss + 1) / np.log(2)}
        )
    folder = write_run(tmp_path / "prior", records)
    write_training_report(folder)
    page = (folder / "report.html").read_text()
    assert re.findall("<h3>(.*?)</h3>", page) == ["loss", "accuracy"]
    assert page.count(">training step</text>") == 2
    assert ">nats per token</text>" in page
    assert ">share of tokens, 0 to 1</text>" in page
    # With label smoothing they differ, and are both worth a look.
    for record in records:
        record["train/nats"] -= 0.1 * record["step"]
    write_training_report(write_run(folder, records))
    assert re.findall("<h3>(.*?)</h3>", (folder / "report.html").read_text()) == ["loss", "accuracy", "nats"]
