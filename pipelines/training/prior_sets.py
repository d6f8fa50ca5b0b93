"""The token data sets of ``vqgan train-prior``: opened, checked against each other, and split."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vqgan.config import ModelConfig
from vqgan.config_json import from_dict
from vqgan.data.token_batches import check_mixable
from vqgan.data.tokens import TokenSet, open_tokens
from vqgan.errors import UserError, counted
from vqgan.image_sizes import simplified_size
from vqgan.prior.checkpoint import CodecIdentity
from vqgan.training.prior.caption_rows import CaptionRows, open_caption_rows
from vqgan.training.prior.config import TokenDataConfig
from vqgan.training.prior.prior_rows import CONDITION_COLUMNS, ConditionLookup, PriorRows, spread_rows

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
