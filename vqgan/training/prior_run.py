"""A whole run of stage 2 in a folder: configuration, loop, prior, report."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vqgan.card import Metric, ModelCard
from vqgan.codec import Codec
from vqgan.config import to_dict
from vqgan.errors import UserError
from vqgan.functional import Arrays, take_apart
from vqgan.prior.checkpoint import CodecIdentity, recover_prior, save_prior
from vqgan.prior.losses import unigram_entropy
from vqgan.training.checkpoints import check_same_run, read_config
from vqgan.training.devices import data_mesh
from vqgan.training.logs import ProgressLine, read_metrics
from vqgan.training.loop import Batches, Done, Evaluation, Loop, Outcome
from vqgan.training.prior import PriorLearner, PriorState, build_prior
from vqgan.training.prior_config import PriorTrainConfig
from vqgan.training.prior_rows import PriorRows
from vqgan.training.prior_validating import make_evaluate, make_sheet
from vqgan.training.records import METRICS_FILE
from vqgan.training.report import write_report
from vqgan.training.stopping import Stopping

PRIOR_FOLDER = "prior"
REFERENCES = {
    "autoregressive": "held-back rows; loss and unigram entropy in nats per token, the others in bits",
    "masked": "held-back rows; loss in nats per hidden token, bits the same in bits: no likelihood",
}
"""What a prior's figures are, by its kind; for the card."""
FREE = frozenset(
    f"train.{name}"
    for name in ("steps", "log_every", "evaluate_every", "save_every", "keep", "max_skipped", "fsdp")
) | {"data.samples", "optimizer.learning_rate", "optimizer.clip_norm", "codec.name", "tokens"}
"""Fields that may change when a run goes on: lengths, intervals, how the state lies on the devices, and
what helps where a loss has blown up. Folders of tokens may move: what is in them may not change."""


@dataclasses.dataclass(frozen=True)
class PriorRun:
    """What a run of stage 2 needs beside its data.

    Attributes:
      config: everything that decides on the result, its model fitted to the tokens.
      folder: of the run: ``config.json``, ``checkpoints/``, ``prior/`` (the best one), ``metrics.jsonl``,
        ``tensorboard/``, ``sheets/``, ``report.html``.
      codec: whose tokens they are.
      histogram: ``[K]`` how often each code occurs in the data.
      class_names: in the order of labels, perhaps none.
      tokens: where the tokens were read from, for people.
      data: what the tokens are, so that others are not taken for them when the run goes on.
      decoder: codec for sheets of samples; None for no sheets.
      card: what the prior's card says beside configuration and figures.
      quiet: print errors only.
      wandb_project: also log to Weights & Biases.
    """

    config: PriorTrainConfig
    folder: Path
    codec: CodecIdentity
    histogram: np.ndarray
    class_names: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    data: str = ""
    decoder: Codec | None = None
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    quiet: bool = False
    wandb_project: str | None = None


def train(run: PriorRun, batches: Batches, validation: PriorRows) -> Outcome[PriorState]:
    """Trains to the end or until SIGTERM, from the newest checkpoint in the folder if there is one.

    Args:
      run: configuration and folder.
      batches: :class:`PriorRows` of ``train.batch_size`` rows.
      validation: held-back rows in host memory, perhaps none.

    Raises:
      UserError: devices that cannot share the work, a folder of another run, a loss that is not finite,
        or a place that cannot be written to.
    """
    learner = PriorLearner(
        run.config, _evaluate(run, validation), functools.partial(_export, run, validation)
    )
    _check_same_codec(run)
    described = {
        **to_dict(run.config),
        "codec": {"fingerprint": run.codec.fingerprint, "name": run.codec.name},
        "tokens": list(run.tokens),
        "data_sha256": run.data,
    }
    check_same_run(run.folder, described, FREE)
    recover_prior(run.folder / PRIOR_FOLDER)
    progress = ProgressLine(quiet=run.quiet)
    logs = {"quiet": run.quiet, "wandb_project": run.wandb_project}
    with Stopping() as stopping:
        outcome = Loop(learner, batches, run.config.train, run.folder, progress, logs).run(stopping)
    if read_metrics(run.folder / METRICS_FILE):
        write_report(run.folder)
    return outcome


def _evaluate(run: PriorRun, validation: PriorRows) -> Callable[[Arrays], Evaluation]:
    """Figures and sheets of the run, both in float32, whatever it is trained in."""
    config = run.config
    plain = dataclasses.replace(config.train, dtype="float32", remat=False)
    prior = take_apart(functools.partial(build_prior, dataclasses.replace(config, train=plain)))
    sheet = None
    conditioned = config.model.condition_length > 0
    if run.decoder is not None and config.data.samples and (len(validation.tokens) or not conditioned):
        sheet = make_sheet(config.model, run.decoder, validation, config.data.samples, config.train.seed)
    size = config.train.batch_size // config.train.accumulate
    unigram = unigram_entropy(run.histogram)
    evaluate = make_evaluate(prior, data_mesh(config.train.fsdp), validation, size, unigram, sheet)
    return _without_unigram(evaluate) if config.model.kind == "masked" else evaluate


def _without_unigram(evaluate: Callable[[Arrays], Evaluation]) -> Callable[[Arrays], Evaluation]:
    """Of a masked prior: its loss is no likelihood, so beside an entropy it would seem to say too much."""

    def plain(params: Arrays) -> Evaluation:
        found = evaluate(params)
        figures = {name: value for name, value in found.figures.items() if not name.startswith("unigram")}
        return found._replace(figures=figures)

    return plain


def _export(
    run: PriorRun, validation: PriorRows, params: Arrays, done: Done, figures: Mapping[str, float]
) -> None:
    """Puts the prior in its place, with its card."""
    weights = {name: np.asarray(value, np.float32) for name, value in jax.device_get(params).items()}
    reference = REFERENCES[run.config.model.kind]
    metrics = {name: Metric(value, len(validation.tokens), reference) for name, value in figures.items()}
    card = {
        **run.card,
        "steps": done.steps,
        "minutes": round(done.minutes, 1),
        "training": {name: value for name, value in to_dict(run.config).items() if name != "model"},
        "metrics": ModelCard(metrics=metrics).to_json().get("metrics", {}),
    }
    save_prior(
        run.folder / PRIOR_FOLDER,
        run.config.model,
        weights,
        codec=run.codec,
        class_names=run.class_names,
        card=card,
    )


def _check_same_codec(run: PriorRun) -> None:
    """Refuses to go on with tokens of another codec, in words that say which."""
    try:
        before = read_config(run.folder).fields("codec")
        fingerprint, name = before.text("fingerprint"), before.text("name")
    except UserError:
        return  # no run there, or something else, which the comparison of configurations reports
    has_begun = any((run.folder / "checkpoints").glob("[0-9]*"))
    if has_begun and fingerprint != run.codec.fingerprint:
        raise UserError(
            f"{run.folder}: this run learns tokens of codec {fingerprint[:12]} ({name}), and these were made "
            f"by {run.codec.fingerprint[:12]} ({run.codec.name}); name another folder"
        )
