"""``report.html``: one self-contained page to see what a run has made."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from transforms import filesystems
from transforms.slices import Job
from transforms.verifying import StoredRow, spread, stored_rows
from vqgan.metrics import psnr

if TYPE_CHECKING:
    from vqgan.codec import Codec

REPORT_FILE = "report.html"
SAMPLE_IMAGES = 12
HISTOGRAM_BARS = 128


class Pair(NamedTuple):
    """An original beside its reconstruction, uint8 ``[S, S, 3]`` each, and their PSNR in dB."""

    key: str
    original: np.ndarray
    reconstruction: np.ndarray
    psnr: float


def write_report(job: Job, manifest: Mapping[str, Any], codec: "Codec") -> None:
    """Publishes ``report.html`` in the job's output."""
    page = render_page(manifest, sample_pairs(job, codec))
    filesystems.write_bytes(filesystems.join(job.output, REPORT_FILE), page.encode())


def sample_pairs(job: Job, codec: "Codec", images: int = SAMPLE_IMAGES) -> list[Pair]:
    """A few images, taken evenly from the slices, decoded from the tokens that the shards hold."""
    rows: list[StoredRow] = []
    for number, wanted in spread(images, job.slices):
        rows += [row for row in stored_rows(job, number, wanted) if row.view == 0]
    if not rows:
        return []
    originals = np.stack([row.pixels for row in rows])
    reconstructions = codec.decode(np.stack([row.tokens for row in rows]))
    values = psnr(originals, reconstructions)
    return [
        Pair(row.key, original, reconstruction, float(value))
        for row, original, reconstruction, value in zip(rows, originals, reconstructions, values, strict=True)
    ]


def render_page(manifest: Mapping[str, Any], pairs: Sequence[Pair]) -> str:
    """The whole page."""
    counts, codebook, storage = manifest["counts"], manifest["codebook"], manifest["storage"]
    throughput = manifest["throughput"]
    mean = f"{np.mean([pair.psnr for pair in pairs]):.2f} dB" if pairs else "–"
    tiles = [
        ("images", f"{counts['images']:,}"),
        ("rejects", f"{counts['rejects']:,}"),
        ("rows", f"{counts['rows']:,}"),
        ("tokens", f"{counts['tokens']:,}"),
        ("grid", f"{manifest['grid'][0]} × {manifest['grid'][1]}"),
        ("codes used", f"{codebook['used']:,} of {codebook['size']:,}"),
        ("perplexity", f"{codebook['perplexity']:,.1f}"),
        ("entropy", f"{codebook['entropy_bits']:.2f} bits"),
        ("per token on disk", f"{storage['bits_per_token']:.2f} bits"),
        ("images per second", f"{throughput['images_per_second']:,.1f}"),
        ("PSNR of the sheet", mean),
        ("codec", manifest["codec"]["fingerprint"][:12]),
    ]
    sections = [
        _section("", "".join(f"<div class=tile><b>{v}</b><span>{n}</span></div>" for n, v in tiles), "tiles"),
        _section("Originals and reconstructions", _sheet(pairs), "sheet"),
        _section("Codebook", _histogram(np.array(codebook["histogram"])), "plot"),
        _section("Rejects by reason", _reasons(manifest["reject_reasons"]), ""),
        _section("Configuration", _details(manifest), ""),
    ]
    title = f"{counts['images']:,} images as tokens"
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title><style>{STYLE}</style><main><h1>{title}</h1>"
        f"<p class=sub>finished {html.escape(manifest['finished'])} · plan {manifest['plan_hash'][:12]}</p>"
        + "".join(sections)
        + "</main></html>"
    )


def _section(title: str, body: str, kind: str) -> str:
    heading = f"<h2>{html.escape(title)}</h2>" if title else ""
    return f"<section>{heading}<div class='{kind}'>{body}</div></section>"


def _sheet(pairs: Sequence[Pair]) -> str:
    if not pairs:
        return "<p>There is no image to show.</p>"
    figures = []
    for pair in pairs:
        key = html.escape(pair.key)
        figures.append(
            f"<figure><div class=pair><img alt='original of {key}' src='{_data_uri(pair.original)}'>"
            f"<img alt='reconstruction of {key}' src='{_data_uri(pair.reconstruction)}'></div>"
            f"<figcaption><span title='{key}'>{key}</span><b>{pair.psnr:.2f} dB</b></figcaption></figure>"
        )
    return "".join(figures)


def _histogram(counts: np.ndarray) -> str:
    """Share of tokens by rank of code, beside the line of an evenly used codebook; an SVG."""
    if counts.sum() == 0:
        return "<p>No tokens.</p>"
    ranked = np.sort(counts)[::-1] / counts.sum()
    groups = np.array_split(ranked, min(HISTOGRAM_BARS, len(ranked)))
    heights = np.array([group.mean() for group in groups])
    even, top = 1 / len(counts), heights.max()
    width = 960 / len(heights)
    bars = "".join(
        f"<rect x='{index * width:.2f}' y='{220 * (1 - value / top):.2f}' width='{max(width - 1, 0.5):.2f}' "
        f"height='{220 * value / top:.2f}'/>"
        for index, value in enumerate(heights)
    )
    line = 220 * (1 - even / top)
    return (
        "<svg viewBox='0 0 960 250' role=img aria-label='share of tokens by rank of code'>"
        f"<g class=bars>{bars}</g><line x1=0 x2=960 y1='{line:.2f}' y2='{line:.2f}'/>"
        f"<text x=954 y='{max(line - 6, 12):.2f}' text-anchor=end>even use</text>"
        f"<text x=0 y=244>most used code: {ranked[0]:.2%} of all tokens</text>"
        f"<text x=960 y=244 text-anchor=end>{int((counts == 0).sum()):,} codes never used</text></svg>"
    )


def _reasons(reasons: Mapping[str, int]) -> str:
    if not reasons:
        return "<p>None: every image became tokens.</p>"
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{count:,}</td></tr>" for name, count in reasons.items()
    )
    return f"<table><tr><th>stage: error</th><th>images</th></tr>{rows}</table>"


def _details(manifest: Mapping[str, Any]) -> str:
    parts = {
        "preprocessing": manifest["identity"]["preprocessing"],
        "codec": {name: value for name, value in manifest["codec"].items() if name != "card"},
        "source": manifest["identity"]["source"],
        "throughput": manifest["throughput"],
        "versions": manifest["versions"],
    }
    return "".join(
        f"<details><summary>{name}</summary><pre>{html.escape(json.dumps(part, indent=2))}</pre></details>"
        for name, part in parts.items()
    )


def _data_uri(pixels: np.ndarray) -> str:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode()


STYLE = """
:root{--ink:#1c2430;--soft:#5d6b7c;--line:#dde3ea;--paper:#fff;--ground:#f4f6f9;--accent:#2463a8}
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf2;--soft:#9aa7b8;--line:#2d3643;--paper:#1a2029;
--ground:#11161d;--accent:#6aa5e8}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:28px;margin:0}h2{font-size:18px;margin:0 0 12px}.sub{color:var(--soft);margin:2px 0 20px}
section{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:18px;margin:0 0 16px}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:14px}
.tile b{display:block;font-size:18px}.tile span{color:var(--soft);font-size:13px}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:16px}
figure{margin:0}.pair{display:flex;gap:4px}.pair img{width:50%;border-radius:4px}
figcaption{display:flex;justify-content:space-between;gap:8px;color:var(--soft);font-size:13px}
figcaption span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
svg{width:100%;height:auto}.bars{fill:var(--accent)}line{stroke:var(--ink);stroke-dasharray:5 4}
svg text{fill:var(--soft);font-size:13px}
table{border-collapse:collapse}
td,th{padding:4px 18px 4px 0;border-bottom:1px solid var(--line);text-align:left}
summary{cursor:pointer}pre{background:var(--ground);padding:12px;border-radius:6px;overflow:auto;font-size:13px}
"""
