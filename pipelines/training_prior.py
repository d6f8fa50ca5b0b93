"""``vqgan train-prior``: a preset and settings, token data sets, and a prior trained on them."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import settings as settings_of
from pipelines.planned_runs import Say, speaker
from pipelines.prior_sets import PriorSets, codec_identity, open_sets
from pipelines.training import require_training
from vqgan.data.token_batches import token_batches
from vqgan.data.tokens import called
from vqgan.errors import UserError
from vqgan.prior.checkpoint import CodecIdentity
from vqgan.training.prior_config import FITTED, PriorTrainConfig
from vqgan.training.prior_data import RowBatches, mixed_histogram
from vqgan.training.prior_presets import PRIOR_PRESETS
from vqgan.training.prior_rows import PriorRows

if TYPE_CHECKING:
    from vqgan.codec import Codec
    from vqgan.training.prior_run import PriorRun


@dataclasses.dataclass(frozen=True)
class TrainPriorRequest:
    """What the user asked for.

    Attributes:
      tokens: data sets, each as ``DIR`` or, where all have a weight, ``DIR=WEIGHT``.
      output: folder of the run.
      preset: name in :data:`vqgan.training.prior_presets.PRIOR_PRESETS`.
      settings: ``section.field=value`` each.
      validation: data set that is held back; by default a share of ``tokens``.
      condition: data set whose tokens, of the same keys and views, are the condition.
      codec: that decodes samples to pictures; by default the one that the data set names.
      unconditional: leave classes out of it.
      license: of the prior, for its card.
      wandb_project: also log to Weights & Biases.
      quiet: print errors only.
    """

    tokens: tuple[str, ...]
    output: str
    preset: str = "tiny"
    settings: tuple[str, ...] = ()
    validation: str | None = None
    condition: str | None = None
    codec: str | None = None
    unconditional: bool = False
    license: str = "unspecified"
    wandb_project: str | None = None
    quiet: bool = False


def run(request: TrainPriorRequest) -> bool:
    """Trains until the end, or until SIGTERM; goes on where an earlier run in the same folder stopped.

    Returns:
      Whether all steps were done.

    Raises:
      UserError: a mistake in the request, data sets that do not go together or are of another codec than
        the run's, nothing left to train on, or the loss is not finite any more.
    """
    require_training(request.wandb_project)
    from vqgan.training.prior_run import train

    say = speaker(request.quiet)
    config = configure(request.preset, request.settings)
    sets = open_sets(
        request.tokens,
        config.data,
        validation=request.validation,
        condition=request.condition,
        unconditional=request.unconditional,
    )
    config = fitted(config, sets)
    validation = sets.validation(config.data.validation_limit)
    started = time.monotonic()
    job = _job(request, config, sets, validation, say)
    say(_described(sets, config, validation))
    outcome = train(job, open_batches(sets, config), validation)
    if outcome.finished:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in outcome.figures.items())
        minutes = (time.monotonic() - started) / 60
        best = f"best at step {outcome.best_step}: {figures}" if figures else "nothing was held back"
        say(f"{minutes:.1f} minutes; {best}")
        say(f"prior: {request.output}/prior\nreport: {request.output}/report.html")
    else:
        say(f"stopped after step {outcome.step}; the same command goes on from there")
    return outcome.finished


def configure(preset: str, settings: Sequence[str]) -> PriorTrainConfig:
    """A preset with every ``section.field=value`` applied; values are JSON, or else plain text.

    Raises:
      UserError: unknown preset, section or field, a wrong value, or a field that follows from the data.
    """
    for setting in settings:
        section, field, _ = settings_of.split_setting(setting)
        if section == "model" and field in FITTED:
            raise UserError(f"--set {setting}: model.{field} follows from the data; leave it out")
    return settings_of.configure(PRIOR_PRESETS, preset, settings)


def fitted(config: PriorTrainConfig, sets: PriorSets) -> PriorTrainConfig:
    """A configuration whose model has the codebook, grid and classes of the data."""
    tokens = sets.training[0]
    condition = None if sets.partners is None else sets.partners.tokens
    model = dataclasses.replace(
        config.model,
        codebook_size=tokens.codebook_size,
        grid=tokens.grid,
        classes=sets.classes,
        condition_codebook_size=0 if condition is None else condition.codebook_size,
        condition_grid=(0, 0) if condition is None else condition.grid,
    )
    return dataclasses.replace(config, model=model)


def open_batches(sets: PriorSets, config: PriorTrainConfig) -> RowBatches:
    """Endless batches to train on.

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
    return RowBatches(batches, sets.classes > 0, sets.partners)


def open_decoder(path: str | None, codec: CodecIdentity, samples: int, say: Say) -> "Codec | None":
    """The codec that makes pictures of samples: the one given, or the one that the data set names.

    Raises:
      UserError: the one given cannot be opened, or is another than the tokens'.
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
    except UserError as error:
        if path is not None:
            raise
        say(f"no sheets of samples: {error}; or name it with --codec")
        return None
    return found


def _job(
    request: TrainPriorRequest, config: PriorTrainConfig, sets: PriorSets, validation: PriorRows, say: Say
) -> "PriorRun":
    from vqgan.training.prior_run import PriorRun

    codec = codec_identity(sets.training[0])
    return PriorRun(
        config=config,
        folder=Path(request.output),
        codec=codec,
        histogram=mixed_histogram(sets.training, sets.weights),
        class_names=sets.class_names,
        tokens=tuple(tokens.path for tokens in sets.training),
        data=sets.digest,
        decoder=open_decoder(request.codec, codec, config.data.samples, say),
        card=_card(request, sets, validation),
        quiet=request.quiet,
        wandb_project=request.wandb_project,
    )


def _card(request: TrainPriorRequest, sets: PriorSets, validation: PriorRows) -> Mapping[str, Any]:
    what = {
        "source": ", ".join(tokens.path for tokens in sets.training),
        "training_images": sum(map(len, sets.training)),
        "held_back_images": len(validation.tokens),
    }
    if sets.partners is not None:
        condition = sets.partners.tokens
        name = str(condition.codec.get("name") or "")
        what["condition_codec"] = {"fingerprint": condition.fingerprint, "name": name}
    return {"license": request.license, "data": what}


def _described(sets: PriorSets, config: PriorTrainConfig, validation: PriorRows) -> str:
    model = config.model
    height, width = model.grid
    kind = f"{model.classes} classes" if model.classes else "no classes"
    return (
        f"{sum(map(len, sets.training))} rows of {height}x{width} tokens to train on, "
        f"{len(validation.tokens)} held back; {model.codebook_size} codes, {kind}"
    )
