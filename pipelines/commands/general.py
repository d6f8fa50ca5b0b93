"""``vqgan inspect``, ``push``, ``demo`` and ``completion``: commands for whatever the others make."""

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any

from pipelines.options.flags import (
    SHELLS,
    CommandParser,
    add_command,
    add_options,
    check_flags,
    given_options,
)


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
    add_command(commands, "push", summary, _push, _add_push_flags)


def _add_push_flags(parser: CommandParser) -> None:
    from pipelines.options.tool_options import PushOptions

    add_options(parser, PushOptions)


def _push(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.options.tool_options import PushOptions

    check_flags(unknown, args.parser, beam=False)
    options = PushOptions(**given_options(PushOptions, args))
    from pipelines.pushing import push

    said = push(
        os.fspath(options.path),
        options.repository,
        revision=options.revision,
        private=options.private,
        message=options.message,
    )
    print(said)
    return 0


def add_demo(commands: Any) -> None:
    """Adds ``vqgan demo``."""
    summary = "Photographs to tokens and back, a small prior, new images, and a report to look at."
    add_command(commands, "demo", summary, _demo, _add_demo_flags)


def _add_demo_flags(parser: CommandParser) -> None:
    from pipelines.options.tool_options import DemoOptions

    add_options(parser, DemoOptions)


def _demo(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    from pipelines.options.run_options import optional_path
    from pipelines.options.tool_options import DemoOptions

    check_flags(unknown, args.parser, beam=False)
    options = DemoOptions(**given_options(DemoOptions, args))
    options.use_compilation_cache()
    from pipelines.demo import run_demo

    run_demo(os.fspath(options.output), optional_path(options.input))
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
