"""What a worker checks before it works, and what an error of it says."""

import dataclasses
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from transforms.sharded import worker
from transforms.sharded.batching import threads_here
from transforms.sharded.job import plain_local_paths
from transforms.sharded.plan import Plan, write_plan
from transforms.sharded.worker import check_visible, make_reported, place_of
from transforms.sharded.worker_reports import open_reports, read_reports
from vqgan import processor
from vqgan.errors import UserError

PLAN = Plan({"version": 2}, slices=2, entries=3)


@dataclasses.dataclass
class Task:
    output: str
    plan_hash: str = PLAN.hash
    slices: int = 2


@dataclasses.dataclass
class Job:
    """As much of a job as is looked at."""

    task: Task
    paths: tuple[str, ...] = ()

    def local_paths(self) -> tuple[str, ...]:
        return self.paths


def test_visible(tmp_path: Path) -> None:
    host = socket.gethostname()
    job: Any = Job(Task(str(tmp_path / "out")))
    with pytest.raises(UserError, match=rf"out/plan/plan.json: not visible on worker {host}; mount it there"):
        check_visible(job)
    write_plan(job.task.output, PLAN, [])
    check_visible(job)
    job.paths = (str(tmp_path), str(tmp_path / "codec"))
    with pytest.raises(UserError, match=f"codec: not visible on worker {host}; mount it there"):
        check_visible(job)
    other: Any = Job(Task(job.task.output, plan_hash="0" * 64))
    with pytest.raises(UserError, match=f"another folder, with another plan, on worker {host}"):
        check_visible(other)


def test_paths_that_can_be_looked_for() -> None:
    given = ("/a/b", "tiny", "s3://b/c", "/a/*.jpg", "/a/{0..3}.tar", "/m.ckpt?weights=ema", "hf://o/n", "")
    assert plain_local_paths(*given) == ("/a/b",)


def test_an_error_says_where_it_was_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: Any, number: int, model: Any, progress: Any) -> None:
        progress(2, 1)
        raise ZeroDivisionError

    monkeypatch.setattr(worker, "make_slice", fail)
    open_reports(str(tmp_path))
    job: Any = Job(Task(str(tmp_path)))
    with pytest.raises(ZeroDivisionError) as caught:
        make_reported(job, 1, None, "attempt", lambda images, rejects: None)
    place = place_of("\n".join(caught.value.__notes__))
    assert place == ("slice 1", f"{socket.gethostname()}:{os.getpid()}")
    (report,) = read_reports(str(tmp_path))
    assert (report.slices, report.images) == (0, 0)  # it may be tried again, elsewhere
    assert place_of("no note") is None


def test_threads_are_the_workers_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processor, "QUOTA_FILE", tmp_path / "none")
    assert threads_here(7) == 7
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert threads_here(None) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert threads_here(None) == os.cpu_count()
