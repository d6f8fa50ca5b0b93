"""What all commands have in common."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

STOPPED = 130
"""Exit code of a run that was asked to stop and saved before: the same command goes on."""
Run = Callable[[argparse.Namespace, Sequence[str]], int]
"""Carries out a command, given its flags and those that its parser does not know; gives the exit code."""


def command(commands: Any, name: str, summary: str, run: Run) -> argparse.ArgumentParser:
    """Adds a command to the program's ``commands``; gives its parser, for its flags."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary, allow_abbrev=False
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    parser.set_defaults(run=run, parser=parser)
    return parser
