"""A whole run of stage 1 in a folder: configuration, losses' weights, loop, codec, report."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqgan.card import Metric, ModelCard
from vqgan.codec_checkpoint import PARTS, Weights, load_weights, read_info, recover_codec, save_codec
from vqgan.config import ModelConfig, to_dict
from vqgan.errors import UserError
from vqgan.functional import Arrays, take_apart
from vqgan.lpips import Lpips, load_lpips
from vqgan.model.parameters import codec_parameter_shapes
from vqgan.training.checkpoints import check_same_run
from vqgan.training.logs import ProgressLine, read_metrics
from vqgan.training.loop import Batches, Done, Loop, Outcome
from vqgan.training.records import METRICS_FILE
from vqgan.training.report import write_report
from vqgan.training.state import TokenizerState
from vqgan.training.stopping import Stopping
from vqgan.training.tokenizer import TokenizerLearner, build_vqgan
from vqgan.training.tokenizer_config import LossConfig, TokenizerConfig
from vqgan.training.validating import make_evaluate

FREE = (
    frozenset(
        f"train.{name}"
        for name in ("steps", "log_every", "evaluate_every", "save_every", "keep", "max_skipped")
    )
    | {"data.threads", "data.cache_mib", "data.max_rejects"}
    | {
        f"{optimizer}.{name}"
        for optimizer in ("optimizer", "discriminator_optimizer")
        for name in ("learning_rate", "clip_norm")
    }
)
"""Fields that may change when a run goes on: lengths, intervals, and what helps where a loss has blown up."""


@dataclasses.dataclass(frozen=True)
class TokenizerRun:
    """What a run of stage 1 needs beside its data.

    Attributes:
      config: everything that decides on the result.
      folder: of the run: ``config.json``, ``checkpoints/``, ``codec/`` (the best one), ``metrics.jsonl``,
        ``tensorboard/``, ``sheets/``, ``report.html``.
      init: codec to start from, of the same architecture. Its codebook is kept: there is no autoencoder
        phase, and nothing is placed.
      data: what the pictures are, so that other ones are not taken for them when the run goes on.
      card: what the codec's card says beside configuration and figures.
      quiet: print errors only.
      wandb_project: also log to Weights & Biases.
    """

    config: TokenizerConfig
    folder: Path
    init: str | None = None
    data: str = ""
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    quiet: bool = False
    wandb_project: str | None = None


def train(run: TokenizerRun, batches: Batches, validation: np.ndarray) -> Outcome[TokenizerState]:
    """Trains to the end or until SIGTERM, from the newest checkpoint in the folder if there is one.

    Args:
      run: configuration and folder.
      batches: uint8 ``[B, S, S, 3]`` crops.
      validation: uint8 ``[N, S, S, 3]`` held-back pictures, perhaps none.

    Raises:
      UserError: weights that are not to be had, a folder of another run, a loss that is not finite, or
        a place that cannot be written to.
    """
    perceptual = load_perceptual(run.config.loss)
    initial = None if run.init is None else initial_params(run.init, run.config.model)
    if initial is not None:
        kept = dataclasses.replace(run.config.codebook, autoencoder_steps=0)
        run = dataclasses.replace(run, config=dataclasses.replace(run.config, codebook=kept))
    config = run.config
    check_same_run(run.folder, {**to_dict(config), "init": run.init, "data_sha256": run.data}, FREE)
    recover_codec(run.folder / "codec")
    # An exported codec computes in float32, whatever it was trained in.
    exact = dataclasses.replace(config, train=dataclasses.replace(config.train, dtype="float32"))
    vqgan = take_apart(functools.partial(build_vqgan, exact))
    learner = TokenizerLearner(
        config,
        perceptual,
        make_evaluate(vqgan, config.model, perceptual, validation),
        functools.partial(_export, run, len(validation)),
        initial,
    )
    progress = ProgressLine(quiet=run.quiet)
    logs = {"quiet": run.quiet, "wandb_project": run.wandb_project}
    with Stopping() as stopping:
        outcome = Loop(learner, batches, config.train, run.folder, progress, logs).run(stopping)
    if read_metrics(run.folder / METRICS_FILE):
        write_report(run.folder)
    return outcome


def load_perceptual(config: LossConfig) -> Lpips | None:
    """Weights of LPIPS, or None where the loss does without.

    Raises:
      UserError: they cannot be had.
    """
    if not config.perceptual:
        return None
    files = (config.perceptual_heads, config.perceptual_backbone)
    heads, backbone = (None if file is None else Path(file) for file in files)
    try:
        return load_lpips("alex" if config.perceptual_network == "alex" else "vgg", heads, backbone)
    except UserError as error:
        raise UserError(
            f"{error}; or train without LPIPS: --set loss.perceptual=0 --set train.best=psnr"
        ) from error


def initial_params(codec: str, config: ModelConfig) -> Arrays:
    """Parameters of a codec to start from.

    Raises:
      UserError: it is of another architecture, or has numbers that are not finite.
    """
    info = read_info(codec)
    before, now = to_dict(info.config), to_dict(config)
    if codec_parameter_shapes(info.config) != codec_parameter_shapes(config):
        differing = [name for name in now if before[name] != now[name]]
        listed = ", ".join(f"{name} is {before[name]!r} there, {now[name]!r} here" for name in differing)
        raise UserError(f"--init {codec}: another architecture ({listed})")
    weights = load_weights(info, PARTS)
    params = {f"{part}.{name}": value for part in PARTS for name, value in weights[part].items()}
    broken = [name for name, value in params.items() if not np.isfinite(value).all()]
    if broken:
        raise UserError(
            f"--init {codec}: {broken[0]} has values that are not finite; start from another codec"
        )
    return {name: jnp.asarray(value) for name, value in params.items()}


def split_parts(params: Arrays) -> dict[str, Weights]:
    """Parameters of a model as :func:`vqgan.codec_checkpoint.save_codec` takes them."""
    host = jax.device_get(params)
    return {
        part: {
            name.removeprefix(f"{part}."): np.asarray(value, np.float32)
            for name, value in host.items()
            if name.startswith(f"{part}.")
        }
        for part in PARTS
    }


def _export(
    run: TokenizerRun, held_back: int, params: Arrays, done: Done, figures: Mapping[str, float]
) -> None:
    """Puts the codec in its place, with its card."""
    size = run.config.data.evaluated_size
    reference = f"held-back pictures, centre-cropped and resized to {size} px"
    metrics = {name: Metric(value, held_back, reference) for name, value in figures.items()}
    card = {
        **run.card,
        "steps": done.steps,
        "minutes": round(done.minutes, 1),
        "training": {name: value for name, value in to_dict(run.config).items() if name != "model"},
        "metrics": ModelCard(metrics=metrics).to_json().get("metrics", {}),
        "parents": [] if run.init is None else [run.init],
    }
    save_codec(run.folder / "codec", run.config.model, split_parts(params), card=card)
