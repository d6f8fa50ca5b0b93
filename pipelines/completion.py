"""Completion of ``vqgan`` in a shell: a script that is generated from the parsers of all commands.

Commands, flags and the values of flags with choices are completed; everything else by names of files.
"""

import argparse
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from pipelines.options.flags import CommandParser


class _FlagWords(NamedTuple):
    """A flag: its names, what it does, whether a value follows, and the values that there are."""

    names: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...]


class _CommandWords(NamedTuple):
    """A command: its name, what it does, its flags, and the values that stand for themselves."""

    name: str
    help: str
    flags: tuple[_FlagWords, ...]
    words: tuple[str, ...]


def render_completion(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", shell: str) -> str:
    """Returns the script for one of :data:`pipelines.options.flags.SHELLS`, with how to install it on top."""
    render = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    return render(list(_commands(subparsers)))


def _commands(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> Iterator[_CommandWords]:
    summaries = {each.dest: each.help or "" for each in subparsers._choices_actions}
    for name, command in subparsers.choices.items():
        if isinstance(command, CommandParser):
            command.fill()
        shown = [each for each in command._actions if each.help is not argparse.SUPPRESS]
        flags = tuple(_flag(each) for each in shown if each.option_strings)
        words = tuple(str(word) for each in shown if not each.option_strings for word in each.choices or ())
        yield _CommandWords(name, summaries[name], flags, words)


def _flag(action: argparse.Action) -> _FlagWords:
    help = (action.help or "").replace("%%", "%")
    choices = tuple(map(str, action.choices or ()))
    return _FlagWords(tuple(action.option_strings), help, action.nargs != 0, choices)


def _bash(commands: list[_CommandWords]) -> str:
    cases = []
    for command in commands:
        values = [
            f"        {'|'.join(flag.names)}) words={shlex.quote(' '.join(flag.choices))};;"
            for flag in command.flags
            if flag.takes_value
        ]
        names = " ".join([*(name for flag in command.flags for name in flag.names), *command.words])
        cases.append(
            f"    {command.name})\n      case $before in\n"
            + "\n".join([*values, f"        *) words={shlex.quote(names)};;"])
            + "\n      esac;;"
        )
    return f"""# Put this into ~/.bashrc: source <(vqgan completion bash)
_vqgan() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
  if [ "$COMP_CWORD" -eq 1 ]; then
    words={shlex.quote(" ".join(command.name for command in commands))}
  else
    case ${{COMP_WORDS[1]}} in
{chr(10).join(cases)}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _vqgan vqgan
"""


def _zsh(commands: list[_CommandWords]) -> str:
    described = " ".join(_quote(f"{command.name}:{command.help}") for command in commands)
    cases = []
    for command in commands:
        specs = [_zsh_flag(name, flag) for flag in command.flags for name in flag.names]
        rest = f"'*:word:({' '.join(command.words)})'" if command.words else "'*:file:_files'"
        cases.append(f"    {command.name}) _arguments {' '.join([*specs, rest])};;")
    return f"""#compdef vqgan
# Put this into ~/.zshrc, behind compinit: source <(vqgan completion zsh)
_vqgan() {{
  if (( CURRENT == 2 )); then
    local -a commands=({described})
    _describe command commands
    return
  fi
  local command=$words[2]
  shift words; (( CURRENT-- ))
  case $command in
{chr(10).join(cases)}
  esac
}}
compdef _vqgan vqgan
"""


def _zsh_flag(name: str, flag: _FlagWords) -> str:
    help = flag.help.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    value = f":value:({' '.join(flag.choices)})" if flag.choices else ":value:_files"
    return _quote(f"*{name}[{help}]{value if flag.takes_value else ''}")


def _fish(commands: list[_CommandWords]) -> str:
    lines = ["# Put this into ~/.config/fish/completions/vqgan.fish: vqgan completion fish"]
    first = "complete -c vqgan -n __fish_use_subcommand -f -a"
    lines += [f"{first} {command.name} -d {_quote(command.help)}" for command in commands]
    for command in commands:
        seen = f"complete -c vqgan -n {_quote(f'__fish_seen_subcommand_from {command.name}')}"
        for flag in command.flags:
            names = " ".join(
                f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names
            )
            value = f" -x -a {_quote(' '.join(flag.choices))}" if flag.choices else " -r" * flag.takes_value
            lines.append(f"{seen} {names}{value} -d {_quote(flag.help)}")
        if command.words:
            lines.append(f"{seen} -f -a {_quote(' '.join(command.words))}")
    return "\n".join([*lines, ""])


def _quote(text: str) -> str:
    """Quotes a text for zsh and fish alike, which differ in what a backslash means within quotes."""
    return "'" + text.replace("'", "’") + "'"
