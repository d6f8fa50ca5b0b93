"""What a worker does, whichever engine runs it: sees to what it needs, makes slices, and finishes the whole.

Beam's graph (:mod:`transforms.sharded.beam_graph`), Dask's tasks and runs in one process call these.
"""

import dataclasses
import os
import re
import socket
import threading
from typing import Any

from transforms.sharded import progress
from transforms.sharded.job import ProgressCallback, ShardedJob, make_slice
from transforms.sharded.plan import PLAN_FILE, Plan, read_plan
from transforms.sharded.summary import FinishedSlice, SliceTotals
from transforms.sharded.worker_reports import count_all_attempts, reporter_of
from vqgan import filesystems
from vqgan.compilation_cache import enable_compilation_cache
from vqgan.errors import UserError

_NOTE = re.compile(r"vqgan: (slice \d+|codec) on worker (\S+)")
_lock = threading.Lock()
_seen: set[tuple[str, str]] = set()
"""Outputs and plans that this process is known to see."""


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What workers have to know of a run that no job is changed by.

    Attributes:
      attempt: of the launcher, for the workers' reports.
      compilation_cache: workers keep what XLA compiles, see :mod:`vqgan.compilation_cache`.
    """

    attempt: str = ""
    compilation_cache: bool = False


DEFAULT_SETTINGS = RunSettings()


def open_model(job: ShardedJob, settings: RunSettings) -> Any:
    """Returns what a worker makes slices with, once it is known to see all that it reads.

    Raises:
      UserError: it does not see something, or there is no such codec.
    """
    if settings.compilation_cache:
        enable_compilation_cache()
    if not progress.is_shown():  # a worker elsewhere, perhaps on another machine
        with _lock:
            _check_visible_once(job)
    try:
        return job.load_model()
    except Exception as error:
        error.add_note(f"vqgan: codec on worker {socket.gethostname()}:{os.getpid()}")
        raise


def _check_visible_once(job: ShardedJob) -> None:
    key = (job.task.output, job.task.plan_hash)
    if key not in _seen:
        check_visible(job)
        _seen.add(key)


def check_visible(job: ShardedJob) -> None:
    """Checks on a worker that it sees the plan, and the local paths that its job reads.

    Raises:
      UserError: something is not there, or is another's.
    """
    output, host = job.task.output, socket.gethostname()
    advice = "mount it there, or give a path or URI that all workers reach"
    for path in (filesystems.join(output, PLAN_FILE), *job.local_paths()):
        if not filesystems.exists(path):
            raise UserError(f"{path}: not visible on worker {host}; {advice}")
    plan = read_plan(output)
    if plan is None or plan.hash != job.task.plan_hash:
        raise UserError(f"{output}: another folder, with another plan, on worker {host}; {advice}")


def make_reported(
    job: ShardedJob, number: int, model: object, attempt: str, count: ProgressCallback
) -> FinishedSlice:
    """Makes a slice on a worker, see :func:`transforms.sharded.job.make_slice`, and reports on it.

    An error bears a note that says which slice and host it is of; runners carry notes along with the text.

    Args:
      job: what to do.
      number: of the slice.
      model: that the job has loaded.
      attempt: of the launcher.
      count: told of images and rejects that are done, too.
    """
    reporter, counted = reporter_of(job.task.output, attempt), [0, 0]

    def both(images: int, rejects: int) -> None:
        counted[0] += images
        counted[1] += rejects
        reporter(images, rejects)
        count(images, rejects)

    reporter.begun()
    try:
        done = make_slice(job, number, model, both)
    except Exception as error:
        reporter(-counted[0], -counted[1])
        error.add_note(f"vqgan: slice {number} on worker {socket.gethostname()}:{os.getpid()}")
        raise
    reporter.finished(done, *counted)
    return done


def make_all_here(job: ShardedJob, plan: Plan, settings: RunSettings) -> None:
    """Does in this process, one slice after the other, what Beam's graph does.

    Args:
      job: what to do.
      plan: its plan.
      settings: of the run.

    Raises:
      UserError: what a slice raised for the user.
    """
    model, totals = open_model(job, settings), job.empty_totals()
    for number in range(job.task.slices):
        totals.add(make_reported(job, number, model, settings.attempt, progress.report))
    finish_job(totals, job, plan, settings)


def place_of(text: str) -> tuple[str, str] | None:
    """Finds in an error's text which slice it is of, on which ``host:process``; None without a note."""
    found = _NOTE.findall(text)
    return found[-1] if found else None


def finish_job(totals: SliceTotals, job: ShardedJob, plan: Plan, settings: RunSettings) -> dict[str, Any]:
    """Publishes what is of the whole; the time that it took is that of all attempts."""
    if settings.compilation_cache:
        enable_compilation_cache()
    count_all_attempts(totals, job.task.output)
    return job.finish(totals, plan)
