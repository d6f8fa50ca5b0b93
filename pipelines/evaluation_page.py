"""``report.html`` of ``vqgan evaluate``: the table, and the worst, middling and best reconstructions."""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.evaluation_results import names, table
from pipelines.scoring import HIGHER_IS_BETTER, Scores
from transforms.slices import Item
from vqgan import html_page

if TYPE_CHECKING:
    from pipelines.evaluating import Run
    from vqgan.codec import Codec

SHOWN = 4
"""Pairs in each of the three groups, where there are images enough."""
MOST_BYTES = 400_000  # of a picture in the page


def render_page(run: "Run", result: Mapping[str, Any], entries: pa.Table) -> str:
    """The whole page. The pictures that it shows are read and reconstructed once more."""
    groups = [choose(scores) for scores in run.scores]
    wanted = {run.keys[row] for group in groups for rows in group.values() for row in rows}
    originals = _read_again(run, entries, wanted)
    reference = result["reference"]
    sections = [html_page.section("Figures", _figures(table(result)), "figures")]
    labels = names(run.config.codecs)
    for label, codec, scores, group in zip(labels, run.codecs, run.scores, groups, strict=True):
        for title, rows in group.items():
            found = [row for row in rows if run.keys[row] in originals]
            sections.append(
                html_page.section(f"{label}: {title}", _sheet(run, codec, scores, found, originals), "sheet")
            )
    remarks = [*(f"skipped {name}: {why}" for name, why in result["skipped"].items()), *result["notes"]]
    if remarks:
        listed = "".join(f"<li>{html.escape(remark)}</li>" for remark in remarks)
        sections.append(html_page.section("Remarks", f"<ul>{listed}</ul>"))
    if reference["rejects"]:
        reasons = [(name, f"{count:,}") for name, count in reference["reject_reasons"].items()]
        sections.append(
            html_page.section("Rejects by reason", html_page.table(("stage: error", "images"), reasons))
        )
    codecs = {
        codec["codec"]: {k: v for k, v in codec.items() if k != "figures"} for codec in result["codecs"]
    }
    details = {"reference set": reference, "codecs": codecs, "versions": result["versions"]}
    sections.append(html_page.section("Configuration", html_page.details(details)))
    title = f"Reconstructions by {', '.join(labels)}"
    subtitle = f"{reference['images']:,} images of {reference['data']} · finished {result['finished']}"
    return html_page.document(title, subtitle, sections, STYLE)


def choose(scores: Scores, shown: int = SHOWN) -> dict[str, list[int]]:
    """Numbers of the images to look at, worst first in each group; none is in two groups.

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


def _read_again(run: "Run", entries: pa.Table, keys: set[str]) -> dict[str, np.ndarray]:
    """Pixels ``[S, S, 3]`` by key; whatever can no longer be read is missing."""
    chosen = entries.filter(pc.is_in(entries.column("key"), pa.array(sorted(keys), pa.string())))
    return {item.rows[0].key: item.pixels[0] for item in run.read(chosen) if isinstance(item, Item)}


def _sheet(
    run: "Run", codec: "Codec", scores: Scores, rows: Sequence[int], originals: Mapping[str, np.ndarray]
) -> str:
    """Originals beside reconstructions, with the figures of the run."""
    if not rows:
        return "<p>These pictures can no longer be read.</p>"
    keys = [run.keys[row] for row in rows]
    images = np.stack([originals[key] for key in keys])
    reconstructions = codec.decode(codec.encode(images))
    captions = [_caption(scores, row) for row in rows]
    return "".join(map(_pair, keys, images, reconstructions, captions))


def _caption(scores: Scores, row: int) -> str:
    return ", ".join(f"{name} {values[row]:.4g}" for name, values in scores.per_image.items())


def _pair(key: str, image: np.ndarray, reconstruction: np.ndarray, caption: str) -> str:
    key = html.escape(key)
    return (
        f"<figure><div class=pair><img alt='original of {key}' src='{html_page.data_uri(image, MOST_BYTES)}'>"
        f"<img alt='reconstruction of {key}' src='{html_page.data_uri(reconstruction, MOST_BYTES)}'></div>"
        f"<figcaption><span title='{key}'>{key}</span><b>{html.escape(caption)}</b></figcaption></figure>"
    )


def _figures(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[html.escape(cell) for cell in row] for row in rows]
    lines = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in body)
    return f"<table><tr><th>{'</th><th>'.join(head)}</th></tr>{lines}</table>"


STYLE = """
.figures{overflow-x:auto}.figures :is(td,th){white-space:nowrap}
.figures td:last-child{white-space:normal;min-width:280px}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(235px,1fr));gap:16px}
.pair{display:flex;gap:4px}.pair img{width:50%;border-radius:4px}
.sheet figcaption span{display:block;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
"""
