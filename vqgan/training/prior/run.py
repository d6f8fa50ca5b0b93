"""A whole training run of a prior: validation, grids of samples, export."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from vqgan.codec import Codec
from vqgan.errors import UserError
from vqgan.functional import Arrays, Functional, take_apart
from vqgan.image_grid import tile_images
from vqgan.prior.checkpoint import CodecIdentity, recover_prior, save_prior
from vqgan.prior.config import PriorConfig
from vqgan.prior.losses import unigram_entropy, validation_loss
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.request import Request
from vqgan.prior.sampling.sampler import PriorSampler
from vqgan.prior.transformer import PriorTransformer
from vqgan.training import sharding
from vqgan.training.loop import Done, Evaluate, Evaluation, Outcome, ResumableBatches
from vqgan.training.prior.config import PriorTrainConfig
from vqgan.training.prior.learner import PriorLearner, PriorTrainState, build_prior
from vqgan.training.prior.prior_rows import PriorRows
from vqgan.training.sharding import use_cpu_devices
from vqgan.training.training_run import FREE_FIELDS, TrainingRun, has_checkpoints, read_run_config

SampleGrid = Callable[[Arrays], np.ndarray]
"""Parameters to a grid of samples, uint8 ``[H, W, 3]``."""

PRIOR_FOLDER = "prior"
REFERENCES = {
    "autoregressive": "validation rows; loss and unigram entropy in nats per token, the others in bits",
    "masked": "validation rows; loss in nats per hidden token, bits the same in bits: no likelihood",
}
"""What a prior's metrics are, by its kind; for the card."""
PRIOR_FREE_FIELDS = FREE_FIELDS | {"train.fsdp", "data.samples", "codec.name", "tokens"}
"""Fields that may change when a run goes on: how the state lies on the devices, too. Folders of tokens may
move: what is in them may not change."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorRun(TrainingRun):
    """What the training of a prior needs beside its data; the best one goes to ``prior/``.

    Attributes:
      codec: whose tokens they are.
      histogram: ``[K]`` how often each code occurs in the data.
      class_names: in the order of labels, perhaps none.
      words: vocabulary of a prior whose texts are words.
      tokens: where the tokens were read from, for people.
      decoder: codec for grids of samples; None for no grids.
    """

    config: PriorTrainConfig
    codec: CodecIdentity
    histogram: np.ndarray
    class_names: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    decoder: Codec | None = None


def fit_prior(run: PriorRun, batches: ResumableBatches, validation: PriorRows) -> Outcome[PriorTrainState]:
    """Trains to the end or until SIGTERM, from the newest checkpoint in the folder if there is one.

    Args:
      run: configuration (its model fitted to the tokens) and folder.
      batches: :class:`PriorRows` of ``train.batch_size`` rows.
      validation: rows in host memory, perhaps none.

    Raises:
      UserError: devices that cannot share the work, a folder of another run, a loss that is not finite,
        or a place that cannot be written to.
    """

    def export(params: Arrays, done: Done, metrics: Mapping[str, float]) -> None:
        save_prior(
            run.folder / PRIOR_FOLDER,
            run.config.model,
            {name: np.asarray(value, np.float32) for name, value in jax.device_get(params).items()},
            codec=run.codec,
            class_names=run.class_names,
            words=run.words,
            card=run.exported_card(done, metrics, len(validation.tokens), REFERENCES[run.config.model.kind]),
        )

    use_cpu_devices(run.config.train)
    learner, evaluate = PriorLearner(run.config), _make_evaluation(run, validation)
    _check_same_codec(run)
    return run.carry_out(
        learner,
        evaluate,
        export,
        batches,
        identity={
            "codec": {"fingerprint": run.codec.fingerprint, "name": run.codec.name},
            "tokens": list(run.tokens),
        },
        free=PRIOR_FREE_FIELDS,
        recover=lambda: recover_prior(run.folder / PRIOR_FOLDER),
    )


def _make_evaluation(run: PriorRun, validation: PriorRows) -> Evaluate:
    """Returns metrics and grids of the run, both in float32, whatever it is trained in."""
    config = run.config
    plain = dataclasses.replace(config.train, dtype="float32", remat=False)
    prior = take_apart(functools.partial(build_prior, dataclasses.replace(config, train=plain)))
    grid = None
    conditioned = config.model.condition_length > 0
    if run.decoder is not None and config.data.samples and (len(validation.tokens) or not conditioned):
        grid = make_sample_grid(config.model, run.decoder, validation, config.data.samples, config.train.seed)
    size = config.train.batch_size // config.train.accumulate
    # A masked prior's loss is no likelihood: beside an entropy it would seem to say too much.
    unigram = None if config.model.kind == "masked" else unigram_entropy(run.histogram)
    return make_prior_evaluation(
        prior, sharding.data_mesh(config.train.fsdp), validation, size, unigram, grid
    )


def make_prior_evaluation(
    prior: Functional[PriorTransformer],
    mesh: Mesh,
    rows: PriorRows,
    batch_size: int,
    unigram: float | None,
    grid: SampleGrid | None = None,
) -> Evaluate:
    """Builds a function from parameters to metrics over all of ``rows``, and a grid.

    Args:
      prior: structure of the model.
      mesh: devices, which share each batch.
      rows: to validate on, in host memory; none give no metrics.
      batch_size: rows per device call; a multiple of the number of devices.
      unigram: entropy of the data set's codes in nats, which stands beside the loss; None for none.
      grid: of samples, if images can be made of them.

    Returns:
      A function whose metrics are ``loss`` (nats per token), ``bits`` and the entropy in both units.
    """

    @jax.jit
    def measure(params: Arrays, part: PriorRows, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        bound = prior.bind(sharding.gathered(params, mesh), {})
        return validation_loss(bound, part.tokens, part.labels, part.condition, valid, part.text)

    def evaluate(params: Arrays) -> Evaluation:
        nats = tokens = 0.0
        for part in _padded_batches(rows, batch_size):
            found = measure(params, *jax.tree.map(lambda leaf: sharding.shard(leaf, mesh), part))
            nats, tokens = nats + float(found[0]), tokens + float(found[1])
        samples = None if grid is None else grid(params)
        return Evaluation(_in_units(nats / tokens, unigram) if tokens else {}, samples, "samples")

    return evaluate


def make_sample_grid(model: PriorConfig, codec: Codec, rows: PriorRows, count: int, seed: int) -> SampleGrid:
    """Builds a function from parameters to a grid of samples: always the same seeds, classes and conditions.

    Args:
      model: the prior's configuration.
      codec: that made the tokens.
      rows: where conditions are taken from, at least one row of a prior with a condition grid.
      count: images.
      seed: of the first; the others follow.
    """
    numbers = np.arange(count)
    seeds = ((seed + numbers) % (1 << 32)).astype(np.uint32)
    labels = (numbers * model.classes // count).astype(np.int32) if model.classes else None
    condition = None if rows.condition is None else rows.condition[numbers % len(rows.condition)]
    text = None if rows.text is None else rows.text.take(numbers % len(rows.text.mask))
    request = Request(seeds, labels, condition, None, text)
    sampler = PriorSampler(model, {}, batch_size=count)  # one: it compiles once

    def grid(params: Arrays) -> np.ndarray:
        sampler.replace_params(jax.device_get(params))
        tokens = sampler.sample(request, SamplingConfig())
        sampler.release()  # training goes on without a second copy of the weights
        return tile_images(codec.decode(tokens))

    return grid


def _in_units(nats: float, unigram: float | None) -> dict[str, float]:
    """Returns the loss, and the entropy if there is one, in nats and in bits."""
    bit = math.log(2)
    metrics = {"loss": nats, "bits": nats / bit}
    return metrics if unigram is None else metrics | {"unigram": unigram, "unigram_bits": unigram / bit}


def _padded_batches(rows: PriorRows, size: int) -> Iterator[tuple[PriorRows, np.ndarray]]:
    """Yields all rows in batches of one size, and which rows of each count.

    The last is filled up by repetition.
    """
    for start in range(0, len(rows.tokens), size):
        at = np.minimum(np.arange(start, start + size), len(rows.tokens) - 1)
        valid = np.arange(start, start + size) < len(rows.tokens)
        yield rows.take(at), valid.astype(np.float32)


def _check_same_codec(run: PriorRun) -> None:
    """Refuses to go on with tokens of another codec, in words that say which."""
    try:
        before = read_run_config(run.folder).fields("codec")
        fingerprint, name = before.text("fingerprint"), before.text("name")
    except UserError:
        return  # no run there, or something else, which the comparison of configurations reports
    if has_checkpoints(run.folder) and fingerprint != run.codec.fingerprint:
        raise UserError(
            f"{run.folder}: this run learns tokens of codec {fingerprint[:12]} ({name}), and these were made "
            f"by {run.codec.fingerprint[:12]} ({run.codec.name}); name another folder"
        )
