"""The pages of ``vqgan browse``: plain HTML without scripts, in which every text of a data set is escaped."""

import dataclasses
import html
import math
import posixpath
from collections.abc import Iterable, Mapping

import numpy as np

from pipelines.browsing.browse_elements import (
    STYLE,
    boxed_image,
    captioned,
    class_name,
    class_number,
    image_tag,
    link_to,
    pager_links,
    search_form,
    shortened,
)
from pipelines.browsing.browse_images import Originals, Reconstructions, token_colors
from pipelines.browsing.token_browser import (
    BrowsedRow,
    CodePlace,
    NothingThereError,
    Query,
    SearchResult,
    TokenBrowser,
)
from vqgan import html_page
from vqgan.errors import UserError, counted
from vqgan.token_layouts import GRID

ROWS_SHOWN = 24
CODES_SHOWN = 96
PLACES_SHOWN = 24
REJECTS_SHOWN = 200
MOST_CELLS = 4096
"""Largest grid whose every token is a link."""


@dataclasses.dataclass(frozen=True)
class BrowsedSite:
    """What the pages are about.

    Attributes:
      browser: the data set.
      originals: None where they cannot be reached.
      reconstructions: None where there is no codec to make them.
      notes: why something is not shown, a line each.
    """

    browser: TokenBrowser
    originals: Originals | None = None
    reconstructions: Reconstructions | None = None
    notes: tuple[str, ...] = ()

    @property
    def kinds(self) -> dict[str, str]:
        """Returns which images a row has: name in an address, and what it is called."""
        names = {}
        if self.originals is not None:
            names["original"] = "original"
        if self.reconstructions is not None:
            names["reconstruction"] = "reconstruction"
        return names | {"tokens": "tokens"}

    @property
    def pixel_kinds(self) -> list[str]:
        """Returns which of them have patches."""
        return [name for name in self.kinds if name != "tokens"]

    def page(self, heading: str, sections: Iterable[str], problems: Iterable[str] = ()) -> str:
        """Builds a page below the links to all others."""
        browser = self.browser
        name = posixpath.basename(browser.path.rstrip("/")) or browser.path
        notes = [*problems, *self.notes]
        shown = "".join(f"<p class=note>{html.escape(' '.join(note.split()))}</p>" for note in notes)
        links = [("/", counted(browser.rows, "row")), ("/codes", counted(len(browser.histogram), "code"))]
        if not browser.is_sampled:
            links.append(("/rejects", counted(browser.rejects, "reject")))
        bar = "".join(f"<a href='{address}'>{text}</a>" for address, text in links)
        return html_page.document(name, heading, [f"<nav>{bar}</nav>", shown, *sections], style=STYLE)


def rows_page(site: BrowsedSite, key: str, label: str, start: int) -> str:
    """Shows rows in order: all, or those whose key contains a text, those of a class, or both."""
    browser = site.browser
    number, problem = class_number(label, browser.class_names)
    query = Query(key, number)
    found = SearchResult([], None, [problem]) if problem else browser.find(query, start, ROWS_SHOWN)
    cards = "".join(_card(site, row) for row in found.items)
    asked = {"key": key, "label": label}
    until = browser.rows if found.after is None else found.after
    if problem or start >= until:
        heading = f"none of {counted(browser.rows, 'row')}"
    elif query.is_all:
        heading = f"rows {start:,} to {until - 1:,} of {browser.rows:,}"
    else:
        heading = f"{len(found.items)} found in rows {start:,} to {until - 1:,} of {browser.rows:,}"
    legend = f"<p class=sub>Each: {', '.join(site.kinds.values())}.</p>"
    body = cards or "<p>None of these rows.</p>"
    sections = [
        search_form(browser.class_names, key, label),
        html_page.section(
            "",
            f"{legend}<div class=cards>{body}</div>{pager_links('/', asked, start, ROWS_SHOWN, found.after)}",
        ),
    ]
    return site.page(heading, sections, found.problems)


def row_page(site: BrowsedSite, number: int) -> str:
    """Shows one row: where its crop lies, what became of it, its tokens, and what is known of it.

    Raises:
      NothingThereError: there is no such row.
      UserError: its shard is gone or damaged.
    """
    browser = site.browser
    row = browser.row(number)
    problems = []
    figures = []
    if site.originals is not None:
        try:
            site.originals.of_row(number)
            left, top, right, bottom = row.crop
            box = (left, top, right - left, bottom - top)
            image = boxed_image(
                f"/image/whole/{number}", row.width, row.height, box, f"original of {row.key}"
            )
            figures.append(captioned(image, "original, with the crop"))
            image = image_tag(f"/image/original/{number}", f"crop of {row.key}")
            figures.append(
                captioned(image, "what the codec was given" + (", mirrored" if row.mirrored else ""))
            )
        except UserError as error:
            problems.append(f"no original: {error}")
    if site.reconstructions is not None:
        image = image_tag(f"/image/reconstruction/{number}", f"reconstruction of {row.key}")
        figures.append(captioned(image, "reconstruction"))
    figures.append(captioned(_token_map(row), "tokens"))
    neighbours = link_to("/", {"key": row.key}, "all views of this key")
    if number:
        neighbours = f"<a href='/row/{number - 1}'>previous row</a>{neighbours}"
    if number + 1 < browser.rows:
        neighbours += f"<a href='/row/{number + 1}'>next row</a>"
    facts = html_page.table(("column", "value"), _facts(row, browser))
    sections = [
        html_page.section("", "".join(figures), "large"),
        html_page.section("", f"<p class=pager>{neighbours}</p>{facts}"),
    ]
    return site.page(f"row {number:,}: {shortened(row.key)}", sections, problems)


def codes_page(site: BrowsedSite, start: int, order: str) -> str:
    """Shows codes with a patch each, those that occur most first or by number."""
    histogram = site.browser.histogram
    ranked = np.argsort(-histogram, kind="stable") if order == "use" else np.arange(len(histogram))
    chosen = [int(code) for code in ranked[start : start + CODES_SHOWN]]
    total = max(1, int(histogram.sum()))
    sample = site.browser.sample()
    tiles = "".join(
        _code_tile(site, code, sample.firsts.get(code), histogram[code] / total) for code in chosen
    )
    after = start + CODES_SHOWN
    other = ("number", "by number") if order == "use" else ("use", "by use")
    pager = pager_links(
        "/codes", {"order": order}, start, CODES_SHOWN, after if after < len(histogram) else None
    )
    used = int((histogram > 0).sum())
    sections = [
        html_page.section(
            "",
            f"<p class=pager>{link_to('/codes', {'order': other[0]}, other[1])}</p>"
            f"<div class=codes>{tiles or '<p>No codes.</p>'}</div>{pager}",
        )
    ]
    return site.page(f"{used:,} of {counted(len(histogram), 'code')} used", sections, sample.problems)


def code_page(site: BrowsedSite, code: int) -> str:
    """Shows the patches that a code stands for, in some rows.

    Raises:
      NothingThereError: there is no such code.
    """
    browser = site.browser
    if code >= len(browser.histogram):
        raise NothingThereError(f"there is no code {code}")
    sample = browser.sample()
    places = sample.places_of(code, PLACES_SHOWN)
    count, total = int(browser.histogram[code]), max(1, int(browser.histogram.sum()))
    cards = "".join(_place_card(site, place) for place in places)
    looked = f"Looked for in {len(sample.numbers):,} of {counted(browser.rows, 'row')}."
    shown = [f"patch of the {kind}" for kind in site.pixel_kinds]
    if shown:
        looked += f" Each: {', '.join(shown)}, and where it lies."
    body = f"<p class=sub>{looked}</p><div class=cards>{cards or '<p>It is in none of them.</p>'}</div>"
    links = "<a href='/codes'>all codes</a>"
    heading = f"code {code}: {count:,} of {total:,} tokens ({count / total:.3%})"
    return site.page(heading, [html_page.section("", f"<p class=pager>{links}</p>{body}")], sample.problems)


def rejects_page(site: BrowsedSite, reason: str, key: str, start: int) -> str:
    """Shows what was left out and why: all, or what was for one reason, or with a part of a key."""
    browser = site.browser
    found = browser.find_rejects(reason, key, start, REJECTS_SHOWN)
    reasons: Mapping[str, int] = browser.manifest["reject_reasons"]
    choices = "".join(
        f"<option value='{html.escape(name)}'{' selected' if name == reason else ''}>"
        f"{html.escape(name)} ({count:,})</option>"
        for name, count in reasons.items()
    )
    form = (
        "<form action=/rejects>"
        f"<input type=search name=key aria-label=key placeholder='part of a key' value='{html.escape(key)}'>"
        f"<select name=reason aria-label=reason><option value=''>every reason</option>{choices}</select>"
        "<button>Search</button></form>"
    )
    rows = [(row.key, f"{row.stage}: {row.error}", row.message, _bytes(row.size)) for row in found.items]
    shown = html_page.table(("key", "reason", "message", "size"), rows) if rows else "<p>None.</p>"
    pager = pager_links("/rejects", {"reason": reason, "key": key}, start, REJECTS_SHOWN, found.after)
    heading = f"left out: {counted(browser.rejects, 'image')}"
    return site.page(heading, [form, html_page.section("", shown + pager)], found.problems)


def error_page(site: BrowsedSite, message: str) -> str:
    """Shows one line."""
    return site.page(message, [])


def _card(site: BrowsedSite, row: BrowsedRow) -> str:
    images = "".join(
        image_tag(f"/image/{kind}/{row.number}", f"{called} of {shortened(row.key)}", kind)
        for kind, called in site.kinds.items()
    )
    title = shortened(row.key) if row.view == 0 else f"{shortened(row.key)}, view {row.view}"
    label = "" if row.label < 0 else f"<b>{html.escape(class_name(row.label, site.browser.class_names))}</b>"
    return (
        f"<figure><a class=strip href='/row/{row.number}'>{images}</a>"
        f"<figcaption><span title='{html.escape(title)}'>{html.escape(title)}</span>{label}</figcaption>"
        "</figure>"
    )


def _token_map(row: BrowsedRow) -> str:
    """Draws the grid of tokens as squares of colour, each a link to its code unless there are too many."""
    height, width = row.tokens.shape
    if row.tokens.size > MOST_CELLS:
        return image_tag(f"/image/tokens/{row.number}", f"tokens of {row.key}", "tokens")
    if height == 1:  # of no grid: lines that are as many as they are long
        width = math.isqrt(row.tokens.size - 1) + 1
        height = -(-row.tokens.size // width)
    tokens = row.tokens.reshape(-1)
    colors = token_colors(tokens)
    cells = "".join(
        f"<a href=/code/{token}><rect x={place % width} y={place // width} width=1 height=1 "
        f"fill='#{colors[place].tobytes().hex()}'><title>code {token}</title></rect></a>"
        for place, token in enumerate(tokens)
    )
    return (
        f"<svg class=map viewBox='0 0 {width} {height}' shape-rendering=crispEdges role=img "
        f"aria-label=tokens>{cells}</svg>"
    )


def _facts(row: BrowsedRow, browser: TokenBrowser) -> list[tuple[str, str]]:
    left, top, right, bottom = row.crop
    facts = [
        ("key", row.key),
        ("view", str(row.view)),
        ("class", class_name(row.label, browser.class_names)),
        ("source", f"{row.width} × {row.height} pixels"),
        ("crop", f"{left}, {top} to {right}, {bottom}" + (", mirrored" if row.mirrored else "")),
    ]
    return facts + [(name, shortened(value)) for name, value in browser.extra_columns(row.number).items()]


def _bytes(size: int | None) -> str:
    return "" if size is None else f"{size:,} bytes"


def _code_tile(site: BrowsedSite, code: int, place: CodePlace | None, share: float) -> str:
    kinds = site.pixel_kinds
    if place is None or not kinds:
        image = "<span class=empty></span>"
    else:
        image = image_tag(
            f"/image/patch/{kinds[0]}/{place.row}/{place.cell}", f"a patch of code {code}", "patch"
        )
    return f"<a class=code href='/code/{code}'>{image}<b>{code}</b><span>{share:.2%}</span></a>"


def _place_card(site: BrowsedSite, place: CodePlace) -> str:
    height, width = site.browser.grid if site.browser.layout == GRID else (1, 1)
    row, column = divmod(place.cell % (height * width), width)
    where = f"cell {row}, {column}" if site.browser.layout == GRID else f"token {place.cell:,}"
    images = "".join(
        image_tag(f"/image/patch/{kind}/{place.row}/{place.cell}", f"patch of the {kind}", "patch")
        for kind in site.pixel_kinds
    )
    kind = site.pixel_kinds[0] if site.pixel_kinds else "tokens"
    box = (column, row, 1, 1)
    whole = boxed_image(f"/image/{kind}/{place.row}", width, height, box, f"row {place.row}", kind)
    return (
        f"<figure><a class=strip href='/row/{place.row}'>{images}{whole}</a>"
        f"<figcaption>row {place.row:,}, {where}</figcaption></figure>"
    )
