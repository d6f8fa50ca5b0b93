"""What is to be sampled from a prior: its checks, and its cut into full batches. Needs no JAX."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from vqgan.errors import UserError
from vqgan.prior.config import PriorConfig
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.text import Text, check_text

BATCH_AXIS = "batch"
"""Name of the axis of devices among which the rows of a batch are divided."""
UNKNOWN = -1
"""In place of a token: it is to be sampled. In place of a label: no class."""


class Request(NamedTuple):
    """What to sample: B token grids of L tokens in raster order.

    Attributes:
      seeds: integers ``[B]`` in ``[0, 2^32)``, each sample's own: the same seed gives the same sample,
        whatever the batch around it.
      labels: integers ``[B]``, the classes; -1, or None for all, is no class.
      condition: integers ``[B, Lc]``, tokens of the condition grid, for a prior that has one.
      known: integers ``[B, L]``, tokens that are given; -1 where they are to be sampled, None for all.
      text: of a prior with texts; None, or a row without any, is no text.
    """

    seeds: np.ndarray
    labels: np.ndarray | None = None
    condition: np.ndarray | None = None
    known: np.ndarray | None = None
    text: Text | None = None


class SampleInputs(NamedTuple):
    """A checked batch of a request, as a model takes it.

    Attributes:
      seeds: uint32 ``[B]``.
      labels: int32 ``[B]`` in ``[0, classes]``; ``classes`` is no class.
      condition: int32 ``[B, Lc]``, or None for a prior without a condition grid.
      known: int32 ``[B, L]``; -1 where to be sampled.
      text: of a prior with texts; None for none.
    """

    seeds: np.ndarray
    labels: np.ndarray
    condition: np.ndarray | None
    known: np.ndarray
    text: Text | None = None


def check_request(config: PriorConfig, request: Request) -> None:
    """Refuses a request that a prior cannot serve.

    Raises:
      UserError: arrays of wrong shapes or types; seeds, labels or tokens out of range; a class asked of a
        prior without classes; a missing or unwanted condition.
    """
    count = np.shape(request.seeds)[0] if np.ndim(request.seeds) else 0
    _check_integers("seeds", request.seeds, (count,), 0, 2**32 - 1)
    if request.labels is not None:
        _check_labels(config, request.labels, count)
    _check_condition(config, request.condition, count)
    check_text(config, request.text, count)
    if request.known is not None:
        _check_integers(
            "known tokens", request.known, (count, config.length), UNKNOWN, config.codebook_size - 1
        )


def check_settings(config: PriorConfig, settings: SamplingConfig) -> None:
    """Refuses settings that mean nothing to a prior.

    Raises:
      UserError: guidance without classes and texts, since it compares what is asked for with nothing; or a
        masked prior's settings for an autoregressive one.
    """
    changed = [
        f"{field.name} is {value!r}"
        for field in dataclasses.fields(settings.masked)
        if (value := getattr(settings.masked, field.name)) != field.default
    ]
    if config.is_causal and changed:
        raise UserError(
            f"sampling.masked: {', '.join(changed)}, but this prior is autoregressive and draws token after "
            "token: leave steps, mask schedule and choice temperature out"
        )
    if settings.is_guided and not config.is_guidable:
        raise UserError(
            f"sampling.guidance is {settings.guidance}, but this prior was trained without classes and "
            "texts: leave it at 1"
        )


def given_count(request: Request) -> int:
    """Counts the tokens known from the start, as an autoregressive prior takes them.

    Raises:
      UserError: known tokens are not the first n of every sample.
    """
    if request.known is None or not len(request.known):
        return 0
    is_known = np.asarray(request.known) >= 0  # (B, L)
    given = int(is_known[0].sum())
    if not np.array_equal(is_known, np.broadcast_to(np.arange(is_known.shape[1]) < given, is_known.shape)):
        raise UserError(
            "known tokens are not the first n in raster order, with one n for all samples: an autoregressive "
            "prior completes such a beginning only; take a masked prior to fill in any other region"
        )
    return given


def full_batches(config: PriorConfig, request: Request, size: int) -> Iterator[tuple[SampleInputs, int]]:
    """Cuts a checked request into batches of ``size``, each with the number of its rows that count.

    The last batch is filled up by repeating its last row.
    """
    count = len(request.seeds)
    labels = np.full(count, UNKNOWN) if request.labels is None else np.asarray(request.labels)
    known = np.full((count, config.length), UNKNOWN) if request.known is None else request.known
    condition, text = request.condition, request.text
    for start in range(0, count, size):
        rows = slice(start, start + size)
        inputs = SampleInputs(
            _take_rows(request.seeds, rows, size, np.uint32),
            _take_rows(np.where(labels < 0, config.classes, labels), rows, size, np.int32),
            None if condition is None else _take_rows(condition, rows, size, np.int32),
            _take_rows(known, rows, size, np.int32),
            None if text is None else Text(*(_take_rows(v, rows, size, np.asarray(v).dtype) for v in text)),
        )
        yield inputs, min(size, count - start)


def _check_labels(config: PriorConfig, labels: np.ndarray, count: int) -> None:
    if not config.classes and np.size(labels) and np.max(labels) >= 0:
        raise UserError(f"class {np.max(labels)} was asked of a prior that has no classes: give no class")
    _check_integers("labels", labels, (count,), UNKNOWN, config.classes - 1)


def _check_condition(config: PriorConfig, condition: np.ndarray | None, count: int) -> None:
    if condition is None:
        if config.condition_length:
            raise UserError(
                f"this prior needs a condition: give {config.condition_length} tokens of its "
                f"{'x'.join(map(str, config.condition_grid))} grid for each sample"
            )
        return
    if not config.condition_length:
        raise UserError("a condition was given to a prior that was trained without one: leave it out")
    shape = (count, config.condition_length)
    _check_integers("condition tokens", condition, shape, 0, config.condition_codebook_size - 1)


def _check_integers(name: str, values: np.ndarray, shape: tuple[int, ...], least: int, most: int) -> None:
    """Refuses anything but an integer array of this shape and range."""
    values = np.asarray(values)
    if not np.issubdtype(values.dtype, np.integer) or values.shape != shape:
        raise UserError(
            f"{name} are {values.dtype} of shape {list(values.shape)}: give integers of shape {list(shape)}"
        )
    if values.size and not least <= values.min() <= values.max() <= most:
        raise UserError(
            f"{name} reach from {values.min()} to {values.max()}: they must lie in [{least}, {most}]"
        )


def _take_rows(values: np.ndarray, rows: slice, size: int, dtype: Any) -> np.ndarray:
    """Takes some rows in the type, the last of them repeated up to ``size``."""
    part: np.ndarray = np.asarray(values)[rows].astype(dtype)
    return np.pad(part, [(0, size - len(part))] + [(0, 0)] * (part.ndim - 1), mode="edge")
