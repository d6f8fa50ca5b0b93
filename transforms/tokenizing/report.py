"""``report.html``: one self-contained page to see what a run has made."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from transforms.sharded.manifest import layout_tile
from transforms.sharded.plan import spread
from transforms.tokenizing.replay import StoredRow, stored_rows
from transforms.tokenizing.shard import PlannedImages, TokenizeTask
from vqgan import filesystems, html_page, publishing
from vqgan.errors import counted
from vqgan.image_grid import displayed_note
from vqgan.manifest import REPORT_FILE, manifest_fields, parts_of
from vqgan.metrics.image import psnr

if TYPE_CHECKING:
    from vqgan.codec import Codec


SAMPLE_IMAGES = 12
SHARE_OF_RUN = 50
"""One image in so many is decoded, or a batch of them: decoding one costs what encoding two or three does, so
that a report costs about 5 % of what it reports."""
REPORT_BATCH_SIZE = 2
"""Batches of the run's own size would be padding for the most part."""
HISTOGRAM_BARS = 128


class Pair(NamedTuple):
    """An original beside its reconstruction, uint8 ``[S, S, C]`` each, and their PSNR in dB."""

    key: str
    original: np.ndarray
    reconstruction: np.ndarray
    psnr: float


def write_token_report(task: TokenizeTask, manifest: Mapping[str, Any], codec: "Codec") -> None:
    """Publishes ``report.html`` in the task's output."""
    images = min(SAMPLE_IMAGES, max(REPORT_BATCH_SIZE, manifest["counts"]["images"] // SHARE_OF_RUN))
    rendered = render_token_page(manifest, sample_pairs(images_of_parts(task, manifest), codec, images))
    publishing.write_bytes(filesystems.join(task.output, REPORT_FILE), rendered.encode())


def images_of_parts(images: PlannedImages, manifest: Mapping[str, Any]) -> list[PlannedImages]:
    """Returns the images of each part of a data set, of which those of one are given."""
    parts = enumerate(parts_of(manifest_fields(images.output, manifest)))
    return [dataclasses.replace(images, part=number, slices=part.slices) for number, part in parts]


def sample_pairs(parts: Sequence[PlannedImages], codec: "Codec", images: int = SAMPLE_IMAGES) -> list[Pair]:
    """Returns a few images, taken evenly from the slices, decoded from the tokens that the shards hold.

    There are none where the codec has no decoder.
    """
    if not codec.config.has_decoder:
        return []
    rows: list[StoredRow] = []
    slices = [(part, number) for part in parts for number in range(part.slices)]
    for place, wanted in spread(images, len(slices)):
        part, number = slices[place * len(slices) // min(images, len(slices))]
        rows += [row for row in stored_rows(part, number, wanted) if row.view == 0]
    if not rows:
        return []
    originals = np.stack([row.pixels for row in rows])
    reconstructions = codec.decode(np.stack([row.tokens for row in rows]))
    values = psnr(originals, reconstructions)
    return [
        Pair(row.key, original, reconstruction, float(value))
        for row, original, reconstruction, value in zip(rows, originals, reconstructions, values, strict=True)
    ]


def render_token_page(manifest: Mapping[str, Any], pairs: Sequence[Pair]) -> str:
    """Renders the whole page."""
    counts, codebook, storage = manifest["counts"], manifest["codebook"], manifest["storage"]
    throughput = manifest["throughput"]
    mean = f"{np.mean([pair.psnr for pair in pairs]):.2f} dB" if pairs else "–"
    tile = html_page.Tile
    numbers = [
        tile("images", f"{counts['images']:,}"),
        tile("rejects", f"{counts['rejects']:,}", "images that could not be used; reasons below"),
        tile("rows", f"{counts['rows']:,}", "one for each view of an image"),
        tile("tokens", f"{counts['tokens']:,}"),
        layout_tile(manifest),
        tile(
            "codes used",
            f"{codebook['used']:,} of {codebook['size']:,}",
            "more is better; few images use few",
        ),
        tile(
            "perplexity", f"{codebook['perplexity']:,.1f}", f"higher is better, {codebook['size']:,} at most"
        ),
        tile("entropy", f"{codebook['entropy_bits']:.2f} bits", "what a token tells on average"),
        tile(
            "per token on disk",
            f"{storage['bits_per_token']:.2f} bits",
            "near the entropy, but for small data sets",
        ),
        tile("images per second", f"{throughput['images_per_second']:,.1f}"),
        tile("PSNR of these images", mean, "higher is better; from 30 dB hard to tell apart"),
        tile("codec", manifest["codec"]["fingerprint"][:12], "fingerprint: tokens of another one do not mix"),
    ]
    sections = [
        html_page.tiles(numbers),
        html_page.section(
            f"Originals and reconstructions{_shown_channels(pairs)}", _image_grid(pairs, manifest), "grid"
        ),
        html_page.section("Codebook", _histogram(np.array(codebook["histogram"])), "plot"),
        html_page.section("Rejects by reason", _reasons(manifest["reject_reasons"])),
        html_page.section("Configuration", _details(manifest)),
    ]
    subtitle = f"finished {manifest['finished']} · plan {manifest['plan_hash'][:12]}"
    return html_page.document(f"{counted(counts['images'], 'image')} as tokens", subtitle, sections, STYLE)


def _shown_channels(pairs: Sequence[Pair]) -> str:
    return displayed_note(pairs[0].original.shape[-1]) if pairs else ""


def _image_grid(pairs: Sequence[Pair], manifest: Mapping[str, Any]) -> str:
    if not manifest["codec"]["config"].get("has_decoder", True):
        return "<p>The codec has no decoder: it makes tokens, and no images of them.</p>"
    if not pairs:
        return "<p>There is no image to show.</p>"
    return "".join(
        html_page.figure(
            [
                (f"original of {pair.key}", html_page.data_uri(pair.original)),
                (f"reconstruction of {pair.key}", html_page.data_uri(pair.reconstruction)),
            ],
            pair.key,
            f"{pair.psnr:.2f} dB",
        )
        for pair in pairs
    )


def _histogram(counts: np.ndarray) -> str:
    """Returns the share of tokens by rank of code, beside the line of an evenly used codebook; an SVG."""
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
    return html_page.table(
        ("stage: error", "images"), [(name, f"{count:,}") for name, count in reasons.items()]
    )


def _details(manifest: Mapping[str, Any]) -> str:
    parts = {
        "preprocessing": manifest["identity"]["preprocessing"],
        "codec": {name: value for name, value in manifest["codec"].items() if name != "card"},
        "source": manifest["identity"]["source"],
        "throughput": manifest["throughput"],
        "versions": manifest["versions"],
    }
    return html_page.details(parts)


STYLE = """
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:16px}
.bars{fill:var(--accent)}.plot line{stroke:var(--ink);stroke-dasharray:5 4}
"""
