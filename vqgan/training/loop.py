"""The loop that trains codecs and priors alike: steps, evaluation, checkpoints, and stopping in good order.

What is trained is a :class:`Learner`; how it is evaluated and exported are two functions of its parameters.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from vqgan.errors import UserError
from vqgan.functional import Arrays
from vqgan.training.checkpoints import Checkpoints
from vqgan.training.logs import Logs, ProgressLine
from vqgan.training.loop_config import LoopConfig, check_best_metric, is_better

S = TypeVar("S")

PROGRESS_SCALARS = ("loss", "pixel", "perceptual", "adversarial", "discriminator", "skipped")
"""Scalars of a step that the progress line shows; the log has all."""


class ResumableBatches(Protocol):
    """Endless batches whose position can be saved."""

    def __iter__(self) -> Iterator[Any]:
        """Returns itself."""
        ...

    def __next__(self) -> Any:
        """Returns the next batch, in host memory."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Returns the position, JSON-ready: batches that follow depend on nothing else."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position."""
        ...


class Evaluation(NamedTuple):
    """Metrics over the validation data, and images of it.

    Attributes:
      metrics: by the names of :data:`vqgan.training.loop_config.HIGHER_IS_BETTER` and others.
      image_grid: uint8 ``[H, W, 3]``, or None.
      grid_name: what the grid shows; ``validation`` is originals above their reconstructions, ``samples``
        images that a prior has made up.
    """

    metrics: dict[str, float]
    image_grid: np.ndarray | None
    grid_name: str = "validation"


class Done(NamedTuple):
    """How far a run is: updates, and minutes in all the processes that worked on it."""

    steps: int
    minutes: float


class Learner(Protocol[S]):
    """What is trained. A state is a pytree of arrays that holds all that changes."""

    def initial(self) -> S:
        """Returns the state before the first step."""
        ...

    def before_step(self, step: int, state: S, batches: Iterator[Any]) -> tuple[S, str | None]:
        """Does what happens between steps now and then; may take batches.

        Returns:
          The state, and an event to log, or None.
        """
        ...

    def step(self, step: int, state: S, batch: Any) -> tuple[S, Mapping[str, jax.Array]]:
        """Does one update; its scalars are not yet waited for, and ``skipped_in_row`` is among them."""
        ...

    def exported(self, state: S) -> Arrays:
        """Returns the parameters to evaluate and to export: averaged ones where there is an average."""
        ...


Evaluate = Callable[[Arrays], Evaluation]
"""From exported parameters to their metrics."""

Export = Callable[[Arrays, Done, Mapping[str, float]], None]
"""Writes the model for use, in place of an earlier one, with its metrics."""


@dataclasses.dataclass(frozen=True)
class Outcome(Generic[S]):
    """How a run ended.

    Attributes:
      state: the last one.
      step: updates done.
      best_step: step of the exported model; None before the first evaluation.
      metrics: those of the exported model.
      finished: whether all steps were done, or as many as were of use; not stopped by a signal.
      checkpoint: step of the newest checkpoint, where the same command goes on; None if there is none.
    """

    state: S
    step: int
    best_step: int | None
    metrics: dict[str, float]
    finished: bool
    checkpoint: int | None


class TrainingLoop(Generic[S]):
    """One run, from its newest checkpoint on.

    Args:
      learner: what is trained.
      evaluate: measures its exported parameters.
      export: writes them, each time they are the best so far.
      batches: to train on.
      config: lengths and intervals.
      folder: of the run.
      progress: the line that says how far it is.
      logs_options: of :class:`vqgan.training.logs.Logs`.
    """

    def __init__(
        self,
        learner: Learner[S],
        evaluate: Evaluate,
        export: Export,
        batches: ResumableBatches,
        config: LoopConfig,
        folder: Path,
        progress: ProgressLine,
        logs_options: Mapping[str, Any],
    ):
        check_best_metric(config.best)
        self._learner, self._batches, self._config = learner, batches, config
        self._evaluate_params, self._export_params = evaluate, export
        self._progress = progress
        self._checkpoints = Checkpoints(folder / "checkpoints", config.keep)
        self._best: float | None = None
        self._best_step: int | None = None
        self._best_metrics: dict[str, float] = {}
        self._evaluated: int | None = None
        self._skipped_in_row: Any = 0  # on the device: reading it waits for the step
        self._is_save_due = False
        self._started, self._minutes_before = time.monotonic(), 0.0
        self._state = learner.initial()
        self._done = self._resume()
        self._logs = Logs(folder, resume_step=self._done, **logs_options)

    def run(self, stopping: Any) -> Outcome[S]:
        """Returns steps until the end, or until ``stopping.asked``; then saves.

        Raises:
          UserError: the loss is not finite any more, or nothing can be written.
        """
        config = self._config
        try:
            if self._is_evaluation_due() and self._evaluated != self._done:
                self._evaluate()  # the run was asked to stop where one was due
            watch = _Stopwatch(self._done, config.batch_size)
            while not self._is_finished() and not stopping.asked:
                scalars = self._one_step(watch)
                if self._done % config.log_every == 0 or self._done == config.steps:
                    self._log(scalars, watch)
                if self._is_evaluation_due() and (not stopping.asked or self._done == config.steps):
                    self._evaluate()
                    watch.pause(self._done)
                self._is_save_due |= self._done % config.save_every == 0
                if self._is_save_due and not self._is_skipping():
                    self._save()
                    watch.pause(self._done)
            if self._is_finished() and self._done < config.steps:
                waited = f"{config.patience} evaluations"
                self._progress.say(f"no better {config.best} in {waited}: ended after step {self._done}")
            if not self._is_skipping():
                self._save()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(
                "the device has too little memory for a step: lower train.batch_size, raise "
                "train.accumulate, or set train.remat=true or train.dtype=bfloat16"
            ) from error
        finally:
            self._progress.close()
            self._logs.close()
            self._checkpoints.close()
        step, best, newest = self._done, self._best_step, self._checkpoints.latest
        return Outcome(self._state, step, best, self._best_metrics, self._is_finished(), newest)

    def _is_finished(self) -> bool:
        """Tells whether all steps are done, or evaluations were no better for as long as patience lasts."""
        patience = self._config.patience * self._config.evaluate_every
        waited = (self._evaluated or 0) - (self._best_step or 0)
        is_over = 0 < patience <= waited and self._best_step is not None
        return self._done >= self._config.steps or (is_over and self._evaluated == self._done)

    def _one_step(self, watch: "_Stopwatch") -> Mapping[str, jax.Array]:
        self._state, event = self._learner.before_step(self._done, self._state, self._batches)
        if event is not None:
            self._logs.event(self._done + 1, event)  # a step that is done again logs it again
        with watch.waiting_for_data():
            batch = next(self._batches)
        self._state, scalars = self._learner.step(self._done, self._state, batch)
        self._done += 1
        self._skipped_in_row = scalars["skipped_in_row"]
        return scalars

    def _is_skipping(self) -> bool:
        """Tells whether the last step was skipped: the weights may be past mending, so they are not saved."""
        return int(self._skipped_in_row) > 0

    def _log(self, scalars: Mapping[str, jax.Array], watch: "_Stopwatch") -> None:
        """Waits for the device, which steps alone do not."""
        values = {name: float(value) for name, value in jax.device_get(dict(scalars)).items()}
        speed = watch.read(self._done)
        named = {f"train/{name}": value for name, value in (values | speed).items()}
        self._logs.scalars(self._done, named)
        rate = speed["images_per_second"]
        left = (self._config.steps - self._done) * self._config.batch_size / max(rate, 1e-9)
        shown = {name: values[name] for name in PROGRESS_SCALARS if name in values}
        self._progress.update(self._done, self._config.steps, shown, rate, left)
        if values["skipped_in_row"] >= self._config.max_skipped:
            raise self._blown_up(int(values["skipped_in_row"]))

    def _blown_up(self, count: int) -> UserError:
        """Returns the end of a run after too many skipped steps, with what to do."""
        newest, bad = self._checkpoints.latest, None
        if newest is not None and newest >= self._done - count:
            # No step from there was good, and none of them depends on the learning rate.
            bad, newest = newest, self._checkpoints.drop_newest()
        what = f"step {self._done}: loss or gradients were not finite in {count} steps in a row"
        if newest is not None and newest == bad:
            advice = (
                f"nor are they from the only checkpoint, {bad}, on: start again in another folder, with a"
            )
        elif newest is None:
            advice = "there is no checkpoint yet: give the same command, which starts again, with a"
        else:
            dropped = "" if bad is None else f"that of step {bad} was of no use and is removed, "
            advice = f"the last checkpoint, {newest}, is from before ({dropped}step {newest + 1} was good): "
            advice += "give the same command, which goes on from there, with a"
        return UserError(f"{what}; {advice} lower learning rate")

    def _is_evaluation_due(self) -> bool:
        every, last = self._config.evaluate_every, self._config.steps
        return self._done > 0 and (self._done % every == 0 or self._done == last)

    def _evaluate(self) -> None:
        params = self._learner.exported(self._state)
        result = self._evaluate_params(params)
        self._evaluated = self._done
        if result.image_grid is not None:
            self._logs.images(self._done, result.grid_name, result.image_grid)
        if not result.metrics:
            if self._is_skipping() and self._done < self._config.steps:
                return
            self._export_params(params, self._so_far(), {})
            return
        named = {f"validation/{name}": value for name, value in result.metrics.items()}
        self._logs.scalars(self._done, named)
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in result.metrics.items())
        self._progress.say(f"step {self._done}, validation: {shown}")
        best = self._config.best
        if best not in result.metrics:
            raise UserError(
                f"train.best is {best!r}: this run measures {', '.join(sorted(result.metrics))}; "
                "name one of them"
            )
        if is_better(best, result.metrics[best], self._best):
            self._export_params(params, self._so_far(), result.metrics)
            self._best, self._best_step = result.metrics[best], self._done
            self._best_metrics = dict(result.metrics)

    def _so_far(self) -> Done:
        return Done(self._done, self._minutes_before + (time.monotonic() - self._started) / 60)

    def _save(self) -> None:
        self._is_save_due = False
        position = {
            "data": self._batches.get_state(),
            "best": self._best,
            "best_step": self._best_step,
            "best_figures": self._best_metrics,  # the name that earlier checkpoints have
            "evaluated": self._evaluated,
            "minutes": self._so_far().minutes,
        }
        self._checkpoints.save(self._done, self._state, position)

    def _resume(self) -> int:
        """Goes to the newest checkpoint, if there is one; returns the steps done."""
        step = self._checkpoints.latest
        if step is None:
            return 0
        self._state, position = self._checkpoints.restore(step, self._state)
        self._batches.set_state(position["data"])
        self._best, self._best_step = position["best"], position["best_step"]
        self._best_metrics = position["best_figures"]
        self._evaluated = position["evaluated"]
        self._minutes_before = position["minutes"]
        return step


class _Stopwatch:
    """Images per second, and the share of the time that steps waited for data."""

    def __init__(self, step: int, batch_size: int):
        self._batch_size = batch_size
        self.pause(step)

    def pause(self, step: int) -> None:
        """Starts anew: what was before is not counted."""
        self._start, self._since, self._waited = step, time.monotonic(), 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the duration of a context as waiting."""
        since = time.monotonic()
        yield
        self._waited += time.monotonic() - since

    def read(self, step: int) -> dict[str, float]:
        """Returns the rates since the last call, which start anew."""
        elapsed = max(time.monotonic() - self._since, 1e-9)
        rate = (step - self._start) * self._batch_size / elapsed
        result = {"images_per_second": rate, "data_wait_share": self._waited / elapsed}
        self.pause(step)
        return result
