"""What ``vqgan train`` and ``vqgan train-prior`` share: their request, and how a run ended."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.options.declarations import render_settings
from transforms.sharded.run import Say
from vqgan.config_json import to_dict
from vqgan.extras import require_extra

if TYPE_CHECKING:
    from vqgan.training.loop import Outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """What the user asked for, whatever is trained.

    Attributes:
      output: folder of the run.
      preset: name of a configuration.
      settings: ``section.field=value`` each.
      license: of the model, for its card.
      wandb_project: also log to Weights & Biases.
      quiet: print errors only.
    """

    output: str
    preset: str = "tiny"
    settings: tuple[str, ...] = ()
    license: str = "unspecified"
    wandb_project: str | None = None
    quiet: bool = False


@dataclasses.dataclass(frozen=True)
class TrainingSummary:
    """How a training run ended.

    Attributes:
      output: its folder, with ``report.html``.
      model: folder of the best model, as :meth:`vqgan.Codec.load` or :meth:`vqgan.Prior.load` takes it.
      finished: whether all steps were done, not stopped by a signal; the same call goes on.
      step: updates done.
      best_step: that of the best model; None before the first evaluation.
      metrics: of the best model, by name.
      pushed: where it was uploaded, in a line; empty if it was not.
    """

    output: str
    model: str
    finished: bool
    step: int
    best_step: int | None
    metrics: Mapping[str, float]
    pushed: str = ""


def say_outcome(
    outcome: "Outcome[Any]", request: TrainingRequest, model: str, started: float, say: Say
) -> TrainingSummary:
    """Says how a run ended, and where the model is; returns the same.

    Args:
      outcome: of the loop.
      request: what was asked for.
      model: folder of the exported model in that of the run.
      started: time.monotonic() when it began.
      say: prints a line.
    """
    folder = f"{request.output.rstrip('/')}/{model}"
    summary = TrainingSummary(
        request.output, folder, outcome.finished, outcome.step, outcome.best_step, dict(outcome.metrics)
    )
    if not outcome.finished:
        if outcome.checkpoint == outcome.step:
            where = "goes on from there"
        elif outcome.checkpoint is None:
            where = "starts again: steps were being skipped, so there is no checkpoint"
        else:
            where = f"goes on from step {outcome.checkpoint}, the last checkpoint: steps were being skipped"
        say(f"stopped after step {outcome.step}; the same command {where}")
        return summary
    if outcome.checkpoint != outcome.step:
        say(f"the last steps were skipped: the newest checkpoint is that of step {outcome.checkpoint}")
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in outcome.metrics.items())
    best = f"best at step {outcome.best_step}: {metrics}" if metrics else "no validation data"
    say(f"{(time.monotonic() - started) / 60:.1f} minutes; {best}")
    say(f"{model}: {request.output}/{model}\nreport: {request.output}/report.html")
    return summary


def render_training(
    command: str, record: Mapping[str, Any] | None, config: Any, fitted: Sequence[str] = ()
) -> bytes:
    """Returns the settings of a run as the file that ``--config`` takes; nothing if there are none.

    Args:
      command: its name.
      record: the settings as they were given.
      config: what preset and changes have made, whole: presets may change with a release.
      fitted: fields of ``model`` that follow from the data.
    """
    if record is None:
        return b""
    sections = to_dict(config)
    model = {name: value for name, value in sections["model"].items() if name not in fitted}
    return render_settings(command, {**record, "set": {**sections, "model": model}})


def require_training(wandb_project: str | None) -> None:
    """Checks that what a training run needs is installed.

    Raises:
      UserError: it is not.
    """
    require_extra("train", "training")
    if wandb_project is not None:
        require_extra("wandb", f"wandb project {wandb_project}")
