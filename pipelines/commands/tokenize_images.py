"""``vqgan tokenize``: its flags, and what they run."""

import argparse
from collections.abc import Sequence
from typing import Any

from pipelines.commands.base import command


def add(commands: Any) -> None:
    """Adds ``vqgan tokenize``."""
    from pipelines.options import add_tokenize_flags

    summary = "Turn an image corpus into Parquet token shards. Further flags go to Apache Beam."
    add_tokenize_flags(command(commands, "tokenize", summary, _run))


def _run(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines import dry_run, tokenize_images
    from pipelines.options import check_flags, tokenize_config
    from pipelines.planned_runs import code_of

    check_flags(unknown, args.parser, beam=True)
    config = tokenize_config(args)
    if args.dry_run:
        for name, value in dry_run.estimate(config).items():
            print(f"{name}: {value}")
        return 0
    return code_of(config.output, tokenize_images.run(config, unknown), "rows")
