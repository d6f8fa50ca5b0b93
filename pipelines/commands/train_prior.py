"""``vqgan train-prior``: its flags, and what they run."""

import argparse
from collections.abc import Sequence
from typing import Any

from pipelines.commands.base import STOPPED, command


def add(commands: Any) -> None:
    """Adds ``vqgan train-prior``."""
    summary = "Train a prior on token data sets; the same command goes on where a run stopped."
    parser = command(commands, "train-prior", summary, _run)
    flag = parser.add_argument
    flag(
        "--tokens",
        action="append",
        required=True,
        metavar="DIR[=WEIGHT]",
        help="folder or hf://datasets/owner/name; several are mixed, by their weights if they have any",
    )
    flag("--output", required=True, help="folder of the run; the best prior is its subfolder prior")
    flag("--preset", default="tiny", help="named configuration (tiny)")
    flag(
        "--set", action="append", default=[], metavar="A.B=V", help="change a field, such as train.steps=1000"
    )
    flag(
        "--validation",
        metavar="DIR",
        help="tokens to validate on; by default one image in data.holdout of --tokens",
    )
    flag("--condition", metavar="DIR", help="token data set of the same keys and views that is the condition")
    flag("--unconditional", action="store_true", help="leave the classes of the data set out")
    flag("--codec", help="codec for image grids of samples; by default the one that the data set names")
    flag("--license", default="unspecified", help="licence of the prior, for its card")
    flag("--wandb", metavar="PROJECT", help="also log to Weights & Biases")
    flag("--quiet", action="store_true", help="print errors only")


def _run(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.options import check_flags
    from pipelines.training_prior import TrainPriorRequest, run

    check_flags(unknown, args.parser, beam=False)
    request = TrainPriorRequest(
        tokens=tuple(args.tokens),
        output=args.output,
        preset=args.preset,
        settings=tuple(args.set),
        validation=args.validation,
        condition=args.condition,
        codec=args.codec,
        unconditional=args.unconditional,
        license=args.license,
        wandb_project=args.wandb,
        quiet=args.quiet,
    )
    return 0 if run(request) else STOPPED
