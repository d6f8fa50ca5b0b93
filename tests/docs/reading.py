"""Reads a document as a user does: types its commands and runs its snippets, one after the other."""

import contextlib
import dataclasses
import importlib.util
import io
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines import cli
from tests.docs.blocks import Block, commands, parse

ROOT = Path(__file__).parents[2]
PROPERTY = "documented block"
_NUMBERED = re.compile(r"\d{5}(?=-of-)|(?<=-of-)\d{5}")
_SOMETIMES = "where there are"


@dataclasses.dataclass(frozen=True)
class Change:
    """A part of a document that is run in another form here.

    Attributes:
      old: the part, as it stands there.
      new: what is run; None leaves out each command in which the part occurs.
      reason: why.
    """

    old: str
    new: str | None
    reason: str


@dataclasses.dataclass(frozen=True)
class Document:
    """A Markdown file and what is run of it in another form.

    Attributes:
      name: its path in the checkout.
      changes: they apply in this order, and each must occur.
    """

    name: str
    changes: Sequence[Change] = ()

    def __post_init__(self) -> None:
        whole = "\n".join("\n".join([block.text, *commands(block.text)]) for block in self.blocks)
        for change in self.changes:
            if change.old not in whole:
                raise ValueError(f"{self.name} has no {change.old!r} (any more); take the change out")

    @property
    def blocks(self) -> list[Block]:
        """Everything that is to be run or says why not."""
        return parse(self.name, (ROOT / self.name).read_text())


class Reader:
    """Runs the blocks of one document, in one folder and with one set of Python names.

    Args:
      document: the document.
      folder: where the reader works, with what the document takes for granted.
      names: Python names that it takes for granted.
    """

    def __init__(self, document: Document, folder: Path, names: Mapping[str, Any] | None = None) -> None:
        self.document = document
        self.folder = folder
        self.names: dict[str, Any] = {"__name__": "__main__", **(names or {})}
        self.printed: dict[Block, str] = {}
        """What each block that was run wrote to standard output."""

    def read(self, block: Block) -> str:
        """Runs a block, or checks its form; tells which of the two, and how.

        Raises:
          AssertionError: it failed, or is neither run nor marked.
        """
        if block.kind == "unknown":
            raise AssertionError(f"{block}: neither run nor marked; write <!-- not run: WHY --> above it")
        if block.kind == "not run":
            assert len(block.note) > 10, f"{block}: say why it is not run"
            return f"marked: {block.note}"
        if block.kind in ("output", "tree"):
            return f"marked: {block.kind}"
        if block.kind == "file":
            (self.folder / block.note).write_text(block.text)
            return f"written: {block.note}"
        if block.note and importlib.util.find_spec(block.note) is None:
            return f"marked: {block.note} is not installed"
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(io.StringIO()) as out:
            changed = self._python(block) if block.kind == "python" else self._shell(block)
        self.printed[block] = out.getvalue()
        print(self.printed[block])
        return changed

    def _python(self, block: Block) -> str:
        text, reasons = block.text, []
        for change in self.document.changes:
            if change.old in text:
                text, reasons = text.replace(change.old, change.new or ""), [*reasons, change.reason]
        exec(compile(text, str(block), "exec"), self.names)
        return _outcome(reasons, left=True)

    def _shell(self, block: Block) -> str:
        reasons, left = [], 0
        for line in commands(block.text):
            command: str | None = line
            for change in self.document.changes:
                if command is not None and change.old in command:
                    command = None if change.new is None else command.replace(change.old, change.new)
                    reasons.append(change.reason)
            if command is not None:
                left += 1
                run_command(command)
        return _outcome(reasons, left=left > 0)


def _outcome(reasons: list[str], left: bool) -> str:
    why = "; ".join(dict.fromkeys(reasons))
    if not left:
        return f"marked: {why}"
    return f"run, changed: {why}" if reasons else "run"


def run_command(line: str) -> None:
    """Runs one command line here: ``vqgan`` in this process, after the shell has taken the line apart.

    Raises:
      AssertionError: it fails.
    """
    if line.split()[0] != "vqgan":
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-c", line], env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return
    try:
        code: Any = cli.main(shell_words(line)[1:])
    except SystemExit as exit:
        code = exit.code
    assert code in (0, None), f"exit code {code}: {line}"


def shell_words(line: str) -> list[str]:
    """What a shell makes of a line, globs and quotes included."""
    script = f"vqgan() {{ printf '%s\\0' vqgan \"$@\"; }}\n{line}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


def missing_names(block: Block, folders: Sequence[Path]) -> list[str]:
    """Names of a tree, whose first line is its root, that lie in none of some folders.

    Numbers of shards are free, and so is what the tree says is not always there.
    """
    names = []
    for line in block.text.splitlines()[1:]:
        name, _, comment = line.strip().partition(" ")
        pattern = _NUMBERED.sub("*", name).rstrip("/")
        if name and _SOMETIMES not in comment and not any(any(f.glob(pattern)) for f in folders):
            names.append(name)
    return names
