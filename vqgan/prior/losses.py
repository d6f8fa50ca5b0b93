"""Losses that a prior is trained and measured by, in nats per predicted token.

An autoregressive prior minimises the negative log-likelihood of each token given those before it. A masked
one minimises that of hidden tokens given the others (MaskGIT, arXiv 2202.04200, equation 1).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vqgan.prior.config import ObjectiveConfig, check_objective
from vqgan.prior.mask_schedules import random_mask, training_mask_counts
from vqgan.prior.text import Text
from vqgan.prior.transformer import PriorTransformer

VALIDATION_SEED = 2202_04200
VALIDATION_SCHEDULE = "cosine"
VALIDATION_PROGRESS = (0.125, 0.375, 0.625, 0.875)
"""Where the schedule is looked at: the middles of four equal parts of [0, 1]."""


class Objective(NamedTuple):
    """What one batch gives to learn from.

    Attributes:
      loss: float32 scalar, nats per predicted token, with label smoothing if there is any.
      weight: float32 scalar, the number of predicted tokens: losses of several batches are averaged by it.
      scalars: metrics beside it, float32 scalars: ``nats`` is the loss without label smoothing,
        ``accuracy`` the share of predicted tokens that were the most probable ones.
    """

    loss: jax.Array
    weight: jax.Array
    scalars: dict[str, jax.Array]


def training_loss(
    prior: PriorTransformer,
    tokens: jax.Array,
    labels: jax.Array,
    condition: jax.Array | None,
    key: jax.Array,
    config: ObjectiveConfig,
    text: Text | None = None,
) -> Objective:
    """Computes the loss of a batch, with classes and texts left out and tokens replaced or hidden at random.

    Every predicted token of the batch counts the same. For a masked prior that is equation 1 of arXiv
    2202.04200, a sum over the hidden tokens, divided by their number in the batch: a sample counts by
    how many of its tokens are hidden.

    Args:
      prior: bound to parameters that are differentiated; its dropout is its own affair.
      tokens: int32 ``[B, L]``.
      labels: int32 ``[B]``, -1 for no class. A prior without classes does not look at them.
      condition: int32 ``[B, Lc]`` where the prior has a condition grid.
      key: decides on all that is random here.
      config: of the objective.
      text: of a prior with texts; class and text of a sample are left out together.

    Raises:
      UserError: the configuration does not suit the prior's kind.
    """
    check_objective(config, prior.config.kind)
    label_key, token_key = jax.random.split(key)
    dropped = jax.random.bernoulli(label_key, float(config.class_dropout), labels.shape)
    classes = jnp.where(dropped, prior.config.classes, _class_rows(prior, labels))
    if text is not None and prior.text is not None:
        text = prior.text.drop(text, dropped)
    if prior.config.kind == "masked":
        inputs, predicted = _hide_tokens(tokens, prior.config.codebook_size, config.mask_schedule, token_key)
    else:
        inputs = _replace_tokens(tokens, prior.config.codebook_size, config.keep, token_key)
        predicted = jnp.ones(tokens.shape, bool)
    logits = prior(inputs, classes, condition, text)  # (B, L, K)
    return _average(logits, tokens, predicted, config.label_smoothing)


def validation_loss(
    prior: PriorTransformer,
    tokens: jax.Array,
    labels: jax.Array,
    condition: jax.Array | None,
    valid: jax.Array,
    text: Text | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Sums the losses of a batch, and counts the tokens that the sum is over; nothing is random.

    For an autoregressive prior the exact negative log-likelihood. For a masked one it is not a
    likelihood: each sample is seen four times, with the cosine schedule's shares of its tokens hidden at
    :data:`VALIDATION_PROGRESS`, in places that follow from the sample's tokens alone. So losses
    compare between evaluations, batch sizes and priors of this kind, and with nothing else.

    Args:
      prior: bound to parameters; its dropout is off here.
      tokens: int32 ``[B, L]``.
      labels: int32 ``[B]``, -1 for no class. A prior without classes does not look at them.
      condition: int32 ``[B, Lc]`` where the prior has a condition grid.
      valid: bool or float ``[B]``; 0 for samples that only fill up the batch.
      text: of a prior with texts.

    Returns:
      Two float32 scalars: nats, and tokens.
    """
    classes = _class_rows(prior, labels)
    graph, state = nnx.split(prior)

    def measure(inputs: jax.Array, predicted: jax.Array) -> tuple[jax.Array, jax.Array]:
        still = nnx.merge(graph, state, copy=True)  # the caller's stays in training mode
        still.eval()
        counted = predicted * valid.astype(jnp.float32)[:, None]  # (B, L)
        nats = token_nats(still(inputs, classes, condition, text), tokens)
        # Whatever fills up a batch may give anything, even no number.
        return jnp.sum(jnp.where(counted > 0, nats * counted, 0.0)), jnp.sum(counted)

    if prior.config.kind == "autoregressive":
        return measure(tokens, jnp.ones(tokens.shape, jnp.float32))

    def measure_at(part: jax.Array) -> tuple[jax.Array, jax.Array]:
        return measure(*_hide_for_validation(tokens, prior.config.codebook_size, part))

    sums, counts = jax.lax.map(measure_at, jnp.arange(len(VALIDATION_PROGRESS)))
    return jnp.sum(sums), jnp.sum(counts)


def log_likelihoods(
    prior: PriorTransformer,
    tokens: jax.Array,
    labels: jax.Array,
    condition: jax.Array | None = None,
    text: Text | None = None,
) -> jax.Array:
    """Computes the log-likelihood of each sample, in nats: the sum of those of its tokens.

    Args:
      prior: an autoregressive one, bound to parameters, in evaluation mode.
      tokens: int32 ``[B, L]``.
      labels: int32 ``[B]``, -1 for no class.
      condition: int32 ``[B, Lc]`` where the prior has a condition grid.
      text: of a prior with texts; None for none.

    Returns:
      float32 ``[B]``.
    """
    logits = prior(tokens, _class_rows(prior, labels), condition, text)
    return -jnp.sum(token_nats(logits, tokens), axis=1)


def token_nats(logits: jax.Array, tokens: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Computes the cross-entropy of each token, in nats.

    Args:
      logits: float32 ``[B, L, K]``.
      tokens: int32 ``[B, L]`` targets.
      label_smoothing: share of the target that is spread over all K codes, the right one among them.

    Returns:
      float32 ``[B, L]``.
    """
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]  # (B, L)
    expected = chosen  # the target's expectation of the logits
    if label_smoothing:
        expected = (1 - label_smoothing) * chosen + label_smoothing * jnp.mean(logits, axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - expected


def unigram_entropy(histogram: np.ndarray) -> float:
    """Returns the loss, in nats per token, of a model that knows only how often each code occurs.

    Args:
      histogram: ``[K]`` counts of codes.

    Raises:
      ValueError: nothing was counted.
    """
    counts = np.asarray(histogram, np.float64)
    total = counts.sum()
    if not total > 0:
        raise ValueError("the histogram is empty: there are no tokens to speak of")
    shares = counts[counts > 0] / total
    return float(-np.sum(shares * np.log(shares)) + 0.0)  # not -0


def _average(logits: jax.Array, tokens: jax.Array, predicted: jax.Array, label_smoothing: float) -> Objective:
    """Averages over the tokens that are marked as predicted, of which there is at least one."""
    counted = predicted.astype(jnp.float32)  # (B, L)
    weight = jnp.sum(counted)
    nats, right = token_nats(logits, tokens), _most_probable(logits) == tokens
    scalars = {"nats": jnp.sum(nats * counted) / weight, "accuracy": jnp.sum(right * counted) / weight}
    loss = scalars["nats"]
    if label_smoothing:
        loss = jnp.sum(token_nats(logits, tokens, label_smoothing) * counted) / weight
    return Objective(loss, weight, jax.lax.stop_gradient(scalars))


def _most_probable(logits: jax.Array) -> jax.Array:
    """Returns the first of the most probable codes, as ``argmax`` does; on a CPU in a third of its time."""
    codes = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    is_greatest = logits == jnp.max(logits, axis=-1, keepdims=True)
    return jnp.min(jnp.where(is_greatest, codes[None, None], logits.shape[-1]), axis=-1)


def _class_rows(prior: PriorTransformer, labels: jax.Array) -> jax.Array:
    """Returns rows of the class embedding; the last one is no class."""
    classes = prior.config.classes
    return jnp.where(labels < 0, classes, labels) if classes else jnp.zeros_like(labels)


def _replace_tokens(tokens: jax.Array, codebook_size: int, keep: float, key: jax.Array) -> jax.Array:
    """Replaces a share of tokens by codes that are drawn from all, evenly."""
    if keep >= 1:
        return tokens
    place_key, code_key = jax.random.split(key)
    codes = jax.random.randint(code_key, tokens.shape, 0, codebook_size, tokens.dtype)
    return jnp.where(jax.random.bernoulli(place_key, float(keep), tokens.shape), tokens, codes)


def _hide_tokens(
    tokens: jax.Array, mask_id: int, schedule: str, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Hides a random number of tokens in random places, and marks those."""
    count_key, place_key = jax.random.split(key)
    batch, length = tokens.shape
    counts = training_mask_counts(schedule, jax.random.uniform(count_key, (batch,)), length)
    places = random_mask(jax.random.split(place_key, batch), counts, length)
    return jnp.where(places, mask_id, tokens), places


def _hide_for_validation(tokens: jax.Array, mask_id: int, part: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Does the same for one of the parts of :data:`VALIDATION_PROGRESS`, as the tokens themselves decide."""
    batch, length = tokens.shape
    factors_key, place_key = jax.random.split(jax.random.key(VALIDATION_SEED))
    # A hash of each sample (a multiply-and-add one, modulo 2**32), so that a sample is treated the same
    # wherever it stands in whatever batch.
    factors = jax.random.bits(factors_key, (1, length), jnp.uint32)
    hashes = jnp.sum(tokens.astype(jnp.uint32) * factors, axis=-1, dtype=jnp.uint32)  # (B,)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(place_key, part), hashes)
    progress = jnp.full((batch,), jnp.asarray(VALIDATION_PROGRESS, jnp.float32)[part])
    places = random_mask(keys, training_mask_counts(VALIDATION_SCHEDULE, progress, length), length)
    return jnp.where(places, mask_id, tokens), places
