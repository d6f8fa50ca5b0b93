"""What a sharded job offers, and how one of its slices is made or kept.

tokenize, decode and sample are the same resumable job: each slice of a plan becomes one shard, whose presence
says that the slice is finished. A new job derives from :class:`ShardedJob`; planning, resuming, counting, the
graph (:mod:`transforms.sharded.beam_graph`) and the launch (:mod:`transforms.sharded.run`) are one for all.
"""

import abc
import time
from collections.abc import Callable
from typing import Any, Protocol

from transforms.sharded.plan import Plan
from transforms.sharded.summary import FinishedSlice, SliceTotals
from vqgan import filesystems
from vqgan.errors import UserError
from vqgan.faults import raise_machine_fault, retrying

ProgressCallback = Callable[[int, int], None]
"""Called with numbers of images and rejects since the last call."""


class Task(Protocol):
    """What a worker needs to know to make any shard of a plan; at least these.

    Attributes:
      output: folder or URI that the shards are written to.
      plan_hash: of the plan in it.
      slices: its number of slices.
    """

    @property
    def output(self) -> str: ...
    @property
    def plan_hash(self) -> str: ...
    @property
    def slices(self) -> int: ...


class ShardedJob(abc.ABC):
    """One job over the slices of a plan; picklable, since workers get it.

    The model is whatever :meth:`load_model` gives: it is loaded once in a process and handed to every slice.

    Attributes:
      task: the plan and how to carry it out.
    """

    task: Task

    @abc.abstractmethod
    def load_model(self) -> Any:
        """Returns what slices are made with; many calls in one process give the same object."""

    def local_paths(self) -> tuple[str, ...]:
        """Returns local paths, beside the output, that every worker has to see."""
        return ()

    @abc.abstractmethod
    def shard_name(self, number: int) -> str:
        """Returns the path, below the output, of the file whose presence says that a slice is finished."""

    @abc.abstractmethod
    def is_whole(self, number: int) -> bool:
        """Checks that a shard is of this plan and that nothing that it names is gone. Raises like reading."""

    @abc.abstractmethod
    def write(self, number: int, model: Any, progress: ProgressCallback) -> None:
        """Makes a slice: first all that its shard names, then the rejects, last the shard.

        Raises:
          UserError: the output cannot be written, the input is gone, or too much is rejected.
        """

    def restore(self, number: int, model: Any) -> None:  # noqa: B027 - most jobs have nothing to do here
        """Makes again what a finished slice has lost and what its shard does not vouch for."""

    @abc.abstractmethod
    def summarize(self, number: int, seconds: float | None) -> FinishedSlice:
        """Reads a slice back, every page of it; ``seconds`` is None where a former run has made it."""

    @abc.abstractmethod
    def empty_totals(self) -> SliceTotals:
        """Returns the sum of no slices."""

    @abc.abstractmethod
    def finish(self, totals: Any, plan: Plan) -> dict[str, Any]:
        """Publishes what is of the whole and, last, the manifest, and returns that. A retry does no harm."""


def plain_local_paths(*paths: str) -> tuple[str, ...]:
    """Returns those of some paths that are absolute local ones, without patterns and options."""
    return tuple(path for path in paths if path.startswith("/") and not any(mark in path for mark in "*?[{"))


def make_slice(job: ShardedJob, number: int, model: Any, progress: ProgressCallback) -> FinishedSlice:
    """Makes one slice, or keeps it where a former run has finished it.

    Args:
      job: what to do.
      number: of the slice.
      model: that :meth:`ShardedJob.load_model` has given.
      progress: told of images and rejects that are done.

    A fault of the machine (:mod:`vqgan.faults`) has it tried again.

    Raises:
      UserError: the machine fails time after time, or see :meth:`ShardedJob.write`.
    """
    counted = _Counted(progress)
    return retrying(lambda: _make_once(job, number, model, counted), counted.undo)


def _make_once(job: ShardedJob, number: int, model: Any, progress: ProgressCallback) -> FinishedSlice:
    try:
        kept = finished_slice(job, number)
        if kept is not None:
            job.restore(number, model)
            progress(kept.images, kept.rejects)
            return kept
        started = time.monotonic()
        job.write(number, model, progress)
        return job.summarize(number, time.monotonic() - started)
    except UserError:
        raise
    except Exception as error:
        raise_machine_fault(error, f"slice {number} cannot be made")
        raise


class _Counted:
    """Progress that can be taken back before a slice is tried again."""

    def __init__(self, progress: ProgressCallback) -> None:
        self._progress = progress
        self._images = self._rejects = 0

    def __call__(self, images: int, rejects: int) -> None:
        self._images += images
        self._rejects += rejects
        self._progress(images, rejects)

    def undo(self) -> None:
        self(-self._images, -self._rejects)


def finished_slice(job: ShardedJob, number: int) -> FinishedSlice | None:
    """Returns the slice as a former run of this plan has left it; None where it has to be made.

    Raises:
      MachineError: not the slice's files are at fault.
    """
    if not filesystems.exists(filesystems.join(job.task.output, job.shard_name(number))):
        return None
    try:
        return job.summarize(number, None) if job.is_whole(number) else None
    except (UserError, OSError) as error:
        raise_machine_fault(error, f"slice {number} cannot be read")
        return None  # damaged since it was written, or its rejects are gone: made again


def make_all(job: ShardedJob, plan: Plan, progress: ProgressCallback) -> dict[str, Any]:
    """Does in this process what the Beam graph does: every slice in turn, then the manifest."""
    model, totals = job.load_model(), job.empty_totals()
    for number in range(job.task.slices):
        totals.add(make_slice(job, number, model, progress))
    return job.finish(totals, plan)
