"""The training loop that both stages share: steps, evaluation, checkpoints, and stopping in good order."""

import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from vqgan.errors import UserError
from vqgan.training.best import check_figure, is_better
from vqgan.training.checkpoints import Checkpoints
from vqgan.training.config import LoopConfig
from vqgan.training.logs import Logs, ProgressLine

S = TypeVar("S")

PROGRESS_SCALARS = ("loss", "pixel", "perceptual", "adversarial", "discriminator", "skipped")
"""Scalars of a step that the progress line shows; the log has all."""


class Batches(Protocol):
    """Endless batches whose position can be saved."""

    def __iter__(self) -> Iterator[Any]:
        """Itself."""
        ...

    def __next__(self) -> Any:
        """The next batch, in host memory."""
        ...

    def get_state(self) -> dict[str, Any]:
        """The position, JSON-ready: batches that follow depend on nothing else."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position."""
        ...


class Evaluation(NamedTuple):
    """Figures over held-back data, and a picture of it.

    Attributes:
      figures: by the names of :data:`vqgan.training.best.HIGHER_IS_BETTER` and others.
      sheet: uint8 ``[H, W, 3]``, or None.
      sheet_name: what the sheet shows; ``validation`` is originals above their reconstructions,
        ``samples`` pictures that a prior has made up.
    """

    figures: dict[str, float]
    sheet: np.ndarray | None
    sheet_name: str = "validation"


class Done(NamedTuple):
    """How far a run is: updates, and minutes in all the processes that worked on it."""

    steps: int
    minutes: float


class Learner(Protocol[S]):
    """What is trained. A state is a pytree of arrays that holds all that changes."""

    def initial(self) -> S:
        """The state before the first step."""
        ...

    def before_step(self, step: int, state: S, batches: Iterator[Any]) -> tuple[S, str | None]:
        """What happens between steps now and then; may take batches. Gives a word for the log."""
        ...

    def step(self, step: int, state: S, batch: Any) -> tuple[S, Mapping[str, jax.Array]]:
        """One update and its scalars, not yet waited for; ``skipped_in_row`` is among them."""
        ...

    def evaluate(self, state: S) -> Evaluation:
        """Figures of the model as it would be exported."""
        ...

    def export(self, state: S, done: "Done", figures: Mapping[str, float]) -> None:
        """Writes the model for use, in place of an earlier one."""
        ...


@dataclasses.dataclass(frozen=True)
class Outcome(Generic[S]):
    """How a run ended.

    Attributes:
      state: the last one.
      step: updates done.
      best_step: step of the exported model; None before the first evaluation.
      figures: those of the exported model.
      finished: whether all steps were done, not stopped by a signal.
    """

    state: S
    step: int
    best_step: int | None
    figures: dict[str, float]
    finished: bool


class Loop(Generic[S]):
    """One run, from its newest checkpoint on."""

    def __init__(
        self,
        learner: Learner[S],
        batches: Batches,
        config: LoopConfig,
        folder: Path,
        progress: ProgressLine,
        logs_options: Mapping[str, Any],
    ):
        check_figure(config.best)
        self._learner, self._batches, self._config = learner, batches, config
        self._progress = progress
        self._checkpoints = Checkpoints(folder / "checkpoints", config.keep)
        self._best: float | None = None
        self._best_step: int | None = None
        self._best_figures: dict[str, float] = {}
        self._evaluated: int | None = None
        self._started, self._minutes_before = time.monotonic(), 0.0
        self._state = learner.initial()
        self._done = self._resume()
        self._logs = Logs(folder, resume_step=self._done, **logs_options)

    def run(self, stopping: Any) -> Outcome[S]:
        """Steps until the end, or until ``stopping.asked``; then saves.

        Raises:
          UserError: the loss is not finite any more, or nothing can be written.
        """
        config = self._config
        try:
            if self._is_evaluation_due() and self._evaluated != self._done:
                self._evaluate()  # the run was asked to stop where one was due
            watch = _Stopwatch(self._done, config.batch_size)
            while self._done < config.steps and not stopping.asked:
                scalars = self._one_step(watch)
                if self._done % config.log_every == 0 or self._done == config.steps:
                    self._log(scalars, watch)
                if self._is_evaluation_due() and (not stopping.asked or self._done == config.steps):
                    self._evaluate()
                    watch.pause(self._done)
                if self._done % config.save_every == 0:
                    self._save()
                    watch.pause(self._done)
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
        finished = self._done >= config.steps
        return Outcome(self._state, self._done, self._best_step, self._best_figures, finished)

    def _one_step(self, watch: "_Stopwatch") -> Mapping[str, jax.Array]:
        self._state, event = self._learner.before_step(self._done, self._state, self._batches)
        if event is not None:
            self._logs.event(self._done + 1, event)  # a step that is done again logs it again
        with watch.waiting_for_data():
            batch = next(self._batches)
        self._state, scalars = self._learner.step(self._done, self._state, batch)
        self._done += 1
        return scalars

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
            raise UserError(
                f"step {self._done}: loss or gradients were not finite in {values['skipped_in_row']:.0f} "
                "steps in a row; the last checkpoint is from before: lower the learning rate and go on"
            )

    def _is_evaluation_due(self) -> bool:
        every, last = self._config.evaluate_every, self._config.steps
        return self._done > 0 and (self._done % every == 0 or self._done == last)

    def _evaluate(self) -> None:
        result = self._learner.evaluate(self._state)
        self._evaluated = self._done
        if result.sheet is not None:
            self._logs.images(self._done, result.sheet_name, result.sheet)
        if not result.figures:
            self._learner.export(self._state, self._so_far(), {})
            return
        named = {f"validation/{name}": value for name, value in result.figures.items()}
        self._logs.scalars(self._done, named)
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in result.figures.items())
        self._progress.say(f"step {self._done}, held back: {shown}")
        best = self._config.best
        if best not in result.figures:
            raise UserError(
                f"train.best is {best!r}: this run measures {', '.join(sorted(result.figures))}; "
                "name one of them"
            )
        if is_better(best, result.figures[best], self._best):
            self._learner.export(self._state, self._so_far(), result.figures)
            self._best, self._best_step = result.figures[best], self._done
            self._best_figures = dict(result.figures)

    def _so_far(self) -> Done:
        return Done(self._done, self._minutes_before + (time.monotonic() - self._started) / 60)

    def _save(self) -> None:
        position = {
            "data": self._batches.get_state(),
            "best": self._best,
            "best_step": self._best_step,
            "best_figures": self._best_figures,
            "evaluated": self._evaluated,
            "minutes": self._so_far().minutes,
        }
        self._checkpoints.save(self._done, self._state, position)

    def _resume(self) -> int:
        """Goes to the newest checkpoint, if there is one. Gives the steps done."""
        step = self._checkpoints.latest
        if step is None:
            return 0
        self._state, position = self._checkpoints.restore(step, self._state)
        self._batches.set_state(position["data"])
        self._best, self._best_step = position["best"], position["best_step"]
        self._best_figures = position["best_figures"]
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

    def waiting_for_data(self) -> "_Waiting":
        """A context whose duration counts as waiting."""
        return _Waiting(self)

    def add(self, seconds: float) -> None:
        self._waited += seconds

    def read(self, step: int) -> dict[str, float]:
        """Figures since the last call, which start anew."""
        elapsed = max(time.monotonic() - self._since, 1e-9)
        rate = (step - self._start) * self._batch_size / elapsed
        result = {"images_per_second": rate, "data_wait_share": self._waited / elapsed}
        self.pause(step)
        return result


class _Waiting:
    def __init__(self, watch: _Stopwatch):
        self._watch = watch

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._watch.add(time.monotonic() - self._since)
