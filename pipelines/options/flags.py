"""What all commands share: how one is added, the flags of its settings, and telling Beam's from mistakes."""

import argparse
import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Callable, Sequence, Set
from typing import Any

from pipelines.options.declarations import (
    Options,
    field_docs,
    flag_name,
    flag_of,
    group_title,
    is_required,
    ordered_fields,
    read_settings,
)
from vqgan.errors import UserError

STOPPED = 130
"""Exit code of a run that was asked to stop and saved before: the same command goes on."""
SHELLS = ("bash", "zsh", "fish")
"""Those that :mod:`pipelines.completion` writes for."""
RunCommand = Callable[[argparse.Namespace, Sequence[str]], int]
"""Carries out a command, given its flags and those that its parser does not know; returns the exit code."""
CONFIG_HELP = "YAML file with any of these settings; flags win over it"
CONFIG_OF_RUN_HELP = (
    "YAML file with any of these settings, or the folder of a run, which has one; flags win over it"
)


class CommandParser(argparse.ArgumentParser):
    """A parser that complains in one line, without the usage of every flag.

    Most flags are added when they are needed: a start knows one command and would make those of all others.

    Attributes:
      more_help: text behind the help, made only when it is shown.
      add_flags: adds flags once the parser is used.
    """

    more_help: Callable[[], str] | None = None

    add_flags: Callable[["CommandParser"], None] | None = None

    def fill(self) -> None:
        """Adds the flags, unless they are there."""
        add, self.add_flags = self.add_flags, None
        if add is not None:
            add(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        self.fill()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def format_help(self) -> str:
        self.fill()
        text = super().format_help()
        return text if self.more_help is None else f"{text}\n{self.more_help()}\n"


class _Defaults(argparse.HelpFormatter):
    """Says of every flag what holds without it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help, action.default
        passive = isinstance(action, (argparse._HelpAction, argparse._VersionAction))
        if (
            not action.option_strings
            or text is None
            or passive
            or "(default: " in text
            or "(required)" in text
        ):
            return text
        return f"{text} ({'required' if action.required else f'default: {_shown(default)}'})"


def add_command(
    commands: Any,
    name: str,
    summary: str,
    run: RunCommand,
    add_flags: Callable[[CommandParser], None] | None = None,
) -> CommandParser:
    """Adds a command to the program's ``commands``; returns its parser, for its flags.

    Args:
      commands: of the program.
      name: of the command.
      summary: a line for the help.
      run: carries it out.
      add_flags: adds more flags, once this command is the one that is run or asked about.
    """
    parser: CommandParser = commands.add_parser(
        name, help=summary, description=summary, allow_abbrev=False, formatter_class=_Defaults
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    parser.set_defaults(run=run, parser=parser)
    parser.add_flags = add_flags
    return parser


def add_options(parser: argparse.ArgumentParser, cls: type[Options]) -> None:
    """Adds a flag for every field of some settings, and ``--config``; :func:`given_options` has the values.

    Args:
      parser: of a command.
      cls: the settings.
    """
    groups: dict[str, Any] = {"": parser}
    hints, docs = typing.get_type_hints(cls), field_docs(cls)
    fields = sorted(ordered_fields(cls), key=lambda field: not is_required(field))
    for field in fields:
        if flag_of(field).on_command_line:
            title = group_title(cls, field)
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            _add_flag(groups[title], field, hints[field.name], docs.get(field.name, ""))
    required = [_usage(field) for field in fields if is_required(field)]
    if required:
        parser.usage = " ".join(["%(prog)s", *required, "[options]"])
    help = f"{CONFIG_OF_RUN_HELP if cls.leaves_file else CONFIG_HELP} (default: none)"
    parser.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help=help)


def _usage(field: dataclasses.Field[Any]) -> str:
    """Returns how a setting is given."""
    flag = flag_of(field)
    if flag.positional:
        return flag_name(field)
    value = f"{{{','.join(flag.choices)}}}" if flag.choices else _metavar(field)
    return f"{flag_name(field)} {value}"


def _add_flag(group: Any, field: dataclasses.Field[Any], hint: Any, doc: str) -> None:
    flag, parts = flag_of(field), typing.get_args(hint) or (hint,)
    if flag.positional:
        help = doc.replace("%", "%%")
        given: dict[str, Any] = {"metavar": flag.metavar, "default": argparse.SUPPRESS, "help": help}
        action = group.add_argument(field.name, **given, **({"nargs": "+"} if flag.many else {}))
        action.required = False  # the file may have it; that neither has, given_options finds
        return
    settings: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
    if bool in parts:
        settings["action"] = argparse.BooleanOptionalAction
    else:
        many = flag.many or (flag.separator is None and _is_tuple(hint) and flag.read is None)
        settings |= {"action": "append"} if many else {}
        kinds = (kind for kind in (int, float) if kind in parts and flag.read is None)
        metavar = None if flag.choices else _metavar(field)
        settings |= {"type": next(kinds, None), "choices": flag.choices, "metavar": metavar}
    ends = "required" if is_required(field) else f"default: {flag.shown or _shown(field.default)}"
    group.add_argument(flag_name(field), help=f"{doc} ({ends})".replace("%", "%%"), **settings)
    for name in flag.former:
        group.add_argument(name, **{**settings, "help": argparse.SUPPRESS})


def _metavar(field: dataclasses.Field[Any]) -> str:
    flag = flag_of(field)
    return flag.metavar or (flag.name or field.name).upper().replace("-", "_")


def _is_tuple(hint: Any) -> bool:
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return any(typing.get_origin(part) is tuple for part in parts)


def _shown(value: Any) -> str:
    """Returns a default in words."""
    if value is None or value == () or value == [] or value is argparse.SUPPRESS:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def given_options(cls: type[Options], args: argparse.Namespace, beam: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the settings that a command line gives, over those of ``--config``, as keywords.

    Args:
      cls: of the command.
      args: its flags.
      beam: flags for Beam.

    Raises:
      UserError: a file of settings that is none.
      SystemExit: a required setting is missing.
    """
    fields = ordered_fields(cls)
    given = {field.name: getattr(args, field.name) for field in fields if hasattr(args, field.name)}
    base = read_settings(cls, args.config) if hasattr(args, "config") else {}
    if beam:
        given["beam"] = tuple(beam)
    merged = cls.merge(base, given)
    missing = [flag_name(field) for field in fields if is_required(field) and field.name not in merged]
    if missing:
        args.parser.error(f"the following arguments are required: {', '.join(missing)}")
    return merged


def add_explain(parser: argparse.ArgumentParser) -> None:
    """Adds ``--explain`` to a command that takes a preset; without a section it is the empty text."""
    help = "print every field of --set, or of one section, with type, value and meaning, and do nothing else"
    settings: dict[str, Any] = {"nargs": "?", "const": "", "metavar": "SECTION"}
    parser.add_argument("--explain", help=f"{help} (default: off)", **settings)


def preset_and_changes(args: argparse.Namespace) -> tuple[str, Sequence[str]]:
    """Returns the preset and the changes of it that a command line gives."""
    return getattr(args, "preset", "tiny"), getattr(args, "set", ())


def check_flags(unknown: Sequence[str], parser: argparse.ArgumentParser, beam: bool) -> None:
    """Refuses flags that neither ``parser`` nor, where ``beam`` is set, Beam knows.

    Raises:
      UserError: names the nearest known flag.
    """
    if not unknown:
        return
    from pipelines.runners.runner_flags import RunnerFlags

    given = RunnerFlags(unknown) if beam else None
    known = set(parser._option_string_actions) | (given.known() if given else set())
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
    if given is not None:
        given.check()


def _expanded(token: str, known: Set[str], parser: argparse.ArgumentParser) -> str:
    """Says what to do about a stray argument; a file is one of many that the shell has put for a pattern."""
    if "--input" not in known or not os.path.exists(token):
        return f"see {parser.prog} --help"
    pattern = os.path.join(os.path.dirname(token), f"*{os.path.splitext(token)[1]}")
    return f"the shell expands patterns; quote them, as in --input '{pattern}'"
