"""``vqgan train``: its flags, and what they run."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from pipelines.commands.base import STOPPED, command


def add(commands: Any) -> None:
    """Adds ``vqgan train``."""
    from pipelines.options import add_source_flags

    summary = "Train a VQGAN on images; the same command goes on where a run stopped."
    parser = command(commands, "train", summary, _run)
    flag = parser.add_argument
    flag("--data", dest="input", required=True, help="images, in any form that tokenize reads")
    flag("--output", required=True, help="folder of the run; the best codec is its subfolder codec")
    flag("--preset", default="tiny", help="named configuration (tiny)")
    flag(
        "--set", action="append", default=[], metavar="A.B=V", help="change a field, such as train.steps=1000"
    )
    flag("--validation", help="validation images; by default one in data.holdout of --data")
    flag("--init", metavar="CODEC", help="start from this codec, its codebook included")
    flag("--license", default="unspecified", help="licence of the codec, for its card")
    flag("--push", metavar="OWNER/NAME", help="upload the codec to the Hugging Face Hub at the end")
    flag("--wandb", metavar="PROJECT", help="also log to Weights & Biases")
    flag("--quiet", action="store_true", help="print errors only")
    add_source_flags(parser)


def _run(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.options import check_flags, source_config
    from pipelines.pushing import check_can_push, push
    from pipelines.training_codec import TrainRequest, run

    check_flags(unknown, args.parser, beam=False)
    source = source_config(args)
    request = TrainRequest(
        source=source,
        output=args.output,
        preset=args.preset,
        settings=tuple(args.set),
        validation=dataclasses.replace(source, input=args.validation) if args.validation else None,
        init=args.init,
        license=args.license,
        wandb_project=args.wandb,
        quiet=args.quiet,
    )
    if args.push:
        check_can_push(args.push)
    if not run(request):
        return STOPPED
    if args.push:
        print(push(f"{args.output}/codec", args.push))
    return 0
