"""``report.html`` of decoded images: one self-contained page to see what a run has made."""

import io
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from transforms.decoding.image_files import stored_images
from transforms.images.npy import ARRAY_PREFIX, ArrayImage
from transforms.images.samples import levels_of
from transforms.sharded.manifest import layout_tile
from transforms.sharded.plan import spread
from vqgan import filesystems, html_page, publishing
from vqgan.channels import ChannelsConfig
from vqgan.config import ModelConfig
from vqgan.config_json import from_dict
from vqgan.errors import counted
from vqgan.image_grid import displayed_note
from vqgan.manifest import MANIFEST_FILE, REPORT_FILE

SAMPLE_IMAGES = 24
MOST_BYTES = 200_000
"""Largest image that stands in the page as it is."""


class Shown(NamedTuple):
    """An image of the grid, uint8 ``[H, W, 3]``, and what is written below it."""

    title: str
    label: int | None
    pixels: np.ndarray


def write_image_report(output: str, manifest: Mapping[str, Any]) -> None:
    """Publishes ``report.html`` in the output."""
    channels = from_dict(ModelConfig, manifest["codec"]["config"], MANIFEST_FILE).channels
    rendered = render_image_page(manifest, sample_images(output, manifest["shards"], channels))
    publishing.write_bytes(filesystems.join(output, REPORT_FILE), rendered.encode())


def sample_images(
    output: str, shards: Sequence[Mapping[str, Any]], channels: ChannelsConfig, images: int = SAMPLE_IMAGES
) -> list[Shown]:
    """Returns the first images of the slices, as many of each."""
    shown = []
    for number, wanted in spread(images, len(shards)):
        for row, data in islice(stored_images(output, shards[number]["name"]), wanted):
            title = row.key if row.view == 0 else f"{row.key}, view {row.view}"
            shown.append(Shown(title, row.label, _pixels(data, channels)))
    return shown


def _pixels(data: bytes, channels: ChannelsConfig) -> np.ndarray:
    """Decodes an image of the output to uint8 ``[H, W, C]``."""
    if data.startswith(ARRAY_PREFIX):
        return np.stack(levels_of(ArrayImage(data).samples, channels, top=255), axis=-1)
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def render_image_page(manifest: Mapping[str, Any], shown: Sequence[Shown]) -> str:
    """Renders the whole page."""
    counts, storage, form = manifest["counts"], manifest["storage"], manifest["identity"]["form"]
    tile = html_page.Tile
    numbers = [
        tile("images", f"{counts['images']:,}"),
        tile("rejects", f"{counts['rejects']:,}", "rows that could not be decoded; reasons below"),
        layout_tile(manifest),
        tile("format", f"{form['encoding']}, {form['container']}"),
        tile("per image", f"{storage['bytes_per_image'] / 1024:,.1f} KiB"),
        tile("images per second", f"{manifest['throughput']['images_per_second']:,.1f}"),
        tile("codec", manifest["codec"]["fingerprint"][:12], "fingerprint; that of the tokens"),
        tile("decoder", manifest["codec"]["decoder_sha256"][:12], "another decoder gives other images"),
    ]
    parts = {
        "tokens": manifest["tokens"],
        "plan": manifest["identity"],
        "codec": {name: value for name, value in manifest["codec"].items() if name != "card"},
        "throughput": manifest["throughput"],
        "versions": manifest["versions"],
    }
    rejected = [(name, f"{count:,}") for name, count in manifest["reject_reasons"].items()]
    sections = [
        html_page.tiles(numbers),
        html_page.section(f"Images{_shown_channels(shown)}", _image_grid(shown), "grid"),
        html_page.section(
            "Rejects by reason",
            html_page.table(("stage: error", "rows"), rejected)
            if rejected
            else "<p>None: every row became an image.</p>",
        ),
        html_page.section("Configuration", html_page.details(parts)),
    ]
    subtitle = f"finished {manifest['finished']} · plan {manifest['plan_hash'][:12]}"
    return html_page.document(f"{counted(counts['images'], 'image')} from tokens", subtitle, sections, STYLE)


def _shown_channels(shown: Sequence[Shown]) -> str:
    return displayed_note(shown[0].pixels.shape[-1]) if shown else ""


def _image_grid(shown: Sequence[Shown]) -> str:
    if not shown:
        return "<p>There is no image to show.</p>"
    return "".join(
        html_page.figure(
            [(image.title, html_page.data_uri(image.pixels, MOST_BYTES))],
            image.title,
            "" if image.label is None else f"class {image.label}",
        )
        for image in shown
    )


STYLE = """
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:14px}
"""
