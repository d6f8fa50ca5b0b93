"""Whole runs as functions of keywords, which the commands of the same names call, too.

Each takes the settings of its command (:mod:`pipelines.options`), and leaves them with its results as a file
that ``--config`` takes back. What a run needs is imported by it.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.options.declarations import render_settings, takes
from pipelines.options.flags import CommandParser, check_flags
from pipelines.options.model_options import SampleOptions, TrainOptions, TrainPriorOptions
from pipelines.options.run_options import BeamOptions, DecodeOptions, EvaluateOptions, TokenizeOptions
from pipelines.options.tool_options import RetryOptions

if TYPE_CHECKING:
    from pipelines.training.training_runs import TrainingSummary


@dataclasses.dataclass(frozen=True)
class DataSetSummary:
    """A finished data set of tokens or of images.

    Attributes:
      output: its folder or URI, as :func:`vqgan.open_tokens` and ``vqgan decode`` take it.
      counts: of ``images``, ``rows`` and ``rejects``, among others.
      reject_reasons: how often each occurred.
      manifest: all that ``manifest.json`` says, as JSON data.
    """

    output: str
    counts: Mapping[str, int]
    reject_reasons: Mapping[str, int]
    manifest: Mapping[str, Any] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class EvaluationSummary:
    """How good codecs are.

    Attributes:
      metrics: by codec, each metric's value by its name.
      results: all that was found, as ``evaluation.json`` has it.
    """

    metrics: Mapping[str, Mapping[str, float]]
    results: Mapping[str, Any] = dataclasses.field(repr=False)

    def __str__(self) -> str:
        """Returns a table for people."""
        from pipelines.evaluating.evaluation_report import format_results

        return format_results(self.results)


@takes(TokenizeOptions)
def tokenize(options: TokenizeOptions) -> DataSetSummary:
    """Turns an image corpus into a token data set, or continues a run that was interrupted.

    Keywords are the flags of ``vqgan tokenize``, see :class:`pipelines.options.run_options.TokenizeOptions`.

    >>> from pipelines import tokenize
    >>> tokenize(input="photos/", codec="tiny", output="tokens/", image_size=64, quiet=True).counts["rejects"]
    0

    Raises:
      UserError: whatever the user can put right.
      TypeError: an unknown or missing keyword.
    """
    from pipelines.data_sets.additions import append
    from pipelines.data_sets.bucketed_runs import tokenize_buckets
    from pipelines.tokenize_images import run_tokenize

    config, flags = options.config(), _beam_flags(options)
    record = render_settings("tokenize", options.record())
    if options.buckets:
        made = tokenize_buckets(config, options.buckets, flags, record, options.append)
    elif options.append:
        made = append(config, flags)
    else:
        made = run_tokenize(config, flags, record)
    return _summary(config.output, made)


@takes(RetryOptions)
def retry(options: RetryOptions) -> DataSetSummary:
    """Tries the rejects of a token data set again; what can be read now becomes further shards.

    Of a folder of buckets each data set has its turn, and the counts are those of all. Keywords are the flags
    of ``vqgan retry``, see :class:`pipelines.options.tool_options.RetryOptions`.

    >>> from pipelines import retry
    >>> retry(path="tokens/", quiet=True).counts["rejects"]
    0

    Raises:
      UserError: whatever the user can put right.
      TypeError: an unknown or missing keyword.
    """
    from pipelines.data_sets.additions import retry_rejects
    from pipelines.data_sets.bucketed_runs import retry_buckets
    from vqgan.manifest import bucket_names

    path = os.fspath(options.path)
    run = retry_buckets if bucket_names(path) else retry_rejects
    return _summary(path, run(path, options.given(), _beam_flags(options)))


@takes(DecodeOptions)
def decode(options: DecodeOptions) -> DataSetSummary:
    """Turns a token data set, tokenized or sampled, into images, or continues a run that was interrupted.

    Keywords are the flags of ``vqgan decode``, see :class:`pipelines.options.run_options.DecodeOptions`.

    >>> from pipelines import decode
    >>> decode(tokens="tokens/", output="images/", format="webp", quiet=True).counts["images"]
    10

    Raises:
      UserError: whatever the user can put right.
      TypeError: an unknown or missing keyword.
    """
    from pipelines.decode_tokens import run_decode

    config = options.config()
    record = render_settings("decode", options.record())
    return _summary(config.output, run_decode(config, _beam_flags(options), record))


@takes(SampleOptions)
def sample(options: SampleOptions) -> DataSetSummary:
    """Draws a token data set and its images from a prior, or continues a run that was interrupted.

    Keywords are the flags of ``vqgan sample``, see :class:`pipelines.options.model_options.SampleOptions`,
    but that ``--class`` is ``classes``. For tokens in memory there is :meth:`vqgan.Prior.sample`.

    >>> from pipelines import sample
    >>> sample(prior="prior/", output="samples/", count=4, top_p=0.95, quiet=True).counts["rows"]
    4

    Raises:
      UserError: whatever the user can put right.
      TypeError: an unknown or missing keyword.
    """
    from pipelines.sampling.sample_prior import run_sample

    config = options.config()
    options.use_compilation_cache()
    return _summary(config.output, run_sample(config, render_settings("sample", options.record())))


@takes(TrainOptions)
def train(options: TrainOptions) -> "TrainingSummary":
    """Trains a codec, or goes on where a run in the same folder stopped.

    Keywords are the flags of ``vqgan train``, see :class:`pipelines.options.model_options.TrainOptions`;
    ``set`` may be a mapping.

    >>> from pipelines import train
    >>> changes = {"train": {"steps": 2000, "batch_size": 8}, "loss.l2": 0.5}
    >>> train(input="photos/", output="run/", set=changes, quiet=True).model
    'run/codec'

    Raises:
      UserError: whatever the user can put right.
      TypeError: an unknown or missing keyword.
    """
    from pipelines.pushing import check_can_push, push
    from pipelines.training.training_codec import run_codec_training

    if options.push:
        check_can_push(options.push)
    options.use_compilation_cache()
    summary = run_codec_training(options.request(), options.record())
    if options.push and summary.finished:
        summary = dataclasses.replace(summary, pushed=push(summary.model, options.push))
    return summary


@takes(TrainPriorOptions)
def train_prior(options: TrainPriorOptions) -> "TrainingSummary":
    """Trains a prior on token data sets, or goes on where a run in the same folder stopped.

    Keywords are the flags of ``vqgan train-prior``, see
    :class:`pipelines.options.model_options.TrainPriorOptions`.

    >>> from pipelines import train_prior
    >>> changes = {"train.steps": 1000, "data.holdout": 2}
    >>> train_prior(tokens="tokens/", output="prior/", set=changes, quiet=True).finished
    True

    Raises:
      UserError: whatever the user can put right.
      TypeError: an unknown or missing keyword.
    """
    from pipelines.training.training_prior import run_prior_training

    options.use_compilation_cache()
    return run_prior_training(options.request(), options.record())


@takes(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> EvaluationSummary:
    """Measures how well codecs reconstruct images.

    Keywords are the flags of ``vqgan evaluate``, see :class:`pipelines.options.run_options.EvaluateOptions`.

    >>> from pipelines import evaluate
    >>> result = evaluate(codec="tiny", input="photos/", image_size=64, metrics="psnr,ssim", quiet=True)
    >>> result.metrics["tiny"]["psnr"] > 20
    True

    Raises:
      UserError: whatever the user can put right.
      TypeError: an unknown or missing keyword.
    """
    from pipelines.evaluating.evaluate_codecs import run_evaluation

    options.use_compilation_cache()
    results = run_evaluation(options.config(), render_settings("evaluate", options.record()))
    metrics = {
        codec["codec"]: {name: metric["value"] for name, metric in codec["metrics"].items()}
        for codec in results["codecs"]
    }
    return EvaluationSummary(metrics, results)


def _summary(output: str, manifest: Mapping[str, Any]) -> DataSetSummary:
    return DataSetSummary(output, manifest["counts"], manifest["reject_reasons"], manifest)


def _beam_flags(options: BeamOptions) -> tuple[str, ...]:
    """Returns flags for Beam, once they are known to be some."""
    flags = tuple(options.beam)
    check_flags(flags, CommandParser(prog="beam", add_help=False), beam=True)
    return flags
