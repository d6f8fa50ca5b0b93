"""``vqgan export``: its flags, and what they run."""

import argparse
from collections.abc import Sequence
from typing import Any

from pipelines.commands.base import command


def add(commands: Any) -> None:
    """Adds ``vqgan export``."""
    parser = command(commands, "export", "Write a codec's weights for torch users.", _run)
    parser.add_argument("codec", help="codec folder or name, or a checkpoint of another code base")
    parser.add_argument("output", metavar="DIR", help="folder to write")
    parser.add_argument("--to", required=True, choices=("safetensors", "diffusers"), help="format")


def _run(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.importing import export_codec
    from pipelines.options import check_flags

    check_flags(unknown, args.parser, beam=False)
    print(export_codec(args.codec, args.output, args.to))
    return 0
