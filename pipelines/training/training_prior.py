"""``vqgan train-prior``: a preset and settings, token data sets, and a prior trained on them."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.options.settings import apply_settings, split_setting
from pipelines.training.prior_sets import PriorSets, codec_identity, open_sets
from pipelines.training.training_runs import (
    TrainingRequest,
    TrainingSummary,
    render_training,
    require_training,
    say_outcome,
)
from transforms.sharded.run import Say, speaker
from vqgan.data.token_batches import token_batches
from vqgan.data.tokens import called
from vqgan.errors import UserError, counted
from vqgan.prior.checkpoint import CodecIdentity
from vqgan.token_layouts import describe_layout
from vqgan.training.prior.config import FITTED, PRIOR_TRAINING_PRESETS, PriorTrainConfig
from vqgan.training.prior.prior_rows import PriorBatches, PriorRows, mixed_histogram

if TYPE_CHECKING:
    from vqgan.codec import Codec


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainPriorRequest(TrainingRequest):
    """What the user asked for; presets are those of :mod:`vqgan.training.prior.config`.

    Attributes:
      tokens: data sets, each as ``DIR`` or, where all have a weight, ``DIR=WEIGHT``.
      validation: data set to validate on; by default a share of ``tokens``.
      condition: data set whose tokens, of the same keys and views, are the condition.
      codec: that decodes samples to images; by default the one that the data set names.
      unconditional: leave classes out of it.
      condition_text: ``FILE.parquet:COLUMN`` with captions as texts.
      condition_embeddings: the same with captions as sequences of vectors.
    """

    tokens: tuple[str, ...]
    validation: str | None = None
    condition: str | None = None
    codec: str | None = None
    unconditional: bool = False
    condition_text: str | None = None
    condition_embeddings: str | None = None


def run_prior_training(
    request: TrainPriorRequest, record: Mapping[str, Any] | None = None
) -> TrainingSummary:
    """Trains until the end, or until SIGTERM; goes on where an earlier run in the same folder stopped.

    Args:
      request: all settings.
      record: the settings as they were given, for the run's folder.

    Returns:
      How it ended.

    Raises:
      UserError: a mistake in the request, data sets that do not go together or are of another codec than
        the run's, nothing left to train on, or the loss is not finite any more.
    """
    require_training(request.wandb_project)
    from vqgan.training.prior.run import PRIOR_FOLDER, PriorRun, fit_prior

    say = speaker(request.quiet)
    config = configure_prior_training(request.preset, request.settings)
    sets = open_sets(
        request.tokens,
        config.data,
        validation=request.validation,
        condition=request.condition,
        unconditional=request.unconditional,
        text=request.condition_text,
        embeddings=request.condition_embeddings,
    )
    config = fitted(config, sets)
    validation = sets.validation_rows(config.data.validation_limit)
    started = time.monotonic()
    codec = codec_identity(sets.training[0])
    job = PriorRun(
        config=config,
        folder=Path(request.output),
        codec=codec,
        histogram=mixed_histogram(sets.training, sets.weights),
        class_names=sets.class_names,
        words=() if sets.captions is None else sets.captions.words,
        tokens=tuple(tokens.path for tokens in sets.training),
        data=sets.digest,
        decoder=open_decoder(request.codec, codec, config.data.samples, say),
        card=_card(request, sets, validation),
        quiet=request.quiet,
        wandb_project=request.wandb_project,
        record=render_training("train-prior", record, config, FITTED),
    )
    say(_described(sets, config, validation))
    outcome = fit_prior(job, open_prior_batches(sets, config), validation)
    return say_outcome(outcome, request, PRIOR_FOLDER, started, say)


def configure_prior_training(preset: str, settings: Sequence[str]) -> PriorTrainConfig:
    """Returns a preset with every ``section.field=value`` applied; values are JSON, or else plain text.

    Raises:
      UserError: unknown preset, section or field, a wrong value, or a field that follows from the data.
    """
    for setting in settings:
        section, field, _ = split_setting(setting)
        if section == "model" and field in FITTED:
            raise UserError(f"--set {setting}: model.{field} follows from the data; leave it out")
    return apply_settings(PRIOR_TRAINING_PRESETS, preset, settings)


def fitted(config: PriorTrainConfig, sets: PriorSets) -> PriorTrainConfig:
    """Returns a configuration whose model has the codebook, grid and classes of the data."""
    tokens = sets.training[0]
    condition = None if sets.conditions is None else sets.conditions.tokens
    model = dataclasses.replace(
        config.model,
        codebook_size=tokens.codebook_size,
        grid=tokens.grid,
        classes=sets.classes,
        condition_codebook_size=0 if condition is None else condition.codebook_size,
        condition_grid=(0, 0) if condition is None else condition.grid,
    )
    return dataclasses.replace(config, model=model if sets.captions is None else sets.captions.fit(model))


def open_prior_batches(sets: PriorSets, config: PriorTrainConfig) -> PriorBatches:
    """Opens endless batches to train on.

    Raises:
      UserError: the weights of the data sets cannot be met.
    """
    batches = token_batches(
        sets.training,
        config.train.batch_size,
        config.train.seed,
        weights=sets.weights,
        views=config.data.views,
    )
    return PriorBatches(batches, sets.classes > 0, sets.conditions, sets.captions, config.train.seed)


def open_decoder(path: str | None, codec: CodecIdentity, samples: int, say: Say) -> "Codec | None":
    """Opens the codec that makes images of samples: the one given, or the one that the data set names.

    Raises:
      UserError: the one given cannot be opened, is another than the tokens', or has no decoder.
    """
    from vqgan.codec import Codec

    if not samples:
        return None
    name = codec.name if path is None else path
    try:
        found = Codec.load(name, batch_size=samples)
        if found.fingerprint != codec.fingerprint:
            raise UserError(
                f"--codec {name} is {found.fingerprint[:12]}, but the tokens were made by "
                f"{called(codec.fingerprint, codec.name)}; give that codec"
            )
        found.info.require_decoder()
    except UserError as error:
        if path is not None:
            raise
        say(f"no image grids of samples: {error}; or name it with --codec")
        return None
    return found


def _card(request: TrainPriorRequest, sets: PriorSets, validation: PriorRows) -> Mapping[str, Any]:
    what = {
        "source": ", ".join(tokens.path for tokens in sets.training),
        "training_images": sum(map(len, sets.training)),
        "validation_images": len(validation.tokens),
    }
    if sets.conditions is not None:
        condition = sets.conditions.tokens
        name = str(condition.codec.get("name") or "")
        what["condition_codec"] = {"fingerprint": condition.fingerprint, "name": name}
    return {"license": request.license, "data": what}


def _described(sets: PriorSets, config: PriorTrainConfig, validation: PriorRows) -> str:
    model = config.model
    shown = describe_layout(sets.training[0].layout, model.grid, "x")
    kind = f"{model.classes} classes" if model.classes else "no classes"
    kind += "" if sets.captions is None else f"; {sets.captions}"
    return (
        f"{counted(sum(map(len, sets.training)), 'row')} of {shown} to train on, "
        f"{len(validation.tokens)} for validation; {model.codebook_size} codes, {kind}"
    )
