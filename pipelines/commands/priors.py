"""``vqgan train-prior``, ``sample`` and ``import-prior``: commands that make priors and draw from them."""

import argparse
from collections.abc import Sequence
from typing import Any

from pipelines.flags import (
    STOPPED,
    CommandParser,
    add_command,
    add_explain,
    add_options,
    check_flags,
    given_options,
    preset_and_changes,
)
from pipelines.options import split_numbers
from vqgan.errors import UserError


def add_train_prior(commands: Any) -> None:
    """Adds ``vqgan train-prior``."""
    summary = "Train a prior on token data sets; the same command goes on where a run stopped."
    add_command(commands, "train-prior", summary, _train_prior, _add_train_prior_flags)


def _add_train_prior_flags(parser: CommandParser) -> None:
    from pipelines.model_options import TrainPriorOptions

    add_options(parser, TrainPriorOptions)
    add_explain(parser)
    parser.more_help = _presets


def _presets() -> str:
    from pipelines.settings import describe_presets
    from vqgan.training.prior.config import PRIOR_TRAINING_PRESETS

    return describe_presets(PRIOR_TRAINING_PRESETS)


def _train_prior(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    check_flags(unknown, args.parser, beam=False)
    if args.explain is not None:
        from pipelines.settings import explain
        from pipelines.training_prior import configure_prior_training
        from vqgan.training.prior.config import FITTED

        print(explain(configure_prior_training(*preset_and_changes(args)), args.explain, FITTED))
        return 0
    from pipelines.model_options import TrainPriorOptions
    from pipelines.runs import train_prior

    return 0 if train_prior(**given_options(TrainPriorOptions, args)).finished else STOPPED


def add_sample(commands: Any) -> None:
    """Adds ``vqgan sample``."""
    summary = "Draw new token grids from a prior, and their images."
    add_command(commands, "sample", summary, _sample, _add_sample_flags)


def _add_sample_flags(parser: CommandParser) -> None:
    from pipelines.model_options import SampleOptions

    add_options(parser, SampleOptions)


def _sample(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    check_flags(unknown, args.parser, beam=False)
    from pipelines.model_options import SampleOptions
    from pipelines.runs import sample

    sample(**given_options(SampleOptions, args))
    return 0


def add_import_prior(commands: Any) -> None:
    """Adds ``vqgan import-prior``."""
    summary = "Convert a prior of Taming Transformers to a prior folder."
    parser = add_command(commands, "import-prior", summary, _import_prior)
    flag = parser.add_argument
    flag(
        "source",
        help="checkpoint of a Net2NetTransformer: file, folder, or hf://owner/name[/file][@revision]",
    )
    flag("--codec", required=True, help="codec whose tokens it was trained on; may be the same checkpoint")
    flag("--image-size", required=True, type=int, help="side in pixels of the images it was trained on")
    flag("--heads", type=int, help="attention heads, n_head (default: as the configuration beside it says)")
    flag("--classes", type=int, default=0, help="number of classes, for a class-conditional prior")
    flag("--condition-codes", type=int, default=0, help="codes of the condition's tokens; 0 without one")
    flag("--condition-grid", help="height and width of the condition's tokens, such as 16x16")
    flag("--native-config", dest="config", help="its own configuration file (default: beside it)")
    flag("--output", required=True, help="folder of the prior")


def _import_prior(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.importing import ImportPrior, import_prior

    check_flags(unknown, args.parser, beam=False)
    config = ImportPrior(
        source=args.source,
        codec=args.codec,
        image_size=args.image_size,
        output=args.output,
        heads=args.heads,
        classes=args.classes,
        condition_codes=args.condition_codes,
        condition_grid=_condition_grid(args.condition_grid),
        config=args.config,
    )
    print(import_prior(config))
    return 0


def _condition_grid(text: str | None) -> tuple[int, int]:
    """Reads ``--condition-grid``; without one both sides are 0."""
    if text is None:
        return 0, 0
    sides = split_numbers(text.lower(), "x", 2)
    if sides is None:
        raise UserError(f"--condition-grid is {text!r}: give height and width in tokens, such as 16x16")
    return sides[0], sides[1]
