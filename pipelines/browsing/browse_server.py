"""The server of ``vqgan browse``: HTTP on loopback for one web browser, read-only, and for no other origin.

It is the standard library's, which has all that is needed: a page for one person asks for no framework. A web
page of somebody else's must not read what it serves, so a request has to name this server as its host (DNS
rebinding), must not come from another origin, and gets an answer that no other origin may embed. Addresses
hold numbers and texts to search for; none of them becomes the name of a file.
"""

import base64
import contextlib
import hashlib
import re
import socketserver
import sys
import traceback
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import numpy as np

from pipelines.browsing import browse_elements, browse_pages
from pipelines.browsing.browse_images import (
    Originals,
    Reconstructions,
    as_jpeg,
    as_png,
    patch_of,
    token_colors,
)
from pipelines.browsing.browse_pages import BrowsedSite
from pipelines.browsing.token_browser import NothingThereError, TokenBrowser
from transforms.sources import SourceConfig
from vqgan import __version__, html_page
from vqgan.errors import UserError, first_line

LOOPBACK = "127.0.0.1"
IDLE_SECONDS = 30
"""How long a connection may say nothing."""
_MOST_FIELDS = 16
_HTML, _PNG, _JPEG = "text/html; charset=utf-8", "image/png", "image/jpeg"


def open_site(path: str, source: SourceConfig | None, codec: str | None) -> BrowsedSite:
    """Opens all that there is to show of a token data set.

    Args:
      path: folder, URI, or ``hf://datasets/owner/name[@revision]``.
      source: where its images came from; None for no originals.
      codec: path or name; None for the one that the data set names, if that can be opened.

    Raises:
      UserError: no finished token data set, no such source, or another codec.
    """
    browser, notes = TokenBrowser(path), []
    originals = None if source is None else Originals(browser, source)
    if originals is None and not browser.is_sampled:
        notes.append("Start it with --input, where the images came from, to see the originals.")
    try:
        reconstructions = Reconstructions(browser, codec)
    except UserError as error:
        if codec is not None:
            raise
        reconstructions = None
        notes.append(f"No reconstructions: {error}. Start it with --codec, the one that made the tokens.")
    return BrowsedSite(browser, originals, reconstructions, tuple(notes))


class Answer(NamedTuple):
    """What is sent: the status, the type of the contents, and these."""

    status: HTTPStatus
    type: str
    body: bytes


def answer_to(site: BrowsedSite, target: str) -> Answer:
    """Answers a request for an address, such as ``/row/7`` or ``/?key=cat&from=100``.

    What is wrong with the data set is a page with one line; so is a mistake of ours, whose traceback goes to
    standard error.
    """
    try:
        return _routed(site, target)
    except NothingThereError as error:
        return _failed(site, HTTPStatus.NOT_FOUND, str(error))
    except UserError as error:
        return _failed(site, HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
    except Exception:  # noqa: BLE001 - a mistake of ours is told, and the next page may do without it
        traceback.print_exc()
        message = "a mistake of vqgan's own; please report it with the lines on the terminal"
        return _failed(site, HTTPStatus.INTERNAL_SERVER_ERROR, message)


def _failed(site: BrowsedSite, status: HTTPStatus, message: str) -> Answer:
    return Answer(status, _HTML, browse_pages.error_page(site, message).encode())


def _routed(site: BrowsedSite, target: str) -> Answer:
    parts = urlsplit(target) if target.startswith("/") and not target.startswith("//") else None
    for pattern, make in _ROUTES.items():
        match = re.fullmatch(pattern, parts.path) if parts is not None else None
        if parts is not None and match is not None:
            return make(site, match.groups(), _query(parts.query))
    raise NothingThereError("there is no such page")


def _query(text: str) -> dict[str, str]:
    """Reads the last value of each field of a query; nothing where there are too many."""
    try:
        return {name: values[-1] for name, values in parse_qs(text, max_num_fields=_MOST_FIELDS).items()}
    except ValueError:
        return {}


def _start(query: Mapping[str, str]) -> int:
    text = query.get("from", "")
    return int(text) if re.fullmatch("[0-9]{1,15}", text) else 0


_Make = Callable[[BrowsedSite, tuple[str, ...], Mapping[str, str]], Answer]


def _page(make: Callable[[BrowsedSite, tuple[str, ...], Mapping[str, str]], str]) -> _Make:
    return lambda site, parts, query: Answer(HTTPStatus.OK, _HTML, make(site, parts, query).encode())


def _pixels(site: BrowsedSite, kind: str, number: int) -> np.ndarray:
    """Returns an image of a row, uint8 ``[H, W, 3]``."""
    row = site.browser.row(number)
    if kind == "tokens":
        return token_colors(row.tokens)
    if kind == "reconstruction" and site.reconstructions is not None:
        return site.reconstructions.of_row(number)
    if kind in ("original", "whole") and site.originals is not None:
        original = site.originals.of_row(number)
        return original.pixels if kind == "original" else original.whole
    raise NothingThereError(f"there is no {kind} to show")


def _image(site: BrowsedSite, parts: tuple[str, ...], query: Mapping[str, str]) -> Answer:
    kind, number = parts
    pixels = _pixels(site, kind, int(number))
    if kind == "whole":
        return Answer(HTTPStatus.OK, _JPEG, as_jpeg(pixels))
    return Answer(HTTPStatus.OK, _PNG, as_png(pixels))


def _patch(site: BrowsedSite, parts: tuple[str, ...], query: Mapping[str, str]) -> Answer:
    kind, number, cell = parts
    height, width = site.browser.grid
    if int(cell) >= height * width:
        raise NothingThereError(f"there is no cell {cell} in a grid of {height} x {width}")
    pixels = _pixels(site, kind, int(number))
    return Answer(
        HTTPStatus.OK, _PNG, as_png(patch_of(pixels, site.browser.grid, int(cell), site.browser.layout))
    )


def _icon(site: BrowsedSite, parts: tuple[str, ...], query: Mapping[str, str]) -> Answer:
    tokens = np.arange(16).reshape(4, 4).repeat(8, 0).repeat(8, 1)
    return Answer(HTTPStatus.OK, _PNG, as_png(token_colors(tokens)))


_ROUTES: dict[str, _Make] = {
    "/": _page(
        lambda site, parts, query: browse_pages.rows_page(
            site, query.get("key", ""), query.get("label", "").strip(), _start(query)
        )
    ),
    "/row/([0-9]{1,15})": _page(lambda site, parts, query: browse_pages.row_page(site, int(parts[0]))),
    "/codes": _page(
        lambda site, parts, query: browse_pages.codes_page(site, _start(query), query.get("order", "use"))
    ),
    "/code/([0-9]{1,10})": _page(lambda site, parts, query: browse_pages.code_page(site, int(parts[0]))),
    "/rejects": _page(
        lambda site, parts, query: browse_pages.rejects_page(
            site, query.get("reason", ""), query.get("key", ""), _start(query)
        )
    ),
    "/image/(original|whole|reconstruction|tokens)/([0-9]{1,15})": _image,
    "/image/patch/(original|reconstruction)/([0-9]{1,15})/([0-9]{1,10})": _patch,
    "/favicon.ico": _icon,
}
"""Regular expression of a path to what answers it."""


def _policy() -> str:
    """Allows nothing but the page's own style sheet, and images of this server."""
    style = html_page.STYLE + browse_elements.STYLE
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src 'self'; style-src 'sha256-{digest}'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )


HEADERS = {
    "Content-Security-Policy": _policy(),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Of every answer."""


class BrowseServer(ThreadingHTTPServer):
    """Serves a site on loopback, a thread for each connection; none of them keeps the process alive.

    Attributes:
      site: what is served.
    """

    daemon_threads = True

    def __init__(self, site: BrowsedSite, port: int = 0) -> None:
        """Binds the port; 0 for any that is free.

        Raises:
          UserError: it is taken, or unavailable.
        """
        self.site = site
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--port {port}: cannot be used ({first_line(error)}); choose another, or leave it out"
            ) from error

    @property
    def url(self) -> str:
        """Returns the address to open."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Returns what a request may call this server."""
        return tuple(f"{name}:{self.server_port}" for name in (LOOPBACK, "localhost"))

    def server_bind(self) -> None:
        """Binds without asking the name service what this host is called, which can take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[0], self.server_address[1]  # type: ignore[assignment]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a web browser that has gone away; a mistake of ours keeps its traceback."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            traceback.print_exc()

    def serve(self) -> None:
        """Answers requests until Ctrl-C."""
        try:
            with contextlib.suppress(KeyboardInterrupt):
                self.serve_forever()
        finally:
            self.close()

    def close(self) -> None:
        """Frees the port, and waits for images that are being made: a thread in XLA must not meet the end."""
        self.server_close()
        for made in (self.site.originals, self.site.reconstructions):
            if made is not None:
                made.of_row.close()


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: BrowseServer
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        if refusal := _refusal(self.headers, self.server.hosts):
            self.send_error(HTTPStatus.FORBIDDEN, refusal)
            return
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # what follows is a body that nobody reads, and no request
        self._send(answer_to(self.server.site, self.path), with_body)

    def _send(self, answer: Answer, with_body: bool = True, allow: str = "") -> None:
        self.send_response(answer.status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", answer.type)
        self.send_header("Content-Length", str(len(answer.body)))
        if allow:
            self.send_header("Allow", allow)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuses what is no request to be answered: in plain text, and the connection ends."""
        if code == HTTPStatus.NOT_IMPLEMENTED:  # what the library says of every other method
            code, message = HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD"
        status = HTTPStatus(code)
        self.close_connection = True
        text = f"{status.value} {message or status.phrase}\n"
        answer = Answer(status, "text/plain; charset=utf-8", text.encode())
        allow = "GET, HEAD" if status == HTTPStatus.METHOD_NOT_ALLOWED else ""
        self._send(answer, getattr(self, "command", "") != "HEAD", allow)

    def version_string(self) -> str:
        return f"vqgan/{__version__}"

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the terminal for what matters."""


def _refusal(headers: Any, hosts: tuple[str, ...]) -> str:
    """Says why a request is not answered: it does not come from a page of ours, nor from the address bar."""
    if headers.get_all("Host", []) not in [[host] for host in hosts]:
        return "this server answers to its own address only"
    origins = [f"http://{host}" for host in hosts]
    if any(origin not in origins for origin in headers.get_all("Origin", [])):
        return "another origin may not read this"
    if any(site not in ("same-origin", "none") for site in headers.get_all("Sec-Fetch-Site", [])):
        return "another site may not read this"
    return ""
