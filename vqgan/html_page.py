"""Pieces of a self-contained HTML page: no scripts, no addresses, light and dark by the reader's choice.

Whatever comes from a user (keys, folder names, settings) goes through :func:`html.escape` here or in the
caller; ``body`` arguments are HTML already.
"""

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vqgan.image_grid import displayed


class Tile(NamedTuple):
    """A number of a page, large; all plain text.

    Attributes:
      name: what the number is of.
      value: the number with its unit.
      meaning: how to take it: what is good, or what it compares with.
    """

    name: str
    value: str
    meaning: str = ""


def document(title: str, subtitle: str, sections: Iterable[str], style: str = "") -> str:
    """Builds the whole page.

    Args:
      title: plain text, for the tab and the heading.
      subtitle: plain text below it.
      sections: as :func:`section` makes them.
      style: further CSS.
    """
    title = html.escape(title)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title><style>{STYLE}{style}</style><main><h1>{title}</h1>"
        f"<p class=sub>{html.escape(subtitle)}</p>" + "".join(sections) + "</main></html>"
    )


def section(title: str, body: str, kind: str = "") -> str:
    """Frames a part of the page; ``kind`` is the CSS class of what lies in it."""
    heading = f"<h2>{html.escape(title)}</h2>" if title else ""
    return f"<section>{heading}<div class='{kind}'>{body}</div></section>"


def tiles(values: Iterable[Tile | tuple[str, str]]) -> str:
    """Makes a section of numbers, each with its name and a word on what is good."""
    shown = "".join(_tile(Tile(*value)) for value in values)
    return section("", shown, "tiles")


def _tile(tile: Tile) -> str:
    name, value, meaning = map(html.escape, tile)
    below = f"<small>{meaning}</small>" if meaning else ""
    return f"<div class=tile><b>{value}</b><span>{name}</span>{below}</div>"


def figure(images: Sequence[tuple[str, str]], title: str, note: str = "") -> str:
    """Frames images side by side above their title; a click enlarges them together.

    Args:
      images: of each a plain text that stands for it, and its source as :func:`data_uri` makes it.
      title: plain text.
      note: plain text beside the title, set off from it.
    """
    title = html.escape(title)
    shown = "".join(f"<img alt='{html.escape(alt)}' src='{source}'>" for alt, source in images)
    beside = f"<b>{html.escape(note)}</b>" if note else ""
    caption = f"<figcaption><span title='{title}'>{title}</span>{beside}</figcaption>"
    return f"<figure>{zoom(shown)}{caption}</figure>"


def zoom(images: str) -> str:
    """Lets a click or the space bar fill the window with images, and another one go back; no script."""
    return f"<label class=zoom><input type=checkbox aria-label=enlarge /><span>{images}</span></label>"


def details(parts: Mapping[str, Any]) -> str:
    """Folds each part away, as JSON behind a summary that opens it."""
    return "".join(
        f"<details><summary>{html.escape(name)}</summary>"
        f"<pre>{html.escape(json.dumps(part, indent=2))}</pre></details>"
        for name, part in parts.items()
    )


def links(pages: Iterable[tuple[str, str]]) -> str:
    """Lists pages beside this one, as relative paths, each with what it shows (plain text)."""
    items = (
        f"<li><a href='{html.escape(path)}'>{html.escape(path)}</a> {html.escape(what)}</li>"
        for path, what in pages
    )
    return f"<ul class=links>{''.join(items)}</ul>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Makes a table of plain text: the names of its columns, and its rows."""
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{_cells('th', head)}</tr>{body}</table>"


def _cells(kind: str, texts: Iterable[str]) -> str:
    return "".join(f"<{kind}>{html.escape(text)}</{kind}>" for text in texts)


def data_uri(pixels: np.ndarray, most_bytes: int | None = None) -> str:
    """Encodes an image, uint8 ``[H, W, C]``, to stand in the page itself.

    Args:
      pixels: the image, of which :func:`vqgan.image_grid.displayed` shows some channels.
      most_bytes: a PNG that is larger becomes a JPEG, of less quality and then of less size until it fits.
    """
    image = Image.fromarray(np.ascontiguousarray(displayed(pixels)))
    # The least effort: after PNG's filters more takes twice the time and saves half a percent.
    data = _encoded(image, "PNG", compress_level=1)
    if most_bytes is None or len(data) <= most_bytes:
        return "data:image/png;base64," + base64.b64encode(data).decode()
    return "data:image/jpeg;base64," + base64.b64encode(_small_jpeg(image, most_bytes)).decode()


def _small_jpeg(image: Image.Image, most_bytes: int) -> bytes:
    while True:
        for quality in (95, 90, 80):
            data = _encoded(image, "JPEG", quality=quality, subsampling=0)
            if len(data) <= most_bytes:
                return data
        if max(image.size) < 64:
            return data
        size = (max(1, image.width * 3 // 4), max(1, image.height * 3 // 4))
        image = image.resize(size, Image.Resampling.LANCZOS)


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


STYLE = """
:root{--ink:#1c2430;--soft:#5d6b7c;--line:#dde3ea;--paper:#fff;--ground:#f4f6f9;--accent:#2463a8;
--second:#bf5a12;--third:#6b4fa0}
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf2;--soft:#9aa7b8;--line:#2d3643;--paper:#1a2029;
--ground:#11161d;--accent:#6aa5e8;--second:#f0a35c;--third:#b59ae6}}
*{box-sizing:border-box}
:root{color-scheme:light dark}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:28px;margin:0;overflow-wrap:anywhere}h2{font-size:18px;margin:0 0 12px}
.sub{color:var(--soft);margin:2px 0 20px}
section{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:18px;margin:0 0 16px}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:14px}
.tile b{display:block;font-size:18px}.tile span,.tile small{display:block;font-size:13px;line-height:1.35}
.tile small{color:var(--soft);font-size:12px}
figure{margin:0;min-width:0}figcaption{color:var(--soft);font-size:13px;display:flex;
justify-content:space-between;gap:8px}
figcaption span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.zoom{display:block;position:relative;cursor:zoom-in}.zoom span{display:flex;gap:4px}
.zoom img{flex:1 1 0;min-width:0;max-width:100%;height:auto;border-radius:4px}
.zoom input{position:absolute;opacity:0}.zoom input:focus-visible+span{outline:2px solid var(--accent)}
.zoom input:checked+span{position:fixed;inset:0;z-index:9;padding:2vmin;background:#000d;cursor:zoom-out}
.zoom input:checked+span img{height:100%;object-fit:contain;border-radius:0}
.links{margin:0;padding-left:20px}a{color:var(--accent)}
svg{display:block;width:100%;height:auto}svg text{fill:var(--soft);font-size:13px}
table{border-collapse:collapse}
td,th{padding:4px 18px 4px 0;border-bottom:1px solid var(--line);text-align:left;overflow-wrap:anywhere}
summary{cursor:pointer}pre{background:var(--ground);padding:12px;border-radius:6px;overflow:auto;font-size:13px}
"""
