"""The server of ``vqgan browse``: who may read, what may be asked, how it ends; its pages in Chromium."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.browsing.browse_server import BrowseServer, open_site
from tests.conftest import Refused
from tests.pipelines.conftest import Vqgan
from transforms.sources import SourceConfig

Ask = Callable[..., http.client.HTTPResponse]


@pytest.fixture(scope="module")
def server(finished: Path) -> Iterator[BrowseServer]:
    """Serves the finished data set with its originals, in a thread."""
    server = BrowseServer(open_site(str(finished / "out"), SourceConfig(str(finished / "in")), None))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join(60)
    server.close()


@pytest.fixture
def ask(server: BrowseServer) -> Iterator[Ask]:
    """Sends one request with the headers that are given, and returns the answer with its body read."""
    with contextlib.ExitStack() as stack:

        def ask(
            path: str = "/", headers: Mapping[str, str] | None = None, method: str = "GET", host: str = ""
        ) -> http.client.HTTPResponse:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=120)
            stack.callback(connection.close)
            connection.putrequest(method, path, skip_host=True)
            if host != "none":
                connection.putheader("Host", host or server.hosts[0])
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            answer.text = answer.read().decode("latin-1")  # type: ignore[attr-defined]
            return answer

        yield ask


def test_a_page_and_its_headers(server: BrowseServer, ask: Ask) -> None:
    answer = ask()
    assert answer.status == 200
    assert "<title>out</title>" in answer.text  # type: ignore[attr-defined]
    assert "script" not in answer.getheader("Content-Security-Policy", "")
    assert "default-src 'none'" in answer.getheader("Content-Security-Policy", "")
    assert answer.getheader("Cross-Origin-Resource-Policy") == "same-origin"
    assert answer.getheader("X-Content-Type-Options") == "nosniff"
    assert not [name for name, _ in answer.getheaders() if name.lower().startswith("access-control")]
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("path", ["/", "/row/3", "/image/tokens/3", "/nope"])
def test_head_is_get_without_a_body(ask: Ask, path: str) -> None:
    get, head = ask(path), ask(path, method="HEAD")
    assert head.status == get.status
    assert head.getheader("Content-Length") == get.getheader("Content-Length")
    assert head.text == ""  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil:{port}", "none",
     "localhost:{port}, evil", "localhost@evil:{port}"],
)  # fmt: skip
def test_only_its_own_name_is_answered(server: BrowseServer, ask: Ask, host: str) -> None:
    """A name of somebody else's may lead to this address."""
    for path in ("/", "/image/tokens/0", "/favicon.ico"):
        answer = ask(path, host=host.format(port=server.server_port))
        assert answer.status == 403
        assert len(answer.text) < 100  # type: ignore[attr-defined]


def test_two_names_are_none(server: BrowseServer) -> None:
    request = f"GET / HTTP/1.1\r\nHost: {server.hosts[0]}\r\nHost: {server.hosts[0]}\r\n\r\n"
    with socket.create_connection(server.server_address[:2], timeout=60) as connection:
        connection.sendall(request.encode())
        assert connection.makefile("rb").read().startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_another_origin_is_refused(ask: Ask, headers: dict[str, str]) -> None:
    assert ask("/", headers).status == 403
    assert ask("/image/tokens/0", headers).status == 403


def test_its_own_origin_is_answered(server: BrowseServer, ask: Ask) -> None:
    for host in server.hosts:
        own = {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        assert ask("/", own, host=host).status == 200
    assert ask("/", {"Sec-Fetch-Site": "none"}).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_nothing_can_be_written(ask: Ask, method: str) -> None:
    answer = ask("/", method=method)
    assert answer.status == 405
    assert answer.getheader("Allow") == "GET, HEAD"


@pytest.mark.parametrize(
    "path",
    ["/../../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/manifest.json",
     "/image/tokens/../../manifest.json", "http://evil.example/"],
)  # fmt: skip
def test_no_path_reaches_a_file(ask: Ask, path: str) -> None:
    answer = ask(path)
    assert answer.status == 404
    assert "there is no such page" in answer.text  # type: ignore[attr-defined]


def test_a_body_is_no_further_request(server: BrowseServer) -> None:
    """What a request brings along is not taken for the next one."""
    inner = f"GET /codes HTTP/1.1\r\nHost: {server.hosts[0]}\r\n\r\n"
    outer = f"GET /nope HTTP/1.1\r\nHost: {server.hosts[0]}\r\nContent-Length: {len(inner)}\r\n\r\n"
    with socket.create_connection(server.server_address[:2], timeout=60) as connection:
        connection.sendall((outer + inner).encode())
        received = b""
        with contextlib.suppress(ConnectionResetError):  # the rest of what was sent is never read
            while data := connection.recv(1 << 16):
                received += data
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"Connection: close" in received


def test_what_is_no_http(server: BrowseServer) -> None:
    for request in (
        b"\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 70000,
    ):
        with socket.create_connection(server.server_address[:2], timeout=60) as connection:
            connection.sendall(request + b"\r\n")
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                received = connection.makefile("rb").read()
                assert b"<html" not in received


def test_a_port_that_is_taken(server: BrowseServer, vqgan: Vqgan, finished: Path, refused: Refused) -> None:
    result = vqgan("browse", finished / "out", "--port", server.server_port)
    assert result.code == 2
    assert "choose another, or leave it out" in result.line
    for port in (-1, 70000):
        with refused("choose another"):
            BrowseServer(server.site, port)


def test_mistakes_end_in_one_line(vqgan: Vqgan, finished: Path, tmp_path: Path, codec_path: str) -> None:
    assert "nothing there" in vqgan("browse", tmp_path / "none").line
    assert "no such" in vqgan("browse", finished / "out", "--input", tmp_path / "gone").line.lower()
    assert "unknown flag" in vqgan("browse", finished / "out", "--prot", 1).line


STARTED = """
import signal, sys
from pipelines import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
sys.exit(cli.main(["browse", *sys.argv[1:]]))
"""


def test_it_prints_its_address_and_ends_on_ctrl_c(finished: Path) -> None:
    command = [sys.executable, "-c", STARTED, str(finished / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=120) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=300)
    assert (process.returncode, rest, errors) == (0, "", "")
    assert line.startswith("40 rows of ")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


PATIENCE = 900
"""Seconds after which a Chromium that hangs is stopped."""


class Browser:
    """A headless Chromium, spoken to through a pipe in its DevTools protocol."""

    def __init__(self, folder: Path) -> None:
        self._to, self._from = os.pipe(), os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        where = ["--remote-debugging-pipe", f"--user-data-dir={folder}", "--window-size=1280,4000"]
        # It reads from descriptor 3 and writes to 4.
        script = f'exec "$@" 3<&{self._to[0]} 4>&{self._from[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", str(CHROMIUM), *flags, *where],
            pass_fds=(self._to[0], self._from[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(self._to[0])
        os.close(self._from[1])
        self._limit = threading.Timer(PATIENCE, self._process.kill)  # rather than wait for ever
        self._limit.start()
        self._input = os.fdopen(self._from[0], "rb", buffering=0)
        self._rest, self._number = b"", 0
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = ""
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Calls a method and returns its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if getattr(self, "_session", ""):
            message["sessionId"] = self._session
        os.write(self._to[1], json.dumps(message).encode() + b"\0")
        while True:
            received = self._receive()
            if received.get("id") == self._number:
                assert "error" not in received, received
                result: dict[str, Any] = received["result"]
                return result

    def open(self, url: str) -> None:
        """Opens a page and waits until it and its images are there."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self._receive()

    def value(self, expression: str) -> Any:
        """Evaluates JavaScript in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def complaints(self) -> list[str]:
        """What the console of the page shows, and what it asked for in vain."""
        shown = (
            "Log.entryAdded",
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Network.loadingFailed",
        )
        return [json.dumps(event) for event in self.events if event.get("method") in shown]

    def close(self) -> None:
        self._limit.cancel()
        self._process.terminate()
        self._process.wait(60)
        os.close(self._to[1])
        self._input.close()

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = self._input.read(1 << 16)
            assert data, "Chromium has ended"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        received: dict[str, Any] = json.loads(message)
        if "method" in received:
            self.events.append(received)
        return received


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("NOT TESTED in a browser: there is no chromium, chromium-browser or google-chrome here")
    opened = Browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()


IMAGES = "[...document.images].map(image => image.complete && image.naturalWidth > 0)"


def test_pages_in_chromium(browser: Browser, server: BrowseServer) -> None:
    code = int(server.site.browser.histogram.argmax())
    for page, images in (("", 72), ("row/3", 3), ("codes", 5), (f"code/{code}", 3), ("rejects", 0)):
        browser.open(server.url + page)
        loaded = browser.value(IMAGES)
        assert all(loaded), page
        assert len(loaded) >= images, page
        assert browser.complaints() == [], page
        # The style sheet passes the page's own policy, and nothing is wider than the window.
        assert browser.value("getComputedStyle(document.querySelector('nav')).display") == "flex"
        assert browser.value("document.documentElement.scrollWidth <= innerWidth"), page


def test_a_search_in_chromium(browser: Browser, server: BrowseServer) -> None:
    key = server.site.browser.row(7).key
    browser.open(server.url)
    browser.events.clear()
    browser.value(f"document.forms[0].key.value = {json.dumps(key)}; document.forms[0].requestSubmit(); 0")
    while not any(event.get("method") == "Page.loadEventFired" for event in browser.events):
        browser._receive()
    assert browser.value("document.querySelectorAll('.cards figure').length") == 1
    assert browser.value("document.querySelector('.cards figcaption').textContent") == key
    assert browser.complaints() == []


def test_another_origin_in_chromium(browser: Browser, server: BrowseServer) -> None:
    """A page from elsewhere can neither embed nor read."""
    browser.open("data:text/html,<title>other</title>")
    address = json.dumps(f"{server.url}image/tokens/0")
    embed = (
        "new Promise(done => { const image = new Image(); image.onload = () => done('shown'); "
        f"image.onerror = () => done('refused'); image.src = {address}; }})"
    )
    read = f"fetch({address}).then(() => 'read', () => 'refused')"
    for expression in (embed, read):
        result = browser.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert result["result"]["value"] == "refused"
