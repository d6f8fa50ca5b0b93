"""What a run says while it goes on: metrics as JSON lines, image grids, TensorBoard, a progress line.

``metrics.jsonl`` holds one JSON object a line: ``step``, ``time`` (seconds since 1970) and either named
numbers (null where a value was not finite: JSON knows no NaN) or ``event``, a text. ``grids/`` holds image
grids. Both are read here, too, for the report.
"""

import contextlib
import io
import json
import math
import os
import re
import socket
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from PIL import Image

from vqgan.errors import UserError
from vqgan.extras import is_watched, progress_bar, require_extra
from vqgan.publishing import write_atomically, write_error

METRICS_FILE = "metrics.jsonl"
GRIDS_FOLDER = "grids"
PLAIN_INTERVAL = 10.0  # seconds between lines where nobody watches a terminal
TERMINAL_INTERVAL = 0.1  # a line that changes more often costs time and cannot be read
_GRID_NAME = re.compile(r"(?P<name>.+)-(?P<step>\d+)\.png")


class _Sink(Protocol):
    """A place that scalars, image grids and events go to."""

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None: ...
    def images(self, step: int, name: str, grid: np.ndarray) -> None: ...
    def event(self, step: int, text: str) -> None: ...
    def close(self) -> None: ...


class Logs:
    """The records of one run, in its folder; use it as a context manager or call :meth:`close`."""

    def __init__(
        self,
        folder: Path,
        *,
        quiet: bool,
        tensorboard: bool = True,
        wandb_project: str | None = None,
        resume_step: int = 0,
    ):
        """Opens the records, without what an interrupted run has said after ``resume_step``.

        Args:
          folder: the run's folder, created if it is not there.
          quiet: services print nothing.
          tensorboard: write event files to ``tensorboard/``.
          wandb_project: send everything to Weights & Biases too, under this project.
          resume_step: steps done by the run that goes on; 0 starts anew and drops earlier records.

        Raises:
          UserError: a library is missing, or the folder cannot be written.
        """
        self._sinks: list[_Sink] = []
        try:
            self._sinks.append(_Files(folder, resume_step))
            if tensorboard:
                self._sinks.append(_TensorBoard(folder / "tensorboard", resume_step))
            if wandb_project is not None:
                self._sinks.append(_Wandb(folder, wandb_project, quiet, resume_step))
        except BaseException:
            self.close()
            raise

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers (Python's, NumPy's or JAX's) under names such as ``train/pixel``."""
        plain = {name: _plain(value) for name, value in values.items()}
        for sink in self._sinks:
            sink.scalars(step, plain)

    def images(self, step: int, name: str, grid: np.ndarray) -> None:
        """Records an image grid, uint8 ``[H, W, 3]``; its file is ``grids/<name>-<step>.png``."""
        for sink in self._sinks:
            sink.images(step, name, grid)

    def event(self, step: int, text: str) -> None:
        """Records something that happened once, such as ``discriminator starts``."""
        for sink in self._sinks:
            sink.event(step, text)

    def close(self) -> None:
        """Flushes and closes everything; a second call does nothing."""
        while self._sinks:
            self._sinks.pop().close()

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Files:
    """``metrics.jsonl`` and ``grids/``."""

    def __init__(self, folder: Path, resume_step: int):
        self._path = folder / METRICS_FILE
        self._grids = folder / GRIDS_FOLDER
        try:
            self._grids.mkdir(parents=True, exist_ok=True)
            _drop_records(self._path, resume_step)
            _drop_grids(self._grids, resume_step)
            self._file = self._path.open("ab")
        except OSError as error:
            raise write_error(self._path, error) from error

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        self._append({"step": step, "time": round(time.time(), 3), **values})

    def event(self, step: int, text: str) -> None:
        self._append({"step": step, "time": round(time.time(), 3), "event": text})

    def images(self, step: int, name: str, grid: np.ndarray) -> None:
        data = io.BytesIO()
        Image.fromarray(grid).save(data, "PNG")
        write_atomically(self._grids / _grid_name(name, step), data.getvalue())

    def close(self) -> None:
        # Closing writes again what could not be written, and that has been reported.
        with contextlib.suppress(OSError):
            self._file.close()

    def _append(self, record: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise write_error(self._path, error) from error


class _TensorBoard:
    """Event files, in tensorboardX's form.

    Its own writer writes from a thread: where the disk is full the thread ends, and the run waits for it for
    ever. Here a failed write is the run's.
    """

    def __init__(self, folder: Path, resume_step: int):
        require_extra("train", str(folder), "tensorboardX")
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter

        self._folder, self._summary, self._event = folder, summary, Event
        now = time.time()
        name = f"events.out.tfevents.{int(now)}.{socket.gethostname()}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = RecordWriter(str(folder / name))
        except OSError as error:
            raise write_error(folder, error) from error
        # The viewer drops what earlier files say from this step on.
        start = SessionLog(status=SessionLog.START)
        first_step = resume_step + 1 if resume_step else 0
        try:
            self._put(Event(wall_time=now, file_version="brain.Event:2"))
            self._put(Event(wall_time=now, step=first_step, session_log=start))
        except UserError:
            self.close()
            raise

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        finite = {name: value for name, value in values.items() if value is not None}
        self._write(step, *(self._summary.scalar(name, value) for name, value in finite.items()))

    def images(self, step: int, name: str, grid: np.ndarray) -> None:
        self._write(step, self._summary.image(name, grid, dataformats="HWC"))

    def event(self, step: int, text: str) -> None:
        self._write(step, self._summary.text("events", text))

    def close(self) -> None:
        # Closing writes again what could not be written, and that has been reported.
        with contextlib.suppress(OSError):
            self._writer.close()

    def _write(self, step: int, *summaries: Any) -> None:
        self._put(*(self._event(step=step, wall_time=time.time(), summary=each) for each in summaries))

    def _put(self, *events: Any) -> None:
        try:
            for event in events:
                self._writer.write(event.SerializeToString())
            self._writer.flush()
        except OSError as error:
            raise write_error(self._folder, error) from error


class _Wandb:
    """Weights & Biases; the run's name on their side is kept in ``wandb-run.txt``, so that it goes on."""

    def __init__(self, folder: Path, project: str, quiet: bool, resume_step: int):
        require_extra("wandb", f"wandb project {project}")
        import wandb

        known = folder / "wandb-run.txt"
        if not (resume_step and known.is_file()):
            write_atomically(known, uuid.uuid4().hex.encode())
        settings = wandb.Settings(silent=quiet)
        identity = known.read_text().strip()
        try:
            wandb.init(project=project, id=identity, resume="allow", dir=str(folder), settings=settings)
        except Exception as error:  # the library raises many types: no key, no network, no such project
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"wandb project {project}: cannot be opened ({reason}); try: wandb login"
            ) from error
        self._wandb = wandb

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        finite = {name: value for name, value in values.items() if value is not None}
        self._wandb.log(finite, step=step)

    def images(self, step: int, name: str, grid: np.ndarray) -> None:
        self._wandb.log({name: self._wandb.Image(grid)}, step=step)

    def event(self, step: int, text: str) -> None:
        self._wandb.log({"event": text}, step=step)

    def close(self) -> None:
        self._wandb.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads ``metrics.jsonl``: no records if it is not there, without a last line that a kill has torn.

    Raises:
      UserError: it cannot be read, or a line before the last is damaged.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    records = [(number, _record(line)) for number, line in enumerate(lines, 1) if line.strip()]
    if records and records[-1][1] is None:
        records.pop()
    damaged = [number for number, record in records if record is None]
    if damaged:
        raise UserError(f"{path}: line {damaged[0]} is damaged; delete it, the others stay usable")
    return [record for _, record in records if record is not None]


def list_grids(folder: Path) -> dict[str, list[tuple[int, Path]]]:
    """Lists the image grids in ``grids/``: for each name, steps in order and their files."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _GRID_NAME.fullmatch(path.name)
        if match is not None:
            found.setdefault(match["name"], []).append((int(match["step"]), path))
    return {name: sorted(found[name]) for name in sorted(found)}


def _grid_name(name: str, step: int) -> str:
    """Returns the file name of a grid.

    What is no letter, digit, ``_``, ``.`` or ``-`` in its name becomes ``-``.
    """
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{step}.png"


def _drop_records(path: Path, resume_step: int) -> None:
    """Keeps the records up to a step (none for 0), in one go: a kill in between loses nothing."""
    records = read_metrics(path) if resume_step else []
    kept = [record for record in records if record["step"] <= resume_step]
    write_atomically(path, b"".join(json.dumps(record).encode() + b"\n" for record in kept))


def _drop_grids(folder: Path, resume_step: int) -> None:
    """Removes the grids made after a step (all for 0)."""
    for grids in list_grids(folder).values():
        for step, path in grids:
            if step > resume_step or not resume_step:
                path.unlink()


def _record(line: bytes) -> dict[str, Any] | None:
    """Returns a line's object, None if it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


class ProgressLine:
    """How far a run is: one line that changes where somebody watches, elsewhere a plain line now and then."""

    def __init__(
        self, stream: TextIO | None = None, *, quiet: bool = False, interval: float = PLAIN_INTERVAL
    ):
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._watched = is_watched(self._stream) and not quiet
        self._interval = TERMINAL_INTERVAL if self._watched else interval
        self._last = -math.inf
        self._bar: Any = None

    def update(
        self,
        step: int,
        steps: int,
        values: Mapping[str, float],
        images_per_second: float,
        seconds_left: float,
    ) -> None:
        """Shows ``step`` of ``steps``; the last one always, others where the previous line is old enough."""
        if self._quiet or (step < steps and time.monotonic() - self._last < self._interval):
            return
        self._last = time.monotonic()
        rest = _status(values, images_per_second, seconds_left)
        if not self._watched:
            print(f"step {step} of {steps}, {rest}", file=self._stream, flush=True)
            return
        if self._bar is None:
            form = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{desc}]"
            self._bar = progress_bar(self._stream, total=steps, bar_format=form)
        self._bar.n = step
        self._bar.set_description_str(rest)

    def say(self, text: str) -> None:
        """Prints a line of its own, above the one that changes."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif not self._quiet:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the changing line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _status(values: Mapping[str, float], images_per_second: float, seconds_left: float) -> str:
    """Returns ``pixel 0.1234, 35.2 images/s, 0:01:20 left``; names are shown from their last slash on."""
    shown = [f"{name.rpartition('/')[2].replace('_', ' ')} {value:.4g}" for name, value in values.items()]
    return ", ".join([*shown, f"{images_per_second:.1f} images/s", f"{clock(seconds_left)} left"])


def clock(seconds: float) -> str:
    """Writes a duration as ``h:mm:ss``."""
    if not math.isfinite(seconds):
        return "?:??:??"
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _plain(value: Any) -> float | None:
    """Returns a Python number, None where it is not finite."""
    number = value if isinstance(value, int) and not isinstance(value, bool) else float(value)
    return number if math.isfinite(number) else None
