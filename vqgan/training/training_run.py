"""A whole training run in a folder, whatever is trained: its identity, the loop, the report, stopping."""

import dataclasses
import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from vqgan.config_json import RUN_FILE, to_dict
from vqgan.documents import Fields, parse_document
from vqgan.errors import UserError, first_line
from vqgan.model_card import Metric, ModelCard
from vqgan.publishing import write_atomically
from vqgan.training.logs import METRICS_FILE, ProgressLine, read_metrics
from vqgan.training.loop import Done, Evaluate, Export, Learner, Outcome, ResumableBatches, TrainingLoop
from vqgan.training.report import write_training_report

S = TypeVar("S")
CONFIG_FILE = "config.json"
REJECTS_FILE = "rejects.jsonl"
FREE_FIELDS = frozenset((
    "train.steps", "train.log_every", "train.evaluate_every", "train.save_every", "train.keep",
    "train.patience", "train.max_skipped", "train.cpu_devices",
    "optimizer.learning_rate", "optimizer.clip_norm",
))  # fmt: skip
"""Fields that may change when a run goes on: lengths, intervals, what a processor does side by side, and what
helps where a loss has blown up."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What a run needs beside its data, whatever is trained.

    Attributes:
      config: everything that decides on the result.
      folder: of the run: ``config.json``, ``run.yaml``, ``checkpoints/``, ``metrics.jsonl``,
        ``tensorboard/``, ``grids/`` (image grids), ``report.html``, and the best model in a folder.
      data: what the data are, so that others are not taken for them when the run goes on.
      card: what the model's card says beside configuration and metrics.
      quiet: print errors only.
      wandb_project: also log to Weights & Biases.
      record: the settings of the command as a file, which is left in the folder; empty for none.
    """

    config: Any
    folder: Path
    data: str = ""
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    quiet: bool = False
    wandb_project: str | None = None
    record: bytes = b""

    def carry_out(
        self,
        learner: Learner[S],
        evaluate: Evaluate,
        export: Export,
        batches: ResumableBatches,
        *,
        identity: Mapping[str, Any],
        free: frozenset[str],
        recover: Callable[[], None],
    ) -> Outcome[S]:
        """Trains to the end or until SIGTERM, from the newest checkpoint in the folder if there is one.

        Args:
          learner: what is trained.
          evaluate: measures its parameters.
          export: writes them.
          batches: to train on.
          identity: what ``config.json`` holds beside the configuration.
          free: dotted names of its fields that may change between a run and its continuation.
          recover: puts the exported model in order that a killed process has left half replaced.

        Raises:
          UserError: a folder of another run, a loss that is not finite, or a place that cannot be written to.
        """
        check_same_run(self.folder, {**to_dict(self.config), **identity, "data_sha256": self.data}, free)
        if self.record:
            write_atomically(self.folder / RUN_FILE, self.record)
        recover()
        progress = ProgressLine(quiet=self.quiet)
        logs = {"quiet": self.quiet, "wandb_project": self.wandb_project}
        with Stopping() as stopping:
            outcome = TrainingLoop(
                learner, evaluate, export, batches, self.config.train, self.folder, progress, logs
            ).run(stopping)
        if read_metrics(self.folder / METRICS_FILE):
            write_training_report(self.folder)
        return outcome

    def exported_card(
        self, done: Done, metrics: Mapping[str, float], samples: int, reference: str
    ) -> dict[str, Any]:
        """Returns the card of an exported model.

        Args:
          done: how far the run is.
          metrics: of the model.
          samples: images that they were taken over.
          reference: which images.
        """
        described = {name: Metric(value, samples, reference) for name, value in metrics.items()}
        return {
            **self.card,
            "steps": done.steps,
            "minutes": round(done.minutes, 1),
            "training": {name: value for name, value in to_dict(self.config).items() if name != "model"},
            "metrics": ModelCard(metrics=described).to_json().get("metrics", {}),
        }


class Stopping:
    """Context in which the first SIGTERM or SIGINT sets :attr:`asked`; a second one acts as usual.

    Schedulers of clusters send SIGTERM some seconds before they take a machine away.
    """

    def __init__(self) -> None:
        self.asked = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._former[number] = signal.signal(number, self._ask)
            except ValueError:  # only the main thread may; elsewhere signals go to it as ever
                break
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._former[number])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)


def check_same_run(folder: Path, config: dict[str, Any], free: frozenset[str]) -> None:
    """Compares a configuration with that of the checkpoints in a folder, if any; writes ``config.json``.

    Args:
      folder: of the run.
      config: nested configuration, JSON-ready.
      free: dotted names of fields that may change between a run and its continuation.

    Raises:
      UserError: the folder belongs to another run (with what differs), or to something else.
    """
    path = folder / CONFIG_FILE
    if has_checkpoints(folder):
        _refuse_differences(folder, _flat(read_run_config(folder).data), _flat(config), free)
    else:
        check_run_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made a folder ({error.strerror}); name another one") from error
    write_atomically(path, (json.dumps(config, indent=2) + "\n").encode())


def has_checkpoints(folder: Path) -> bool:
    """Tells whether a run in the folder has got as far as a checkpoint."""
    return any((folder / "checkpoints").glob("[0-9]*"))


def check_run_folder(folder: Path) -> None:
    """Checks that a run may write to a folder: it is not there, empty, or that of a run.

    Raises:
      UserError: it holds something else.
    """
    if (folder / CONFIG_FILE).exists() or not folder.is_dir():
        return
    for entry in folder.iterdir():
        # What a killed process has left of a write is no one's; a run without one good image leaves rejects.
        is_temporary = entry.name.startswith(".") and entry.name.endswith(".tmp")
        if not is_temporary and entry.name != REJECTS_FILE:
            raise UserError(
                f"{folder}: there is something else than a training run; name a folder of its own"
            )


def _refuse_differences(
    folder: Path, before: dict[str, Any], now: dict[str, Any], free: frozenset[str]
) -> None:
    names = sorted((before.keys() | now.keys()) - free)
    differing = [name for name in names if before.get(name) != now.get(name)]
    if differing:
        listed = ", ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in differing)
        raise UserError(f"{folder}: holds a run of another configuration ({listed}); name another folder")


def read_run_config(folder: Path) -> Fields:
    """Reads the configuration of a run, as ``config.json`` in its folder has it.

    Raises:
      UserError: it cannot be read, or is damaged.
    """
    path = folder / CONFIG_FILE

    def refuse(reason: str) -> UserError:
        return UserError(f"{path}: cannot be read ({reason[:200]}); name another folder")

    try:
        data = path.read_bytes()
    except OSError as error:
        raise refuse(first_line(error)) from error
    return parse_document(data, refuse)


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, Mapping):
        return {prefix: data}
    parts = [_flat(value, f"{prefix}.{name}" if prefix else name) for name, value in data.items()]
    return {name: value for part in parts for name, value in part.items()}
