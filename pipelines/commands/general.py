"""``vqgan inspect``, ``push``, ``demo`` and ``completion``: commands for whatever the others make."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from pipelines.flags import SHELLS, add_command, check_flags


def add_inspect(commands: Any) -> None:
    """Adds ``vqgan inspect``."""
    summary = "Describe a codec, a checkpoint of another code base, a data set or one shard."
    parser = add_command(commands, "inspect", summary, _inspect)
    parser.add_argument(
        "path",
        help="codec folder or name, checkpoint, data set (folder or hf://datasets/owner/name), or shard",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _inspect(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.inspecting import describe, format_description

    check_flags(unknown, args.parser, beam=False)
    description = describe(args.path)
    print(json.dumps(description, indent=2) if args.json else format_description(description))
    return 0


def add_push(commands: Any) -> None:
    """Adds ``vqgan push``."""
    summary = "Upload a codec, a prior or a token data set to the Hugging Face Hub, with its card."
    parser = add_command(commands, "push", summary, _push)
    flag = parser.add_argument
    flag("path", help="folder of a codec, of a prior, of the run that trained it, or of a token data set")
    flag("repository", metavar="OWNER/NAME", help="repository; created if it is not there")
    flag("--revision", help="branch (default: the repository's main one)")
    flag("--private", action="store_true", help="if the repository is created, make it private")
    flag("--message", help="of the commit (default: what is uploaded)")


def _push(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.pushing import push

    check_flags(unknown, args.parser, beam=False)
    options = {"revision": args.revision, "private": args.private, "message": args.message}
    print(push(args.path, args.repository, **options))
    return 0


def add_demo(commands: Any) -> None:
    """Adds ``vqgan demo``."""
    summary = "Photographs to tokens and back, a small prior, new images, and a report to look at."
    parser = add_command(commands, "demo", summary, _demo)
    parser.add_argument("--output", default="demo-output", help="folder for everything")
    parser.add_argument("--input", help="your own images (default: photographs that come along)")


def _demo(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.demo import run_demo

    check_flags(unknown, args.parser, beam=False)
    run_demo(args.output, args.input)
    return 0


def add_completion(commands: Any) -> None:
    """Adds ``vqgan completion``."""
    summary = (
        "Print a script that completes commands and flags in a shell; its first line says where it goes."
    )
    parser = add_command(commands, "completion", summary, _completion)
    parser.add_argument("shell", choices=SHELLS, help="which shell")
    parser.set_defaults(commands=commands)


def _completion(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.completion import render_completion

    check_flags(unknown, args.parser, beam=False)
    print(render_completion(args.commands, args.shell), end="")
    return 0
