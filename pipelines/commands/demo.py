"""``vqgan demo``: its flags, and what they run."""

import argparse
from collections.abc import Sequence
from typing import Any

from pipelines.commands.base import command


def add(commands: Any) -> None:
    """Adds ``vqgan demo``."""
    parser = command(
        commands,
        "demo",
        "Photographs to tokens and back, a small prior, new pictures, and a report to look at.",
        _run,
    )
    parser.add_argument("--output", default="demo-output", help="folder for everything (demo-output)")
    parser.add_argument("--input", help="your own images instead of the photographs that come along")


def _run(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.demo import run
    from pipelines.options import check_flags

    check_flags(unknown, args.parser, beam=False)
    run(args.output, args.input)
    return 0
