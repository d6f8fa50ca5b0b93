"""The same checks on every engine: the same bytes, kills of launcher and worker, one line for a failure."""

import hashlib
import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.faulty import KILLS
from transforms.sharded.worker_reports import read_reports
from transforms.tokenizing.buckets import describe_buckets

from .conftest import (
    ENGINES,
    Engine,
    Processes,
    Reference,
    Source,
    decode_command,
    tokenize_command,
    until,
)

SLICES = 8
BUCKETS = ("--buckets", "16x16,16x32")


def sums(folder: Path) -> dict[str, str]:
    """sha256 of all shards, indices and rejects."""
    kinds = ("data/*", "index/*", "rejects/*")
    found = [path for kind in kinds for path in folder.glob(kind) if not path.name.startswith(".")]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(found)
    }


def test_tokenize_after_the_launcher_was_killed(
    engine: Engine, processes: Processes, source: Source, reference: Reference, tmp_path: Path
) -> None:
    command = tokenize_command(source, "out", engine.flags)
    os.symlink(source.images.parent, tmp_path / "here")
    relative = Source(Path("here/in"), Path("here/codec"))
    command = tokenize_command(
        relative, "out", engine.flags
    )  # as workers in another folder would not find them
    processes.hold("tokens-00004-of-")
    launcher = processes.start(*command, cwd=tmp_path)
    processes.held(launcher)
    processes.kill(launcher)
    assert not (tmp_path / "out" / "manifest.json").exists()
    processes.gate.unlink()
    processes.finish(processes.start(*command, cwd=tmp_path))
    assert sums(tmp_path / "out") == sums(reference.tokens)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["counts"]["rows"], manifest["counts"]["rejects"]) == (15, 1)
    assert manifest["throughput"]["images"] >= 1
    assert not (tmp_path / "out" / "progress.json").exists()


@pytest.fixture(scope="session")
def buckets(two_shapes: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of two buckets in its own process."""
    root = tmp_path_factory.mktemp("buckets")
    here = Processes(root)
    here.finish(here.start(*tokenize_command(two_shapes, root / "out", BUCKETS)))
    return root / "out"


def test_buckets_after_the_launcher_was_killed(
    engine: Engine, processes: Processes, two_shapes: Source, buckets: Path, tmp_path: Path
) -> None:
    """It dies in the second of two data sets."""
    command = tokenize_command(two_shapes, tmp_path / "out", (*BUCKETS, *engine.flags))
    processes.hold("tokens-00001-of-00003")
    launcher = processes.start(*command)
    processes.held(launcher)
    processes.kill(launcher)
    processes.gate.unlink()
    assert not (tmp_path / "out" / "16x32" / "manifest.json").exists()
    processes.finish(processes.start(*command))
    for name in ("16x16", "16x32"):
        assert sums(tmp_path / "out" / name) == sums(buckets / name)
    document = describe_buckets(str(tmp_path / "out"))
    assert document == describe_buckets(str(buckets))
    assert (document["counts"]["images"], document["counts"]["rejects"]) == (20, 1)
    assert document["data_sets"]["16x32"]["images"] == 5


def test_decode(engine: Engine, processes: Processes, reference: Reference, tmp_path: Path) -> None:
    processes.finish(processes.start(*decode_command(reference.tokens, tmp_path / "out", engine.flags)))
    assert sums(tmp_path / "out") == sums(reference.images)


def test_killed_worker(
    engine: Engine, processes: Processes, source: Source, reference: Reference, tmp_path: Path
) -> None:
    command = tokenize_command(source, tmp_path / "out", engine.flags)
    processes.hold("tokens-00003-of-")
    launcher = processes.start(*command)
    worker = processes.held(launcher)
    os.kill(worker, signal.SIGKILL)
    KILLS["launchers" if worker == launcher.pid else "workers"] += 1
    processes.gate.unlink()
    if engine.when_a_worker_dies == "ends":
        said = processes.finish(launcher, code=2)
        assert "the same command continues, and keeps what is finished" in said.splitlines()[-1]
    elif engine.when_a_worker_dies == "hangs" and worker != launcher.pid:
        processes.kill(launcher)
    if engine.when_a_worker_dies != "replaced":
        launcher.wait()
        launcher = processes.start(*command)
    processes.finish(launcher)
    assert sums(tmp_path / "out") == sums(reference.tokens)
    assert list((tmp_path / "out").rglob(".*")) == [], "left by the dead"


def test_both_dask_workers_have_slices(processes: Processes, source: Source, tmp_path: Path) -> None:
    """While one worker is held in a slice of its own, the other one makes all that are left."""
    engine = ENGINES["dask"](processes)
    processes.hold("tokens-00002-of-")
    launcher = processes.start(*tokenize_command(source, tmp_path / "out", engine.flags))
    held = processes.held(launcher)
    for _ in until(lambda: len(list((tmp_path / "out").glob("data/tokens-*"))) == SLICES - 1):
        assert launcher.poll() is None, processes.log(launcher)
    reports = read_reports(str(tmp_path / "out"))
    made = {report.process: report.slices for report in reports}
    processes.gate.unlink()
    processes.finish(launcher)
    assert len(made) == 2
    assert held in made
    (other,) = set(made) - {held}
    assert made[other] >= 1


def test_a_failure_is_one_line(engine: Engine, processes: Processes, source: Source, tmp_path: Path) -> None:
    command = tokenize_command(source, tmp_path / "out", (*engine.flags, "--max-reject-rate", "0"))
    said = processes.finish(processes.start(*command), code=2)
    lines = [line for line in said.splitlines() if line.startswith("vqgan tokenize: ")]
    assert len(lines) == 1
    assert "were rejected, more than the 0% allowed, such as 'broken.jpg'" in lines[0]
    several = "--direct_running_mode=multi_processing" in engine.flags  # whose workers print to our stderr
    assert several or "Traceback" not in said
    in_process = not engine.flags or (engine.flags[0] == "--runner=FnApiRunner" and not several)
    assert bool(re.search(r"vqgan tokenize: slice \d on worker \S+:\d+: ", lines[0])) != in_process
