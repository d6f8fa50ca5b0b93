"""``vqgan inspect``: its flags, and what they run."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from pipelines.commands.base import command


def add(commands: Any) -> None:
    """Adds ``vqgan inspect``."""
    summary = "Describe a codec, a checkpoint of another code base, a data set or one shard."
    parser = command(commands, "inspect", summary, _run)
    parser.add_argument(
        "path",
        help="codec folder or name, checkpoint, data set (folder or hf://datasets/owner/name), or shard",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _run(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.inspecting import as_text, describe
    from pipelines.options import check_flags

    check_flags(unknown, args.parser, beam=False)
    description = describe(args.path)
    print(json.dumps(description, indent=2) if args.json else as_text(description))
    return 0
