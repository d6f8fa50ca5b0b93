"""Records of a run: JSON lines without doubles, TensorBoard, Weights & Biases, and the progress line."""

import io
import json
import math
import struct
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vqgan.training import logs
from vqgan.training.logs import Logs, ProgressLine, clock, list_grids, read_metrics, write_atomically

Refused = Callable[[str], AbstractContextManager[None]]
GRID = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def steps(folder: Path) -> list[int]:
    return [record["step"] for record in read_metrics(folder / "metrics.jsonl")]


def files_only(folder: Path, resume_step: int = 0) -> Logs:
    return Logs(folder, quiet=True, tensorboard=False, resume_step=resume_step)


def test_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs.time, "time", lambda: 1234.56789)
    with files_only(tmp_path / "run") as opened:
        opened.scalars(3, {"train/pixel": jnp.float32(0.5), "train/bad": math.nan, "train/worse": -math.inf})
        opened.event(4, "discriminator starts")
        opened.scalars(4, {"validation/used_codes": 12})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 3, "time": 1234.568, "train/pixel": 0.5, "train/bad": None, "train/worse": None},
        {"step": 4, "time": 1234.568, "event": "discriminator starts"},
        {"step": 4, "time": 1234.568, "validation/used_codes": 12},
    ]


def test_grids_are_pngs(tmp_path: Path) -> None:
    with files_only(tmp_path) as opened:
        opened.images(20, "validation/../best", GRID)
    (path,) = (tmp_path / "grids").iterdir()
    assert path.name == "validation-..-best-20.png"
    with Image.open(path) as opened_image:
        np.testing.assert_array_equal(np.asarray(opened_image), GRID)


def test_a_resumed_run_gives_no_doubled_steps(tmp_path: Path) -> None:
    with files_only(tmp_path) as opened:
        for step in (10, 20, 30, 40):
            opened.scalars(step, {"train/pixel": step / 10})
            opened.images(step, "validation", GRID)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 50, "ti')  # the kill
    with files_only(tmp_path, resume_step=20) as opened:
        opened.scalars(30, {"train/pixel": -3.0})
    assert steps(tmp_path) == [10, 20, 30]
    assert [record["train/pixel"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 2.0, -3.0]
    assert [step for step, _ in list_grids(tmp_path / "grids")["validation"]] == [10, 20]
    with files_only(tmp_path):
        pass
    assert steps(tmp_path) == []
    assert list_grids(tmp_path / "grids") == {}


def test_dropping_lines_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    with files_only(tmp_path) as opened:
        opened.scalars(1, {"a": 1.0})
        opened.scalars(2, {"a": 2.0})
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with refused("metrics.jsonl: cannot be written .No space left"):
        files_only(tmp_path, resume_step=1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grids", "metrics.jsonl"]


@pytest.mark.parametrize(
    "tail", [b'{"step": 2', b"\0\0\0\0", b'{"step": 2, "a": "\xc3', b"17", b"[" * 100_000]
)
def test_a_torn_last_line_is_left_out(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "a": 1}\n' + tail)
    assert read_metrics(path) == [{"step": 1, "a": 1}]
    assert read_metrics(tmp_path / "none") == []


def test_a_damaged_line_within_is_named(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\nrubbish\n{"step": 2}\n')
    with refused("line 2 is damaged"):
        read_metrics(path)


def test_a_place_that_cannot_be_written(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "run").write_text("a file")
    with refused("cannot be written"):
        files_only(tmp_path / "run")
    with refused("cannot be written"):
        write_atomically(tmp_path / "run" / "x", b"")


def tensorboard_events(folder: Path) -> list[Any]:
    """Events of all files, the oldest first: records of length, its sum, the data and its sum."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    with Logs(tmp_path, quiet=True) as opened:
        opened.scalars(5, {"train/pixel": 0.25, "train/bad": math.nan})
        opened.images(5, "validation", GRID)
        opened.event(6, "codebook placed")
    events = tensorboard_events(tmp_path / "tensorboard")
    values = {value.tag: (event.step, value) for event in events for value in event.summary.value}
    assert values["train/pixel"][0] == 5
    assert values["train/pixel"][1].simple_value == 0.25
    assert "train/bad" not in values
    with Image.open(io.BytesIO(values["validation"][1].image.encoded_image_string)) as image:
        np.testing.assert_array_equal(np.asarray(image), GRID)
    step, text = next(entry for tag, entry in values.items() if tag.startswith("events"))
    assert (step, b"codebook placed" in text.SerializeToString()) == (6, True)


def test_tensorboard_purges_what_a_resumed_run_says_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    Logs(tmp_path, quiet=True, resume_step=20).close()
    started = [
        event for event in tensorboard_events(tmp_path / "tensorboard") if event.HasField("session_log")
    ]
    assert [event.step for event in started] == [21]


@pytest.mark.parametrize("name", ["tensorboardX", "wandb"])
def test_a_missing_library_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    wanted = {"tensorboardX": r"pip install .*'tensorboardX>=2\.6'", "wandb": "pip install wandb"}
    with refused(wanted[name]):
        Logs(tmp_path, quiet=True, tensorboard=name == "tensorboardX", wandb_project="p")


class FakeWandb:
    """Remembers calls; stands in for the module."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def Settings(self, *, silent: bool) -> str:  # noqa: N802
        return f"silent {silent}"

    def Image(self, pixels: np.ndarray) -> tuple[str, int]:  # noqa: N802
        return "image", int(pixels.sum())

    def init(self, **options: Any) -> None:
        self.calls.append(("init", options))

    def log(self, values: dict[str, Any], *, step: int) -> None:
        self.calls.append((step, values))

    def finish(self) -> None:
        self.calls.append(("finish",))


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for resume_step in (0, 7, 0):
        with Logs(
            tmp_path, quiet=True, tensorboard=False, wandb_project="p", resume_step=resume_step
        ) as opened:
            opened.scalars(8, {"train/pixel": 0.5, "train/bad": math.nan})
            opened.images(8, "validation", GRID)
    assert fake.calls[1:4] == [
        (8, {"train/pixel": 0.5}),
        (8, {"validation": ("image", int(GRID.sum()))}),
        ("finish",),
    ]
    first, resumed, anew = (call[1] for call in fake.calls if call[0] == "init")
    assert first["project"] == "p"
    assert first["resume"] == "allow"
    assert first["settings"] == "silent True"
    assert first["id"] == resumed["id"] != anew["id"]

    def fail(**options: Any) -> None:
        raise RuntimeError("api_key not configured\n(no-tty)")

    monkeypatch.setattr(fake, "init", fail)
    with refused("wandb project p: cannot be opened .api_key not configured .no-tty.*wandb login"):
        Logs(tmp_path, quiet=True, tensorboard=False, wandb_project="p")


def test_close_twice(tmp_path: Path) -> None:
    opened = files_only(tmp_path)
    opened.close()
    opened.close()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until it is set."""
    moment = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(logs.time, "monotonic", lambda: moment.seconds)
    return moment


def test_plain_lines_now_and_then(now: SimpleNamespace) -> None:
    stream = io.StringIO()
    line = ProgressLine(stream, interval=10)
    values = {"train/pixel": 0.123456, "train/adaptive_weight": 12345.678}
    for step, seconds in ((1, 100), (2, 109), (3, 111), (4, 112), (5, 113)):
        now.seconds = seconds
        line.update(step, 5, values, 35.24, 3725.4)
    line.close()
    rest = "pixel 0.1235, adaptive weight 1.235e+04, 35.2 images/s, 1:02:05 left"
    assert stream.getvalue().splitlines() == [f"step {step} of 5, {rest}" for step in (1, 3, 5)]


def test_one_changing_line_on_a_terminal(now: SimpleNamespace) -> None:
    stream = Terminal()
    line = ProgressLine(stream)
    for step in (250, 500):
        now.seconds += 1
        line.update(step, 1000, {"train/pixel": 0.5}, 40.0, 12.0)
    line.say("codebook placed")
    line.close()
    shown = stream.getvalue()
    assert shown.count("\n") == 2  # after what was said, and at the end
    assert "250/1000 [pixel 0.5, 40.0 images/s, 0:00:12 left]" in shown
    assert " 50%|" in shown.split("\r")[-1]
    assert "codebook placed\n" in shown


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_quiet_says_nothing(stream: io.StringIO) -> None:
    line = ProgressLine(stream, quiet=True)
    line.update(1, 1, {}, 1.0, 0.0)
    line.say("anything")
    line.close()
    assert stream.getvalue() == ""


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 3599, 360_000, -1)] == [
        "0:00:00", "0:01:00", "0:59:59", "100:00:00", "0:00:00",
    ]  # fmt: skip
    assert clock(math.inf) == clock(math.nan) == "?:??:??"
