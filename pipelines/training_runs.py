"""What ``vqgan train`` and ``vqgan train-prior`` share: their request, and how a run ended."""

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from transforms.sharded.run import Say
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


def say_outcome(
    outcome: "Outcome[Any]", request: TrainingRequest, model: str, started: float, say: Say
) -> None:
    """Says how a run ended, and where the model is.

    Args:
      outcome: of the loop.
      request: what was asked for.
      model: folder of the exported model in that of the run.
      started: time.monotonic() when it began.
      say: prints a line.
    """
    if not outcome.finished:
        if outcome.checkpoint == outcome.step:
            where = "goes on from there"
        elif outcome.checkpoint is None:
            where = "starts again: steps were being skipped, so there is no checkpoint"
        else:
            where = f"goes on from step {outcome.checkpoint}, the last checkpoint: steps were being skipped"
        say(f"stopped after step {outcome.step}; the same command {where}")
        return
    if outcome.checkpoint != outcome.step:
        say(f"the last steps were skipped: the newest checkpoint is that of step {outcome.checkpoint}")
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in outcome.metrics.items())
    best = f"best at step {outcome.best_step}: {metrics}" if metrics else "no validation data"
    say(f"{(time.monotonic() - started) / 60:.1f} minutes; {best}")
    say(f"{model}: {request.output}/{model}\nreport: {request.output}/report.html")


def require_training(wandb_project: str | None) -> None:
    """Checks that what a training run needs is installed.

    Raises:
      UserError: it is not.
    """
    require_extra("train", "training")
    if wandb_project is not None:
        require_extra("wandb", f"wandb project {wandb_project}")
