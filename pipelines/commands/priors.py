"""``vqgan train-prior``, ``sample``, ``complete`` and ``import-prior``: commands around priors."""

import argparse
from collections.abc import Sequence
from typing import Any

from pipelines.options.flags import (
    STOPPED,
    CommandParser,
    add_command,
    add_explain,
    add_options,
    check_flags,
    given_options,
    preset_and_changes,
)


def add_train_prior(commands: Any) -> None:
    """Adds ``vqgan train-prior``."""
    summary = "Train a prior on token data sets; the same command goes on where a run stopped."
    add_command(commands, "train-prior", summary, _train_prior, _add_train_prior_flags)


def _add_train_prior_flags(parser: CommandParser) -> None:
    from pipelines.options.model_options import TrainPriorOptions

    add_options(parser, TrainPriorOptions)
    add_explain(parser)
    parser.more_help = _presets


def _presets() -> str:
    from pipelines.options.settings import describe_presets
    from vqgan.training.prior.config import PRIOR_TRAINING_PRESETS

    return describe_presets(PRIOR_TRAINING_PRESETS)


def _train_prior(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    check_flags(unknown, args.parser, beam=False)
    if args.explain is not None:
        from pipelines.options.settings import explain
        from pipelines.training.training_prior import configure_prior_training
        from vqgan.training.prior.config import FITTED

        print(explain(configure_prior_training(*preset_and_changes(args)), args.explain, FITTED))
        return 0
    from pipelines.options.model_options import TrainPriorOptions
    from pipelines.runs import train_prior

    return 0 if train_prior(**given_options(TrainPriorOptions, args)).finished else STOPPED


def add_sample(commands: Any) -> None:
    """Adds ``vqgan sample``."""
    summary = "Draw new token grids from a prior, and their images."
    add_command(commands, "sample", summary, _sample, _add_sample_flags)


def _add_sample_flags(parser: CommandParser) -> None:
    from pipelines.options.model_options import SampleOptions

    add_options(parser, SampleOptions)


def _sample(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    check_flags(unknown, args.parser, beam=False)
    from pipelines.options.model_options import SampleOptions
    from pipelines.runs import sample

    sample(**given_options(SampleOptions, args))
    return 0


def add_complete(commands: Any) -> None:
    """Adds ``vqgan complete``."""
    summary = "Complete a picture of your own: the lower half or a region, drawn several times."
    add_command(commands, "complete", summary, _complete, _add_complete_flags)


def _add_complete_flags(parser: CommandParser) -> None:
    from pipelines.options.model_options import CompleteOptions

    add_options(parser, CompleteOptions)


def _complete(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    check_flags(unknown, args.parser, beam=False)
    from pipelines.options.model_options import CompleteOptions

    options = CompleteOptions(**given_options(CompleteOptions, args))
    config = options.config()
    options.use_compilation_cache()
    from pipelines.sampling.complete_image import complete_image

    print(complete_image(config))
    return 0


def add_import_prior(commands: Any) -> None:
    """Adds ``vqgan import-prior``."""
    summary = "Convert a prior of Taming Transformers or LlamaGen to a prior folder."
    add_command(commands, "import-prior", summary, _import_prior, _add_import_prior_flags)


def _add_import_prior_flags(parser: CommandParser) -> None:
    from pipelines.options.tool_options import ImportPriorOptions

    add_options(parser, ImportPriorOptions)


def _import_prior(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.options.tool_options import ImportPriorOptions

    check_flags(unknown, args.parser, beam=False)
    options = ImportPriorOptions(**given_options(ImportPriorOptions, args))
    from pipelines.importing import import_prior

    print(import_prior(options))
    return 0
