"""Killed at any instant and started again, a run gives the bytes of one that was never killed."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faulty import KILLS, MORTAL_PROGRAM, contents

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images and three rejects."""
    folder = tmp_path_factory.mktemp("resume") / "in"
    shutil.copytree(photos, folder)
    for number in range(3):
        (folder / f"broken-{number}.jpg").write_bytes(b"no image" * number)
    return folder


# Killed by the system; tests/pipelines/test_fault_sweep.py fails every single step.


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
            KILLS["launchers"] += 1
        process = start(source, output, codec_path)
        time.sleep(rng.uniform(0.1, 0.7) * lifetime)
        process.kill()
        process.communicate(timeout=60)
        KILLS["launchers"] += process.returncode == -signal.SIGKILL  # else it had ended before
        finish_run(start(source, output, codec_path))
        assert contents(output) == contents(reference)
        assert (output / "report.html").exists()


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
