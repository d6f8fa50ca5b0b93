"""What the pages of ``vqgan browse`` consist of: forms, links, images in boxes, captions, and their style.

Texts of a data set are escaped here; addresses and kinds are the pages' own.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

MOST_TEXT = 500
"""Characters that are shown of a value that the source passed through."""
_NAMES_OFFERED = 1000


def search_form(class_names: Sequence[str], key: str, label: str) -> str:
    """Builds the form that asks for rows by a part of their key, by class, or from a number on."""
    names = "".join(f"<option value='{html.escape(name)}'>" for name in class_names[:_NAMES_OFFERED])
    return (
        "<form action=/>"
        f"<input type=search name=key aria-label=key placeholder='part of a key' value='{html.escape(key)}'>"
        "<input name=label aria-label=class placeholder='class, number or name' list=names "
        f"value='{html.escape(label)}'><datalist id=names>{names}</datalist>"
        "<input name=from type=number min=0 aria-label='from row' placeholder='from row'>"
        "<button>Search</button></form>"
    )


def class_number(label: str, class_names: Sequence[str]) -> tuple[int | None, str]:
    """Returns the number of a class, or what is wrong with it."""
    if not label:
        return None, ""
    if label in class_names:
        return class_names.index(label), ""
    if label.isascii() and label.isdigit() and len(label) < 10:
        return int(label), ""
    return None, f"there is no class {label!r}: give a number, or one of the names"


def class_name(label: int, class_names: Sequence[str]) -> str:
    """Returns the number and name of a class as a page shows them."""
    if label < 0:
        return "none"
    return f"{label} {class_names[label]}" if label < len(class_names) else f"class {label}"


def pager_links(address: str, asked: Mapping[str, str], start: int, step: int, after: int | None) -> str:
    """Links to what comes before and after; what comes before a search is not known."""
    links = []
    if start and not (asked.get("key") or asked.get("label") or asked.get("reason")):
        links.append(link_to(address, {**asked, "from": str(max(0, start - step))}, "previous"))
    elif start:
        links.append(link_to(address, asked, "first"))
    if after is not None:
        links.append(link_to(address, {**asked, "from": str(after)}, "next"))
    return f"<p class=pager>{''.join(links)}</p>" if links else ""


def link_to(address: str, asked: Mapping[str, str], text: str) -> str:
    """Links to an address with what is asked for there; empty answers are left out."""
    query = urlencode({name: value for name, value in asked.items() if value})
    return f"<a href='{html.escape(f'{address}?{query}')}'>{html.escape(text)}</a>"


def image_tag(address: str, alt: str, kind: str = "") -> str:
    """Shows the image of an address."""
    return f"<img class='{kind}' alt='{html.escape(alt)}' src='{address}'>"


def boxed_image(
    address: str, width: int, height: int, box: tuple[int, int, int, int], alt: str, kind: str = ""
) -> str:
    """Lays a box (left, top, width and height) over an image of this width and height."""
    x, y, across, down = box
    return (
        f"<span class=boxed>{image_tag(address, alt, kind)}<svg viewBox='0 0 {width} {height}' "
        f"preserveAspectRatio=none aria-hidden=true>"
        f"<rect x={x} y={y} width={across} height={down} /></svg></span>"
    )


def captioned(image: str, caption: str) -> str:
    """Shows an image above its caption."""
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def shortened(value: Any) -> str:
    """Returns a value as text of at most :data:`MOST_TEXT` characters."""
    text = f"{len(value):,} bytes" if isinstance(value, bytes) else str(value)
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"


STYLE = """
main{max-width:1400px}
nav,form,.pager{display:flex;flex-wrap:wrap;gap:8px 18px;align-items:center;margin:0 0 16px}
section>div>.pager:last-child{margin:16px 0 0}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
nav a{font-weight:600}
input,select,button{font:inherit;color:var(--ink);background:var(--paper);border:1px solid var(--line);
border-radius:6px;padding:6px 10px;max-width:100%}
button{background:var(--accent);border-color:var(--accent);color:var(--paper);cursor:pointer}
.note{border-left:3px solid var(--second);padding-left:10px;overflow-wrap:anywhere}
.sub{overflow-wrap:anywhere;unicode-bidi:isolate}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:18px}
.strip{display:flex;gap:4px}.strip>*{flex:1 1 0;min-width:0}
img{display:block;width:100%;height:auto;border-radius:4px;background:var(--ground);color:var(--soft);
font-size:12px;overflow-wrap:anywhere}
.tokens,.patch,.map{image-rendering:pixelated}
.strip img{aspect-ratio:1;object-fit:contain}
figcaption{display:flex;justify-content:space-between;gap:8px;margin-top:4px}
figcaption span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap;unicode-bidi:isolate}
figcaption b{white-space:nowrap;overflow:hidden;text-overflow:ellipsis;max-width:50%}
.large{display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:18px;align-items:start}
.boxed{position:relative;display:block}
.boxed svg{position:absolute;inset:0;height:100%}
.boxed rect{fill:none;stroke:#ff2e63;stroke-width:2;vector-effect:non-scaling-stroke}
.map{border-radius:4px}.map a:hover rect{stroke:#fff;stroke-width:.15}
.codes{display:grid;grid-template-columns:repeat(auto-fill,minmax(84px,1fr));gap:12px}
.code{display:block;color:var(--ink);font-size:13px}.code span{color:var(--soft);float:right}
.code img,.empty{display:block;width:100%;aspect-ratio:1;margin-bottom:2px}
.code .empty{float:none;border:1px dashed var(--line);border-radius:4px}
td{unicode-bidi:isolate;vertical-align:top}table{width:100%}
"""
