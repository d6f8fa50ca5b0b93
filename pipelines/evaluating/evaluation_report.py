"""What ``vqgan evaluate`` prints and writes: its results as a table, JSON, CSV and ``report.html``."""

import csv
import html
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from pipelines.evaluating.evaluation_metrics import HIGHER_IS_BETTER, Metric, Scores
from vqgan import html_page as page
from vqgan.errors import counted

SHOWN = 4
"""Pairs in each of the three groups of examples, where there are images enough."""
MOST_BYTES = 400_000  # of an image in the page


class ExamplePair(NamedTuple):
    """An image in the page.

    Attributes:
      key: of the image.
      original: uint8 ``[S, S, 3]``.
      reconstruction: of the same shape.
      caption: the image's metrics in words.
    """

    key: str
    original: np.ndarray
    reconstruction: np.ndarray
    caption: str


def results_as_json(results: Mapping[str, Any]) -> str:
    """Writes JSON without infinities and NaN."""
    return json.dumps(results, indent=2, allow_nan=False) + "\n"


def format_results(results: Mapping[str, Any]) -> str:
    """Writes an aligned table, and below it what was left out and why."""
    reference = results["reference"]
    lines = list(_aligned([list(row) for row in metric_rows(results)]))
    lines += ["", f"{reference['images']} of {reference['chosen']} images measured"]
    lines += [f"rejected, {reason}: {count}" for reason, count in reference["reject_reasons"].items()]
    lines += [f"skipped {name}: {reason}" for name, reason in results["skipped"].items()]
    lines += [f"note: {note}" for note in results["notes"]]
    lines += results.get("citations", ())
    return "\n".join(lines)


def metric_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns a row for each metric below a row of headings: name, a cell for each codec, better, n, set."""
    codecs = results["codecs"]
    rows = [
        ("metric", *short_names([codec["codec"] for codec in codecs]), "better", "images", "reference set")
    ]
    for name, metric in codecs[0]["metrics"].items():
        cells = [_cell(codec["metrics"][name]) for codec in codecs]
        rows.append((name, *cells, metric["better"], f"{metric['images']:,}", metric["reference_set"]))
    return rows


def short_names(codecs: Sequence[str]) -> list[str]:
    """Returns the last parts of paths where those differ, else the whole paths."""
    short = [PurePath(codec).name or codec for codec in codecs]
    return short if len(set(short)) == len(short) else list(codecs)


def _cell(metric: Metric) -> str:
    value = metric["value"]
    if value is None:
        return "all equal"
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return f"{text} {metric['unit']}".rstrip()


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def per_image_csv(codecs: Sequence[str], keys: Sequence[str], scores: Sequence[Scores]) -> str:
    """Writes a line for each image and codec: ``key``, ``codec``, each per-image metric (PSNR may be inf)."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    for codec, measured in zip(codecs, scores, strict=True):
        values = measured.per_image
        if not sink.tell():
            writer.writerow(["key", "codec", *(name.replace("-", "_") for name in values)])
        columns = np.array(list(values.values())).T if values else np.zeros((len(keys), 0))
        for key, row in zip(keys, columns, strict=True):
            writer.writerow([key, codec, *(repr(float(value)) for value in row)])
    return sink.getvalue()


def choose_examples(scores: Scores, shown: int = SHOWN) -> dict[str, list[int]]:
    """Returns numbers of the images to look at, worst first in each group; none is in two groups.

    They are ranked by the first per-image metric that was measured.
    """
    if not scores.per_image:
        return {}
    name, values = next(iter(scores.per_image.items()))
    order = np.argsort(values if name in HIGHER_IS_BETTER else -values, kind="stable").tolist()
    total = len(order)
    count = min(shown, max(1, total // 3))
    middle = (total - count) // 2
    groups = {
        f"worst by {name}": order[:count],
        f"median by {name}": order[max(count, middle) : min(middle + count, total - count)],
        f"best by {name}": order[max(count, total - count) :],
    }
    return {title: rows for title, rows in groups.items() if rows}


def render_evaluation(
    results: Mapping[str, Any], examples: Sequence[tuple[str, Sequence[ExamplePair]]]
) -> str:
    """Renders ``report.html``: the table, and the worst, middling and best reconstructions.

    Args:
      results: as :func:`pipelines.evaluating.evaluate_codecs.run_evaluation` returns them.
      examples: groups of images, each below its title.
    """
    reference = results["reference"]
    sections = [page.section("Metrics", _metrics_table(metric_rows(results)), "metrics")]
    sections += [page.section(title, _pairs(group), "grid") for title, group in examples]
    remarks = [*(f"skipped {name}: {why}" for name, why in results["skipped"].items()), *results["notes"]]
    if remarks:
        listed = "".join(f"<li>{html.escape(remark)}</li>" for remark in remarks)
        sections.append(page.section("Remarks", f"<ul>{listed}</ul>"))
    if reference["rejects"]:
        reasons = [(name, f"{count:,}") for name, count in reference["reject_reasons"].items()]
        sections.append(page.section("Rejects by reason", page.table(("stage: error", "images"), reasons)))
    codecs = {
        codec["codec"]: {k: v for k, v in codec.items() if k != "metrics"} for codec in results["codecs"]
    }
    details = {"reference set": reference, "codecs": codecs, "versions": results["versions"]}
    sections.append(page.section("Configuration", page.details(details)))
    title = f"Reconstructions by {', '.join(short_names(list(codecs)))}"
    subtitle = (
        f"{counted(reference['images'], 'image')} of {reference['data']} · finished {results['finished']}"
    )
    return page.document(title, subtitle, sections, STYLE)


def _metrics_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[html.escape(cell) for cell in row] for row in rows]
    lines = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in body)
    return f"<table><tr><th>{'</th><th>'.join(head)}</th></tr>{lines}</table>"


def _pairs(examples: Sequence[ExamplePair]) -> str:
    """Renders originals beside reconstructions, with the metrics of the run."""
    return "".join(map(_pair, examples)) or "<p>These images can no longer be read.</p>"


def _pair(example: ExamplePair) -> str:
    original, reconstruction = (
        page.data_uri(image, MOST_BYTES) for image in (example.original, example.reconstruction)
    )
    images = [(f"original of {example.key}", original), (f"reconstruction of {example.key}", reconstruction)]
    return page.figure(images, example.key, example.caption)


STYLE = """
.metrics{overflow-x:auto}.metrics :is(td,th){white-space:nowrap}
.metrics td:last-child{white-space:normal;min-width:280px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(235px,1fr));gap:16px}
.grid figcaption{display:block}.grid figcaption span{display:block}
"""
