"""What all commands share: how one is added, flags of an input, and telling Beam's flags from mistakes."""

import argparse
import difflib
import os
from collections.abc import Callable, Sequence, Set
from typing import Any

from transforms.sources.base import KINDS, SourceConfig
from vqgan.errors import UserError

STOPPED = 130
"""Exit code of a run that was asked to stop and saved before: the same command goes on."""
RunCommand = Callable[[argparse.Namespace, Sequence[str]], int]
"""Carries out a command, given its flags and those that its parser does not know; returns the exit code."""


def add_command(commands: Any, name: str, summary: str, run: RunCommand) -> argparse.ArgumentParser:
    """Adds a command to the program's ``commands``; returns its parser, for its flags."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary, allow_abbrev=False
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say how an input is read."""
    group = parser.add_argument_group("input")
    add = group.add_argument
    add("--input-kind", choices=sorted(KINDS), help="do not recognise the input, take it for this")
    add("--folder-labels", action="store_true", help="names of first-level subfolders are classes")
    add("--image-column", help="column or feature with the image or its path")
    add("--key-column", help="column or feature with a unique key")
    add("--label-column", help="column or feature with the class, a number or a name")
    add("--whole-names", action="store_true", help="tar: names of a sample agree up to the last dot")
    add("--columns", default="", help="further columns to pass through, separated by commas")


def source_config(args: argparse.Namespace) -> SourceConfig:
    """Returns the source that these flags describe."""
    return SourceConfig(
        input=args.input,
        kind=args.input_kind,
        folder_labels=args.folder_labels,
        whole_names=args.whole_names,
        image_column=args.image_column,
        key_column=args.key_column,
        label_column=args.label_column,
        columns=tuple(name for name in args.columns.split(",") if name),
    )


def check_flags(unknown: Sequence[str], parser: argparse.ArgumentParser, beam: bool) -> None:
    """Refuses flags that neither ``parser`` nor, where ``beam`` is set, Beam knows.

    Raises:
      UserError: names the nearest known flag.
    """
    if not unknown:
        return
    from pipelines import beam_runs

    known = set(parser._option_string_actions)
    beam_parser = beam_runs.make_beam_parser() if beam else None
    if beam_parser is not None:
        known |= set(beam_parser._option_string_actions)
    previous_was_flag = False
    for token in unknown:
        name = token.split("=")[0]
        if token.startswith("--"):
            if name not in known:
                near = difflib.get_close_matches(name, sorted(known), n=1)
                hint = f"did you mean {near[0]}?" if near else f"see {parser.prog} --help"
                raise UserError(f"unknown flag {name}: {hint}")
        elif not (previous_was_flag and beam):
            raise UserError(f"unexpected argument {token!r}: {_expanded(token, known, parser)}")
        previous_was_flag = token.startswith("--") and "=" not in token
    if beam_parser is not None:
        beam_runs.check_runner(beam_parser.parse_known_args(unknown)[0].runner)


def _expanded(token: str, known: Set[str], parser: argparse.ArgumentParser) -> str:
    """Says what to do about a stray argument; a file is one of many that the shell has put for a pattern."""
    flag = next((name for name in ("--input", "--data") if name in known), None)
    if flag is None or not os.path.exists(token):
        return f"see {parser.prog} --help"
    pattern = os.path.join(os.path.dirname(token), f"*{os.path.splitext(token)[1]}")
    return f"the shell expands patterns; quote them, as in {flag} '{pattern}'"
