"""What ``vqgan train`` and ``vqgan train-prior`` share: a preset with ``--set``, and how a run ended."""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.planned_runs import Say
from vqgan.config import from_dict, to_dict
from vqgan.errors import UserError

if TYPE_CHECKING:
    from vqgan.training.loop import Outcome

T = TypeVar("T")


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
        say(f"stopped after step {outcome.step}; the same command goes on from there")
        return
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in outcome.metrics.items())
    best = f"best at step {outcome.best_step}: {metrics}" if metrics else "no validation data"
    say(f"{(time.monotonic() - started) / 60:.1f} minutes; {best}")
    say(f"{model}: {request.output}/{model}\nreport: {request.output}/report.html")


def apply_settings(presets: Mapping[str, T], preset: str, settings: Sequence[str]) -> T:
    """Returns a preset with every ``section.field=value`` applied; values are JSON, or else plain text.

    Raises:
      UserError: unknown preset, section or field, or a wrong value.
    """
    if preset not in presets:
        raise UserError(f"--preset {preset}: known are {', '.join(sorted(presets))}")
    chosen = presets[preset]
    data = to_dict(chosen)
    for setting in settings:
        section, field, text = split_setting(setting)
        if section not in data:
            raise UserError(f"--set {setting}: there is no section {section!r}; known: {', '.join(data)}")
        data[section][field] = _value(text)
    return from_dict(type(chosen), data, where="--set")


def split_setting(setting: str) -> tuple[str, str, str]:
    """Splits a setting into section, field and value.

    Raises:
      UserError: it is written otherwise.
    """
    name, equals, text = setting.partition("=")
    section, dot, field = name.partition(".")
    if not equals or not dot or "." in field:
        raise UserError(f"--set {setting}: write SECTION.FIELD=VALUE, such as train.steps=1000")
    return section, field, text


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
