"""``report.html`` of a training run, made only from the files in its folder, so at any time anew."""

import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vqgan import html_page
from vqgan.documents import Fields
from vqgan.errors import UserError, counted
from vqgan.publishing import write_atomically
from vqgan.training import charts
from vqgan.training.charts import Mark, Series
from vqgan.training.logs import GRIDS_FOLDER, METRICS_FILE, clock, list_grids, read_metrics
from vqgan.training.loop_config import HIGHER_IS_BETTER

REPORT_FILE = "report.html"
GRID_BYTES = 1_500_000  # of all image grids together; in the page they take a third more
MOST_MARKS = 12
LETTERS = "ABCDEFGHIJKL"
WORDS = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "l1": "L1",
    "l2": "L2",
    "r1": "R1",
    "lecam": "LeCAM",
}
GRID_TITLES = {"samples": "Samples of the prior"}
# What a model that knows frequencies only would reach: a line to compare another quantity with.
BASELINES = {"unigram": "loss", "unigram_bits": "bits"}
UNITS = {
    "loss": "nats per token",
    "nats": "nats per token",
    "bits": "bits per token",
    "unigram": "nats per token",
    "unigram_bits": "bits per token",
    "accuracy": "share of tokens, 0 to 1",
    "psnr": "dB",
    "l1": "mean error, levels of 255",
    "lpips": "distance, 0 for equal images",
    "used_codes": "codes",
    "perplexity": "as many codes, evenly used",
    "images_per_second": "images per second",
    "data_wait_share": "share of the time, 0 to 1",
    "temperature": "temperature",
}
MEANINGS = {
    "loss": "lower is better",
    "bits": "lower is better; the loss in another unit",
    "unigram": "what the frequencies of single codes give; the loss should get well below",
    "unigram_bits": "what the frequencies of single codes give",
    "psnr": "higher is better; from 30 dB hard to tell apart",
    "l1": "lower is better",
    "lpips": "lower is better",
    "used_codes": "more is better",
    "perplexity": "higher is better",
}
SAME_CURVE = {"bits": "loss", "nats": "loss"}
"""Quantities that are another one in another unit: no chart of their own where their values say the same."""
# What says how the run went rather than how well it learned comes last.
RUN = ("learning_rate", "temperature", "images_per_second", "data_wait_share", "skipped", "skipped_in_row")

Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""For each name: steps ``[N]`` int64, increasing, and values ``[N]`` float64, NaN for null."""


def write_training_report(folder: Path) -> Path:
    """Writes ``report.html`` from what a run's folder holds.

    That is ``metrics.jsonl``, the image grids in ``grids/``, ``config.json`` and ``evaluation.json``.

    Args:
      folder: of the run; any of these files may be missing but the first.

    Returns:
      The page.

    Raises:
      UserError: there are no metrics, a file is damaged, or the page cannot be written.
    """
    records = read_metrics(folder / METRICS_FILE)
    if not records:
        raise UserError(f"{folder}: no {METRICS_FILE} with records here; give the folder of a training run")
    path = folder / REPORT_FILE
    # Names from a file system may hold what is no text.
    write_atomically(path, _render(folder, records).encode(errors="replace"))
    return path


def _render(folder: Path, records: Sequence[Mapping[str, Any]]) -> str:
    """Builds the whole page."""
    found = to_curves(records)
    end = max(record["step"] for record in records)
    marks, more = to_marks(records)
    validation, training = split_quantities(found)
    evaluation = _read_json(folder / "evaluation.json")
    sections = [html_page.tiles(_tiles(found, end, records))]
    for title, quantities in (("Validation", validation), ("Training", training)):
        if quantities:
            sections.append(_charts(title, quantities, found, marks, more, end))
    sections += [html_page.section(title, body, "grids") for title, body in _grid_sections(folder)]
    if evaluation:
        sections.append(
            html_page.section("Evaluation", html_page.table(("metric", "value"), _evaluated(evaluation)))
        )
    configuration = _read_json(folder / "config.json")
    if configuration:
        sections.append(html_page.section("Configuration", html_page.details(_parts(configuration))))
    name = folder.resolve().name
    return html_page.document(f"Training of {name}", _subtitle(records), sections, charts.STYLE + STYLE)


def to_curves(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Collects the named numbers of all records; where a step occurs twice, the later record holds."""
    points: dict[str, dict[int, float]] = {}
    for record in records:
        for name, value in record.items():
            if name not in ("step", "time", "event") and (value is None or isinstance(value, (int, float))):
                points.setdefault(name, {})[record["step"]] = np.nan if value is None else float(value)
    return {name: _sorted(values) for name, values in points.items()}


def _sorted(points: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    steps = np.array(sorted(points), np.int64)
    return steps, np.array([points[step] for step in steps.tolist()], np.float64)


def to_marks(records: Sequence[Mapping[str, Any]]) -> tuple[list[Mark], int]:
    """Turns events, in order and each once, into marks; and how many more there are than can be shown."""
    events = sorted({(record["step"], str(record["event"])) for record in records if "event" in record})
    shown = [Mark(step, LETTERS[index], text) for index, (step, text) in enumerate(events[:MOST_MARKS])]
    return shown, len(events) - len(shown)


def split_quantities(found: Curves) -> tuple[list[str], list[str]]:
    """Splits quantities (names after the first slash) into those of validation alone and all others."""
    splits: dict[str, set[str]] = {}
    for name, (_, values) in found.items():
        if name.startswith("train/skipped") and not values.any():
            continue  # as it should be: nothing to look at
        split, _, quantity = name.partition("/") if "/" in name else ("", "", name)
        if quantity in BASELINES:
            continue  # drawn beside what it is compared with
        if _is_drawn_already(name, found):
            continue
        splits.setdefault(quantity, set()).add(split)
    validation = [quantity for quantity, names in splits.items() if names == {"validation"}]
    training = [quantity for quantity in splits if quantity not in validation]
    return validation, sorted(
        training, key=lambda quantity: (quantity in RUN, "validation" not in splits[quantity])
    )


def _is_drawn_already(name: str, found: Curves) -> bool:
    """Tells whether a quantity is a multiple of another one at every step, so that its chart is the same."""
    split, _, quantity = name.partition("/")
    other = found.get(f"{split}/{SAME_CURVE.get(quantity)}")
    if other is None or not np.array_equal(other[0], found[name][0]):
        return False
    values, others = found[name][1], other[1]
    finite = np.isfinite(values) & np.isfinite(others) & (others != 0)
    ratios = values[finite] / others[finite]
    return len(ratios) > 0 and bool(np.allclose(ratios, ratios[0], rtol=1e-4))


def best_of(quantity: str, values: np.ndarray) -> int:
    """Returns the index of the best finite value, the first of equals; less is better if unknown."""
    if HIGHER_IS_BETTER.get(quantity, False):
        return int(np.nanargmax(values))
    return int(np.nanargmin(values))


def _flatten(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Lists nested JSON as rows of dotted name and text; long lists (histograms) are left out."""
    rows: list[tuple[str, str]] = []
    for name, value in data.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{name} · ")
        elif isinstance(value, float):
            rows.append((prefix + name, f"{value:.6g}"))
        elif not isinstance(value, list) or len(value) <= 8:
            rows.append((prefix + name, f"{value:,}" if type(value) is int else str(value)))
    return rows


def _evaluated(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lists what ``vqgan evaluate`` has found, each with its reference set, or what any other JSON holds."""
    rows: list[tuple[str, str]] = []
    try:
        for codec in Fields(evaluation, UserError).items("codecs"):
            metrics = codec.fields("metrics" if "metrics" in codec.data else "figures")
            rows += [(name, _measured(metrics.fields(name))) for name in metrics.data]
    except UserError:  # a document of another form
        return _flatten(evaluation)
    return rows


def _measured(metric: Fields) -> str:
    value = metric.value("value")
    shown = f"{value:.6g}" if isinstance(value, float) else str(value)
    images, where = metric.integer("images"), metric.text("reference_set")
    return f"{' '.join((shown, metric.text('unit'))).strip()} over {counted(images, 'image')}: {where}"


def title_of(quantity: str) -> str:
    """Returns a quantity's name as people write it."""
    return " ".join(WORDS.get(word, word) for word in quantity.replace("/", "_").split("_"))


def _charts(
    title: str, quantities: Sequence[str], found: Curves, marks: Sequence[Mark], more: int, end: int
) -> str:
    events = "".join(
        f"<li><b>{mark.letter}</b> {html.escape(mark.text)}, step {mark.step:,}</li>" for mark in marks
    )
    events += f"<li>and {more:,} further events</li>" if more else ""
    listed = f"<ul class=events>{events}</ul>" if events else ""
    panels = (
        charts.panel(title_of(name), _series(name, found), marks, end, _unit(name)) for name in quantities
    )
    return html_page.section(title, f"{listed}<div class=charts>{''.join(panels)}</div>")


def _unit(quantity: str) -> str:
    return UNITS.get(quantity, "")


def _series(quantity: str, found: Curves) -> list[Series]:
    """Returns the lines of one panel: those of training, then of validation, then others."""
    kinds = {"train": "train", "validation": "validation"}
    series = []
    for name, (steps, values) in found.items():
        split, slash, rest = name.partition("/")
        if BASELINES.get(rest) == quantity:
            series.append(Series("unigram entropy", "other", steps, values, noisy=False))
        elif (rest if slash else name) == quantity:
            kind = kinds.get(split, "other")
            series.append(Series(split if slash else "value", kind, steps, values, noisy=kind == "train"))
    return sorted(series, key=lambda one: ["train", "validation", "other"].index(one.kind))


def _tiles(found: Curves, end: int, records: Sequence[Mapping[str, Any]]) -> list[html_page.Tile]:
    tile = html_page.Tile
    tiles = [tile("steps", f"{end:,}"), tile("time", clock(_duration(records)))]
    rate = found.get("train/images_per_second")
    if rate is not None and np.isfinite(rate[1]).any():
        tiles.append(tile("images per second", f"{np.nanmedian(rate[1]):,.1f}"))
    for name, (steps, values) in found.items():
        split, _, quantity = name.partition("/")
        if split == "validation" and np.isfinite(values).any():
            best = best_of(quantity, values)
            when = "" if quantity in BASELINES else f", best at step {steps[best]:,}"
            meaning = "; ".join(filter(None, (_unit(quantity), MEANINGS.get(quantity, ""))))
            tiles.append(tile(f"{title_of(quantity)}{when}", _digits(values[best]), meaning))
    return tiles


def _digits(value: float) -> str:
    """Returns four digits, or all of a whole number."""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.4g}"


def _duration(records: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of training: pauses between an interrupted run and its continuation do not count."""
    times = np.array([record["time"] for record in records if isinstance(record.get("time"), (int, float))])
    gaps = np.diff(times)
    if not len(gaps):
        return 0.0
    usual = max(float(np.median(gaps)) * 50, 300.0)
    return float(gaps[(gaps > 0) & (gaps <= usual)].sum())


def _subtitle(records: Sequence[Mapping[str, Any]]) -> str:
    times = [record["time"] for record in records if isinstance(record.get("time"), (int, float))]
    if not times:
        return "no times recorded"
    last = np.datetime64(int(max(times)), "s")
    return f"last record {str(last).replace('T', ' ')} UTC"


def _grid_sections(folder: Path) -> list[tuple[str, str]]:
    """Gives title and body for each name of grids: the first, the middle one and the last."""
    chosen = {name: _spread(grids) for name, grids in list_grids(folder / GRIDS_FOLDER).items()}
    share = GRID_BYTES // max(sum(map(len, chosen.values())), 1)
    sections = []
    for name, grids in chosen.items():
        alt = "samples" if name in GRID_TITLES else "reconstructions"
        body = "".join(_grid(alt, step, path, share) for step, path in grids)
        words = name.replace("-", " ").replace("_", " ")
        title = GRID_TITLES.get(name, f"Originals above their reconstructions: {words}")
        sections.append((title, body))
    return sections


def _spread(grids: Sequence[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """Returns first, middle (by step) and last."""
    first, last = grids[0], grids[-1]
    middle = min(grids, key=lambda grid: abs(2 * grid[0] - first[0] - last[0]))
    return sorted({first, middle, last})


def _grid(shows: str, step: int, path: Path, most_bytes: int) -> str:
    caption = f"<figcaption>step {step:,}</figcaption>"
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as opened:
            pixels = np.asarray(opened.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return f"<figure><p>{html.escape(path.name)} cannot be read.</p>{caption}</figure>"
    source = html_page.data_uri(pixels, most_bytes)
    height, width = pixels.shape[:2]
    size = f"width={width} height={height}"
    image = f"<img alt='{shows} at step {step}' {size} src='{source}'>"
    return f"<figure>{html_page.zoom(image)}{caption}</figure>"


def _parts(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested parts of a configuration; what is not nested comes first, together."""
    plain = {name: value for name, value in configuration.items() if not isinstance(value, Mapping)}
    nested = {name: value for name, value in configuration.items() if isinstance(value, Mapping)}
    return ({"run": plain} if plain else {}) | nested


def _read_json(path: Path) -> Mapping[str, Any]:
    """Returns a JSON object; empty if there is no such file."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); restore or delete it") from error
    return data if isinstance(data, Mapping) else {"content": data}


STYLE = """
.grids{display:grid;gap:16px}.grids .zoom img{flex:0 1 auto}
.grids figcaption{margin-top:4px}
"""
