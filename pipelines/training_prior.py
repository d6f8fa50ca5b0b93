"""``vqgan train-prior``: a preset and settings, token data sets, and a prior trained on them."""

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import settings as settings_of
from vqgan.config import ModelConfig, from_dict
from vqgan.data.token_batches import check_agreement, token_batches
from vqgan.data.tokens import TokenSet, called, open_tokens
from vqgan.errors import UserError
from vqgan.prior.checkpoint import CodecIdentity
from vqgan.training.prior_config import FITTED, PriorTrainConfig
from vqgan.training.prior_data import (
    PARTNER_COLUMNS,
    Partners,
    RowBatches,
    joined,
    mixed_histogram,
    spaced_rows,
)
from vqgan.training.prior_presets import PRIOR_PRESETS
from vqgan.training.prior_rows import PriorRows

if TYPE_CHECKING:
    from vqgan.codec import Codec

Say = Callable[[str], None]


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


@dataclasses.dataclass(frozen=True)
class Data:
    """The data sets of a run, opened.

    Attributes:
      training: to train on; they agree in codec and grid.
      weights: share of each, or None.
      held_back: to validate on, perhaps empty.
      classes: 0 for a prior without.
      class_names: perhaps none.
      partners: conditions, for a prior with a condition grid.
    """

    training: tuple[TokenSet, ...]
    weights: tuple[float, ...] | None
    held_back: tuple[TokenSet, ...]
    classes: int
    class_names: tuple[str, ...]
    partners: Partners | None

    def validation(self, limit: int) -> PriorRows:
        """Rows held back, at most ``limit`` in all."""
        total = sum(map(len, self.held_back))
        shares = [-(-limit * len(tokens) // max(total, 1)) for tokens in self.held_back]
        found = [
            spaced_rows(tokens, share, self.classes > 0, self.partners)
            for tokens, share in zip(self.held_back, shares, strict=True)
        ]
        height, width = self.training[0].grid
        return joined([rows for rows in found if rows is not None], height * width)


def run(request: TrainPriorRequest) -> bool:
    """Trains until the end, or until SIGTERM; goes on where an earlier run in the same folder stopped.

    Returns:
      Whether all steps were done.

    Raises:
      UserError: a mistake in the request, data sets that do not go together or are of another codec than
        the run's, nothing left to train on, or the loss is not finite any more.
    """
    from vqgan.training.prior_run import PriorRun, train

    say = _silent if request.quiet else _say
    config = configure(request.preset, request.settings)
    data = open_data(request, config)
    config = fitted(config, data)
    codec = codec_identity(data.training[0])
    histogram = mixed_histogram(data.training, data.weights)
    validation = data.validation(config.data.validation_limit)
    started = time.monotonic()
    job = PriorRun(
        config=config,
        folder=Path(request.output),
        codec=codec,
        histogram=histogram,
        class_names=data.class_names,
        tokens=tuple(tokens.path for tokens in data.training),
        data=_digest(data),
        decoder=open_decoder(request.codec, codec, config.data.samples, say),
        card=_card(request, data, validation),
        quiet=request.quiet,
        wandb_project=request.wandb_project,
    )
    say(_described(data, config, validation))
    batches = token_batches(
        data.training,
        config.train.batch_size,
        config.train.seed,
        weights=data.weights,
        views=config.data.views,
    )
    outcome = train(job, RowBatches(batches, data.classes > 0, data.partners), validation)
    if not outcome.finished:
        say(f"stopped after step {outcome.step}; the same command goes on from there")
        return False
    figures = ", ".join(f"{name} {value:.4g}" for name, value in outcome.figures.items())
    minutes = (time.monotonic() - started) / 60
    say(f"{minutes:.1f} minutes; best at step {outcome.best_step}: {figures or 'nothing held back'}")
    say(f"prior: {request.output}/prior\nreport: {request.output}/report.html")
    return True


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


def fitted(config: PriorTrainConfig, data: Data) -> PriorTrainConfig:
    """A configuration whose model has the codebook, grid and classes of the data."""
    tokens = data.training[0]
    condition = None if data.partners is None else data.partners.tokens
    model = dataclasses.replace(
        config.model,
        codebook_size=tokens.codebook_size,
        grid=tokens.grid,
        classes=data.classes,
        condition_codebook_size=0 if condition is None else condition.codebook_size,
        condition_grid=(0, 0) if condition is None else condition.grid,
    )
    return dataclasses.replace(config, model=model)


def open_data(request: TrainPriorRequest, config: PriorTrainConfig) -> Data:
    """Opens all data sets of a request.

    Raises:
      UserError: a data set cannot be opened, they do not go together, or one half of them is empty.
    """
    paths, weights = split_weights(request.tokens)
    columns = () if request.condition is None else PARTNER_COLUMNS
    holdout = config.data.holdout if request.validation is None else 0
    memory = config.data.memory_mib
    training = tuple(open_tokens(path, columns=columns, holdout=holdout, memory_mib=memory) for path in paths)
    check_agreement(training)
    first = training[0]
    wanted: dict[str, Any] = {"fingerprint": first.fingerprint, "grid": first.grid}
    held_back: tuple[TokenSet, ...] = ()
    if request.validation is not None:
        name = str(first.codec.get("name") or "")
        held_back = (
            open_tokens(request.validation, columns=columns, memory_mib=memory, codec_name=name, **wanted),
        )
    elif holdout:
        held_back = tuple(
            open_tokens(path, columns=columns, holdout=holdout, held_back=True, memory_mib=memory)
            for path in paths
        )
    _check_held_back(request, holdout, training, held_back)
    classes, names = (0, ()) if request.unconditional else _classes(training, held_back)
    partners = None
    if request.condition is not None:
        partners = Partners(open_tokens(request.condition, columns=columns, memory_mib=memory))
        partners.check([*training, *held_back])
    return Data(training, weights, held_back, classes, names, partners)


def split_weights(given: Sequence[str]) -> tuple[list[str], tuple[float, ...] | None]:
    """Paths and weights of ``DIR`` or ``DIR=WEIGHT`` each.

    Raises:
      UserError: some have a weight and others do not, or one is not above 0.
    """
    paths, weights = [], []
    for text in given:
        path, equals, weight = text.rpartition("=")
        if not equals or os.path.isdir(text):
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
    """The codec that has made the tokens."""
    config = dict(tokens.codec.get("config") or {})
    size = from_dict(ModelConfig, config, f"{tokens.path}: codec").downsampling * tokens.grid[0]
    return CodecIdentity(tokens.fingerprint, str(tokens.codec.get("name") or ""), config, size)


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


def _check_held_back(
    request: TrainPriorRequest, holdout: int, training: Sequence[TokenSet], held_back: Sequence[TokenSet]
) -> None:
    if held_back and not sum(map(len, held_back)):
        what = f"none of the {sum(map(len, training))} rows is held back" if holdout else "it has no rows"
        where = f"data.holdout is {holdout}" if holdout else f"--validation {request.validation}"
        raise UserError(f"{where}: {what}; lower data.holdout, or set it to 0 to go without validation")


def _classes(training: Sequence[TokenSet], held_back: Sequence[TokenSet]) -> tuple[int, tuple[str, ...]]:
    """Number and names of the classes.

    Raises:
      UserError: the data sets do not mean the same classes.
    """
    first = training[0]
    for tokens in (*training, *held_back):
        if tokens.class_names != first.class_names:
            raise UserError(
                f"{first.path} and {tokens.path} name their classes differently; train on one of them, or "
                "give --unconditional"
            )
    classes = max(tokens.classes for tokens in training)
    beyond = [tokens for tokens in held_back if tokens.classes > classes]
    if beyond:
        raise UserError(
            f"{beyond[0].path}: has {beyond[0].classes} classes, and there are {classes} to train on; give "
            "data of the same classes, or --unconditional"
        )
    return (max(classes, len(first.class_names)) if classes else 0), first.class_names


def _digest(data: Data) -> str:
    """sha256 over what the data sets are, wherever they lie."""
    partners = () if data.partners is None else (data.partners.tokens,)
    groups = (data.training, data.held_back, partners)
    plans = [[tokens.manifest["plan_hash"] for tokens in group] for group in groups]
    return hashlib.sha256(json.dumps([plans, data.weights]).encode()).hexdigest()


def _card(request: TrainPriorRequest, data: Data, validation: PriorRows) -> Mapping[str, Any]:
    what = {
        "source": ", ".join(tokens.path for tokens in data.training),
        "training_images": sum(map(len, data.training)),
        "held_back_images": len(validation.tokens),
    }
    if data.partners is not None:
        condition = data.partners.tokens
        name = str(condition.codec.get("name") or "")
        what["condition_codec"] = {"fingerprint": condition.fingerprint, "name": name}
    return {"license": request.license, "data": what}


def _described(data: Data, config: PriorTrainConfig, validation: PriorRows) -> str:
    model = config.model
    height, width = model.grid
    kind = f"{model.classes} classes" if model.classes else "no classes"
    return (
        f"{sum(map(len, data.training))} rows of {height}x{width} tokens to train on, "
        f"{len(validation.tokens)} held back; {model.codebook_size} codes, {kind}"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    del line
