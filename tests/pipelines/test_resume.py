"""Killed at any instant and started again, a run gives the bytes of one that was never killed."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from pipelines import tokenize_images
from pipelines.tokenize_images import PlannedTokenize, TokenizeConfig
from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig
from transforms.sharded.job import make_all
from transforms.sources import SourceConfig
from vqgan import filesystems
from vqgan.errors import UserError

ROOT = Path(__file__).parents[2]
TIMES = ("throughput", "finished", "versions")


def contents(folder: Path) -> dict[str, str]:
    """sha256 of every file; of the manifest, without what a clock has to do with."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name == "manifest.json":
                manifest = {name: value for name, value in json.loads(data).items() if name not in TIMES}
                data = json.dumps(manifest).encode()
            if path.name != "report.html":  # shows the time, too
                found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


@pytest.fixture(scope="module")
def source(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images and three rejects."""
    folder = tmp_path_factory.mktemp("resume") / "in"
    shutil.copytree(photos, folder)
    for number in range(3):
        (folder / f"broken-{number}.jpg").write_bytes(b"no image" * number)
    return folder


# Killed by the system.

# The program, in a process that kills itself a while after its n-th file was written, but not yet renamed.
MORTAL_PROGRAM = """
import os, signal, sys, threading
from pipelines import cli
from vqgan import filesystems

left, delay, sync = int(sys.argv[1]), float(sys.argv[2]), filesystems._sync

def dying(filesystem, path):
    global left
    sync(filesystem, path)
    left -= 1
    if left == 0 and delay:
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    elif left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

filesystems._sync = dying
sys.exit(cli.main(sys.argv[3:]))
"""


def start(source: Path, output: Path, codec: str, *program: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, *(program or ("-m", "pipelines.cli")), "tokenize", "--input", source]
    flags = ["--output", output, "--codec", codec, "--slice-size", "3", "--batch-size", "4", "--threads", "2"]
    return subprocess.Popen([*map(str, argv), *flags], cwd=ROOT, stderr=subprocess.PIPE)


def finish_run(process: subprocess.Popen[bytes]) -> None:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()


def test_killed_processes(source: Path, codec_path: str, tmp_path: Path) -> None:
    """Two runs, each killed again and again: by what is on disk, and at last by the clock."""
    rng = random.Random(7)
    reference, started = tmp_path / "reference", time.monotonic()
    finish_run(start(source, reference, codec_path))
    lifetime = time.monotonic() - started
    for run, deaths in enumerate([(1, 3, 2, 1), (2, 1, 4, 2)]):
        output = tmp_path / f"run-{run}"
        for files in deaths:
            delay = rng.choice([0, 0.001, 0.003, 0.01])
            process = start(source, output, codec_path, "-c", MORTAL_PROGRAM, str(files), str(delay))
            process.communicate(timeout=300)
            assert process.returncode == -signal.SIGKILL, "it was not killed at work"
        process = start(source, output, codec_path)
        time.sleep(rng.uniform(0.1, 0.7) * lifetime)
        process.kill()
        process.communicate(timeout=60)
        finish_run(start(source, output, codec_path))
        assert contents(output) == contents(reference)
        assert (output / "report.html").exists()


# Killed at every single step, in this process.


@pytest.fixture(scope="module")
def small(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven images, two of them rejects."""
    folder = tmp_path_factory.mktemp("small") / "in"
    folder.mkdir()
    for path in [*sorted(source.glob("*-1.jpg"))[:11]]:
        shutil.copy(path, folder)
    return folder


class KilledError(BaseException):
    """The process is gone: nothing that would run after this may have an effect."""


class Mortal:
    """A local file system that dies at its ``last`` operation, as a killed process would leave it.

    Writing counts as an operation, and the one that dies leaves half of its bytes behind.
    """

    def __init__(self, last: int | None):
        self.steps = 0
        self._last = last
        self._inner = fs.LocalFileSystem()

    def step(self) -> None:
        self.steps += 1
        if self._last is not None and self.steps > self._last:
            raise KilledError

    def open_output_stream(self, path: str) -> Any:
        self.step()
        return MortalStream(self, self._inner.open_output_stream(path))

    def move(self, source: str, target: str) -> None:
        self.step()
        self._inner.move(source, target)
        self.step()

    def create_dir(self, path: str, recursive: bool) -> None:
        self.step()
        self._inner.create_dir(path, recursive=recursive)

    def delete_file(self, path: str) -> None:
        self.step()
        self._inner.delete_file(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class MortalStream:
    """A stream into such a file system."""

    closed = False

    def __init__(self, owner: Mortal, stream: Any):
        self._owner, self._stream = owner, stream

    def write(self, data: Any) -> int:
        data = bytes(data)
        try:
            self._owner.step()
        except KilledError:
            self._stream.write(data[: len(data) // 2])
            self._stream.flush()
            raise
        self._stream.write(data)
        return len(data)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()
        self.closed = True

    def __enter__(self) -> "MortalStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def carry_out(prepared: PlannedTokenize, beam_args: Any) -> None:
    """What the pipeline does, in a plain loop."""
    make_all(prepared.job, prepared.plan, lambda images, rejects: None)


@pytest.fixture
def settings(small: Path, codec_path: str, tmp_path: Path) -> Callable[[str], TokenizeConfig]:
    def settings(name: str) -> TokenizeConfig:
        return TokenizeConfig(
            source=SourceConfig(str(small)),
            output=str(tmp_path / name),
            codec=codec_path,
            geometry=Geometry(image_size=32),
            decode=DecodeConfig(),
            slice_size=4,
            batch_size=4,
            threads=2,
            report=False,
            quiet=True,
        )

    return settings


def live(config: TokenizeConfig, last: int | None, monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs for ``last`` operations on the output. Gives their number."""
    mortal = Mortal(last)
    resolve = filesystems.resolve
    with monkeypatch.context() as patch:
        patch.setattr(filesystems, "resolve", lambda path: (mortal, resolve(path)[1]))
        patch.setattr(tokenize_images, "_run_pipeline", carry_out)
        tokenize_images.run_tokenize(config, [])
    return mortal.steps


def test_killed_at_every_step(
    settings: Callable[[str], TokenizeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = live(settings("reference"), None, monkeypatch)
    reference = contents(tmp_path / "reference")
    assert steps > 40
    assert sum(name.startswith("rejects/") for name in reference) >= 1
    left_something = 0
    for last in range(steps):
        config = settings(f"run-{last}")
        with pytest.raises(KilledError):
            live(config, last, monkeypatch)
        left_something += any(Path(config.output).rglob("*.tmp"))
        live(config, None, monkeypatch)
        assert contents(Path(config.output)) == reference, f"killed at step {last} of {steps}"
        shutil.rmtree(config.output)
    assert left_something > steps / 3


def test_killed_again_and_again(
    settings: Callable[[str], TokenizeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run killed many times, a little further on each time."""
    steps = live(settings("reference"), None, monkeypatch)
    config = settings("run")
    for last in range(1, steps, 5):
        try:
            live(config, last, monkeypatch)
            break
        except KilledError:
            continue
    assert contents(tmp_path / "run") == contents(tmp_path / "reference")


def test_interrupted_by_an_exception(
    settings: Callable[[str], TokenizeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlike a killed process, an interrupted one cleans up: no temporary file stays."""
    config = settings("run")
    for last in range(5, 60, 9):
        with pytest.raises(KeyboardInterrupt):
            interrupted(config, last, monkeypatch)
        assert not list(Path(config.output).rglob("*.tmp"))
    live(config, None, monkeypatch)
    live(settings("reference"), None, monkeypatch)
    assert contents(tmp_path / "run") == contents(tmp_path / "reference")


class Interrupted(Mortal):
    """Raises KeyboardInterrupt once, and works on."""

    def step(self) -> None:
        self.steps += 1
        if self.steps == self._last:
            raise KeyboardInterrupt


def interrupted(config: TokenizeConfig, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mortal = Interrupted(last)
    resolve = filesystems.resolve
    with monkeypatch.context() as patch:
        patch.setattr(filesystems, "resolve", lambda path: (mortal, resolve(path)[1]))
        patch.setattr(tokenize_images, "_run_pipeline", carry_out)
        tokenize_images.run_tokenize(config, [])


# A full disk.


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from pipelines.cli import main
sys.exit(main(sys.argv[2:]))
"""


def test_file_size_limit(source: Path, codec_path: str, tmp_path: Path) -> None:
    """The system refuses large writes: one line and exit code 2, and the run goes on afterwards."""
    output = tmp_path / "out"
    argv = ["tokenize", "--input", source, "--output", output, "--codec", codec_path, "--no-report"]
    flags = ["--slice-size", "50", "--batch-size", "4", "--views", "ten-crop", "--quiet"]

    def run(limit: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", LIMITED, str(limit), *map(str, argv), *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    short = run(8_000)  # enough for the plan, not for a shard
    assert short.returncode == 2, short.stderr
    assert len(short.stderr.splitlines()) == 1, short.stderr
    assert "no space left" in short.stderr
    assert "tokens-" in short.stderr
    assert not list(output.rglob("*.tmp"))
    assert not list(output.glob("data/tokens-*"))
    assert (output / "plan" / "plan.json").exists()
    assert run(1 << 30).returncode == 0
    assert (output / "manifest.json").exists()


class FullStream(MortalStream):
    """A stream onto a disk that is full."""

    def write(self, data: Any) -> int:
        raise OSError(28, "No space left on device")


class FullDisk(Mortal):
    """A file system whose disk is full from the ``last`` new file on."""

    def open_output_stream(self, path: str) -> Any:
        self.steps += 1
        stream = self._inner.open_output_stream(path)
        kind = MortalStream if self.steps <= (self._last or 0) else FullStream
        healthy = Mortal(None)
        return kind(healthy, stream)

    def step(self) -> None:
        """Only new files count."""


@pytest.mark.parametrize("room", [0, 1, 2, 3, 4, 5])
def test_full_disk(
    settings: Callable[[str], TokenizeConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
) -> None:
    config = settings("run")
    disk = FullDisk(room)
    resolve = filesystems.resolve
    with monkeypatch.context() as patch:
        patch.setattr(filesystems, "resolve", lambda path: (disk, resolve(path)[1]))
        patch.setattr(tokenize_images, "_run_pipeline", carry_out)
        with pytest.raises(UserError, match="no space left to write it; free some and run the same command"):
            tokenize_images.run_tokenize(config, [])
    complete = {name for name in contents(tmp_path / "run") if name.startswith("data/tokens-")}
    before = {name: os.stat(tmp_path / "run" / name).st_mtime_ns for name in complete}
    assert not list((tmp_path / "run").rglob("*.tmp"))
    live(config, None, monkeypatch)
    live(settings("reference"), None, monkeypatch)
    assert contents(tmp_path / "run") == contents(tmp_path / "reference")
    assert before == {name: os.stat(tmp_path / "run" / name).st_mtime_ns for name in complete}


def test_two_launchers_at_once(source: Path, codec_path: str, tmp_path: Path) -> None:
    """One does the work; the other is told who owns the output, or finds that nothing is left to do."""
    finish_run(start(source, tmp_path / "reference", codec_path))
    for pair in range(2):
        output = tmp_path / f"pair-{pair}"
        both = [start(source, output, codec_path) for _ in range(2)]
        said = [process.communicate(timeout=300)[1] for process in both]
        codes = sorted(process.returncode for process in both)
        assert codes in ([0, 0], [0, 2]), said
        if codes[1]:
            assert any(b"another run owns this output" in lines for lines in said), said
        assert contents(output) == contents(tmp_path / "reference")
        assert not [path for path in output.rglob(".*") if path.is_file()]
