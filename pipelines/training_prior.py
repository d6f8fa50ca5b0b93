"""``vqgan train-prior``: a preset and settings, token data sets, and a prior trained on them."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.settings import apply_settings, split_setting
from pipelines.training_runs import (
    TrainingRequest,
    TrainingSummary,
    render_training,
    require_training,
    say_outcome,
)
from transforms.sharded.run import Say, speaker
from vqgan.config import ModelConfig, from_dict
from vqgan.data.token_batches import check_mixable, token_batches
from vqgan.data.tokens import TokenSet, called, open_tokens
from vqgan.errors import UserError, counted
from vqgan.image_sizes import simplified_size
from vqgan.prior.checkpoint import CodecIdentity
from vqgan.token_layouts import describe_layout
from vqgan.training.prior.caption_rows import CaptionRows, open_caption_rows
from vqgan.training.prior.config import FITTED, PRIOR_TRAINING_PRESETS, PriorTrainConfig, TokenDataConfig
from vqgan.training.prior.prior_rows import (
    CONDITION_COLUMNS,
    ConditionLookup,
    PriorBatches,
    PriorRows,
    mixed_histogram,
    spread_rows,
)

LARGEST_ADVISED = 20  # of data.holdout, where the one that was given keeps nothing


@dataclasses.dataclass(frozen=True)
class PriorSets:
    """The data sets of a run, opened.

    Attributes:
      training: to train on; they agree in codec and grid.
      weights: share of each, or None.
      validation: to validate on, perhaps empty.
      classes: 0 for a prior without.
      class_names: perhaps none.
      conditions: for a prior with a condition grid.
      captions: for a prior with texts.
    """

    training: tuple[TokenSet, ...]
    weights: tuple[float, ...] | None
    validation: tuple[TokenSet, ...]
    classes: int
    class_names: tuple[str, ...]
    conditions: ConditionLookup | None
    captions: CaptionRows | None = None

    def validation_rows(self, limit: int) -> PriorRows:
        """Reads the rows to validate on, at most ``limit`` in all."""
        height, width = self.training[0].grid
        return spread_rows(
            self.validation, limit, height * width, self.classes > 0, self.conditions, self.captions
        )

    @property
    def digest(self) -> str:
        """sha256 over what the data sets are, wherever they lie."""
        conditions = () if self.conditions is None else (self.conditions.tokens,)
        groups = (self.training, self.validation, conditions)
        plans = [[tokens.manifest["plan_hash"] for tokens in group] for group in groups]
        what = [plans, self.weights, *([] if self.captions is None else [self.captions.captions.sha256])]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def open_sets(
    tokens: Sequence[str],
    config: TokenDataConfig,
    *,
    validation: str | None = None,
    condition: str | None = None,
    unconditional: bool = False,
    text: str | None = None,
    embeddings: str | None = None,
) -> PriorSets:
    """Opens all data sets of a run.

    Args:
      tokens: ``DIR``, or ``DIR=WEIGHT``, each.
      config: what is kept of them to validate on, unless there is ``validation``, and how much may be in
        memory.
      validation: data set to validate on.
      condition: data set whose tokens, of the same keys and views, are the condition.
      unconditional: leave classes out of it; captions take their place, too.
      text: ``FILE.parquet:COLUMN`` with captions of the images as texts.
      embeddings: the same with captions as vectors.

    Raises:
      UserError: a data set cannot be opened, they do not go together, or one split of them is empty.
    """
    paths, weights = split_weights(tokens)
    columns = CONDITION_COLUMNS if condition or text or embeddings else ()
    if validation is not None:
        config = dataclasses.replace(config, holdout=0)
    memory = config.memory_mib
    training = tuple(
        open_tokens(path, columns=columns, holdout=config.holdout, memory_mib=memory) for path in paths
    )
    check_mixable(training)
    validation_sets = _open_validation(training, validation, config, columns)
    classes, names = (0, ()) if unconditional or text or embeddings else _classes(training, validation_sets)
    conditions = None
    if condition is not None:
        conditions = ConditionLookup(open_tokens(condition, memory_mib=memory))
        conditions.check([*training, *validation_sets])
    captions = open_caption_rows(text, embeddings, training, config.holdout)
    return PriorSets(training, weights, validation_sets, classes, names, conditions, captions)


def split_weights(tokens: Sequence[str]) -> tuple[list[str], tuple[float, ...] | None]:
    """Splits paths and weights of ``DIR`` or ``DIR=WEIGHT`` each.

    Raises:
      UserError: some have a weight and others do not, or one is not above 0.
    """
    paths, weights = [], []
    for text in tokens:
        path, equals, weight = text.rpartition("=")
        if not equals or Path(text).is_dir():
            paths.append(text)
            continue
        try:
            value = float(weight)
        except ValueError:
            paths.append(text)
            continue
        if not 0 < value < float("inf"):
            raise UserError(f"--tokens {text}: the weight must be above 0")
        paths.append(path)
        weights.append(value)
    if weights and len(weights) < len(paths):
        raise UserError("--tokens: give every data set a weight (DIR=WEIGHT), or none of them")
    return paths, tuple(weights) or None


def codec_identity(tokens: TokenSet) -> CodecIdentity:
    """Returns the codec that has made the tokens."""
    config = dict(tokens.codec.get("config") or {})
    shape = from_dict(ModelConfig, config, f"{tokens.path}: codec").image_shape(tokens.grid)
    return CodecIdentity(
        tokens.fingerprint, str(tokens.codec.get("name") or ""), config, simplified_size(shape)
    )


def _open_validation(
    training: Sequence[TokenSet], validation: str | None, config: TokenDataConfig, columns: Sequence[str]
) -> tuple[TokenSet, ...]:
    """Returns the data set to validate on, or else what is kept of those to train on; perhaps none.

    Raises:
      UserError: it is of another codec or grid, has no rows, or is what is trained on.
    """
    memory, holdout, first = config.memory_mib, config.holdout, training[0]
    if validation is not None:
        name = str(first.codec.get("name") or "")
        expected: dict[str, Any] = {"fingerprint": first.fingerprint, "codec_name": name, "grid": first.grid}
        found = open_tokens(validation, columns=columns, memory_mib=memory, **expected)
        if any(found.manifest["plan_hash"] == tokens.manifest["plan_hash"] for tokens in training):
            raise UserError(
                f"--validation {validation}: these are the tokens that are trained on; leave it out, and "
                "data.holdout keeps some"
            )
        return (found,)
    if not holdout:
        return ()
    validation_sets = tuple(
        open_tokens(tokens.path, columns=columns, holdout=holdout, validation=True, memory_mib=memory)
        for tokens in training
    )
    if not sum(map(len, validation_sets)):
        fits = _fitting_holdout(training, holdout)
        advice = f"give --set data.holdout={fits}" if fits else "tokenize more images"
        raise UserError(
            f"data.holdout is {holdout}: none of the {counted(sum(map(len, training)), 'row')} is kept for "
            f"validation; {advice}, or --set data.holdout=0 to go without validation"
        )
    return validation_sets


def _fitting_holdout(training: Sequence[TokenSet], holdout: int) -> int:
    """Returns a number below ``holdout`` that keeps some rows and leaves some; 0 if none does."""
    for fewer in range(min(holdout - 1, LARGEST_ADVISED), 1, -1):
        options: dict[str, Any] = {"holdout": fewer, "validation": True, "memory_mib": 0}
        kept = sum(len(open_tokens(tokens.path, **options)) for tokens in training)
        if 0 < kept < sum(map(len, training)):
            return fewer
    return 0


def _classes(training: Sequence[TokenSet], validation: Sequence[TokenSet]) -> tuple[int, tuple[str, ...]]:
    """Returns the number and names of the classes.

    Raises:
      UserError: the data sets do not mean the same classes.
    """
    first = training[0]
    for tokens in (*training, *validation):
        if tokens.class_names != first.class_names:
            raise UserError(
                f"{first.path} and {tokens.path} name their classes differently; train on one of them, or "
                "give --unconditional"
            )
    classes = max(tokens.classes for tokens in training)
    beyond = [tokens for tokens in validation if tokens.classes > classes]
    if beyond:
        raise UserError(
            f"{beyond[0].path}: has {beyond[0].classes} classes, and there are {classes} to train on; give "
            "data of the same classes, or --unconditional"
        )
    return (max(classes, len(first.class_names)) if classes else 0), first.class_names


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
