"""Progress: counts from many threads, plain lines without a terminal, one line with one."""

import io
from concurrent.futures import ThreadPoolExecutor

import pytest

from transforms.sharded import progress
from transforms.sharded.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    shown = Progress(400, stream)
    for _ in range(30):
        clock[0] += 1
        shown(9, 1)
    shown.close()
    assert stream.getvalue().splitlines() == [
        "100 of 400 images, 10.0 images/s, 30 s left, 10 rejects",
        "200 of 400 images, 10.0 images/s, 20 s left, 20 rejects",
        "300 of 400 images, 10.0 images/s, 10 s left, 30 rejects",
    ]


def test_how_far_long_images_are(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream, terminal = io.StringIO(), Terminal()
    for where in (stream, terminal):
        shown = Progress(4, where)
        for images in range(2):
            for done in (10, 20, 30, 40):
                clock[0] += 5
                shown.under_way(2, "tokens", done, 40)
            shown(2, 0)
            assert shown.images == 2 * (images + 1)
        shown.close()
    assert stream.getvalue().splitlines() == [
        "0 of 4 images, 0.1 images/s, 30 s left, 0 rejects; 20 of 40 tokens of the next 2 images",
        "0 of 4 images, 0.1 images/s, 20 s left, 0 rejects; 40 of 40 tokens of the next 2 images",
        "2 of 4 images, 0.1 images/s, 10 s left, 0 rejects; 20 of 40 tokens of the next 2 images",
        "2 of 4 images, 0.1 images/s, 0 s left, 0 rejects; 40 of 40 tokens of the next 2 images",
    ]
    assert "30 of 40 tokens of the next 2 images, 5 s left" in terminal.getvalue()


def test_nothing_done_yet() -> None:
    assert Progress(5, io.StringIO()).line().startswith("0 of 5 images")


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_quiet(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0)
    shown = Progress(10, stream, quiet=True)
    shown(5, 5)
    shown.close()
    assert stream.getvalue() == ""
    assert (shown.images, shown.rejects) == (5, 5)


def test_terminal() -> None:
    stream = Terminal()
    shown = Progress(10, stream)
    shown(9, 1)
    shown.close()
    assert "10/10" in stream.getvalue()
    assert "\r" in stream.getvalue()


def test_many_threads() -> None:
    shown = Progress(10_000, io.StringIO())
    progress.show(shown)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: progress.report(1, 2), range(3000)))
    finally:
        progress.show(None)
    progress.report(100, 100)  # nobody watches: nothing happens
    assert (shown.images, shown.rejects) == (3000, 6000)
