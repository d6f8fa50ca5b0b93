"""tokenize, decode and sample, failed at each of their operations: the same command gives the same bytes."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faulty import (
    EIO,
    FULL,
    FULL_FOR_EVER,
    INTERRUPT,
    KILL,
    Fault,
    FaultyFileSystem,
    LateFileSystem,
    contents,
    healthy,
    is_stopped,
    leading_to,
    leftovers,
    put_in_place,
    sweep,
)
from vqgan import faults
from vqgan.errors import UserError

from .small_jobs import JOBS, SmallJobs

WRITES = {KILL: 3, EIO: 5, FULL: 9, FULL_FOR_EVER: 9}
"""One in so many writes fails, and every other operation."""
CHANGES = {"tokenize": {KILL: 1, INTERRUPT: 5}, "decode to files": {KILL: 9}}


@pytest.mark.parametrize("job", JOBS)
def test_each_fault_in_turn(
    job: str, small_jobs: SmallJobs, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    output = tmp_path / "out"
    injected = sweep(small_jobs.command(job, output), output, {**WRITES, **CHANGES.get(job, {})})
    record_property("faults", f"{job}: {injected}")
    assert {name for _, name in injected.counts} >= {"open", "write", "close", "fsync", "move", "create_dir"}
    assert injected.kept > 60
    assert injected.littered > sum(n for (kind, _), n in injected.counts.items() if kind == KILL) / 3


@pytest.mark.parametrize("job", JOBS)
def test_killed_again_and_again(job: str, small_jobs: SmallJobs, tmp_path: Path) -> None:
    """One run killed many times, a little further on each time."""
    output = tmp_path / "out"
    command = small_jobs.command(job, output)
    reference = healthy(command, output)
    shutil.rmtree(output)
    for step in itertools.count(1, 9):
        with put_in_place(FaultyFileSystem(Fault(KILL, step))) as disk:
            is_stopped(command, KILL)
        if disk.struck is None:
            break
    assert contents(output) == reference
    assert leftovers(output) == []


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("looks", [1, 6])
def test_output_that_appears_late(
    job: str, looks: int, small_jobs: SmallJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared file system may show a finished file late; a run ends well or in one line, and goes on."""
    monkeypatch.setattr(faults, "LOOKS", (0.0,) * 12)
    output = tmp_path / "out"
    command = small_jobs.command(job, output)
    reference = healthy(command, output)
    shutil.rmtree(output)
    disk, told = LateFileSystem(looks), []
    for _ in range(100):
        try:
            with leading_to(disk):
                command()
            break
        except UserError as error:
            told.append(str(error))
    assert len(told) < 100
    assert not [line for line in told if "\n" in line]
    assert contents(output) == reference
    assert leftovers(output) == []
