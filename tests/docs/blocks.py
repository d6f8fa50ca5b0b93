"""Finds what a reader of a Markdown file would type: fenced blocks, and commands within the text."""

import dataclasses
import re

_FENCE = re.compile(r"(?P<indent> *)(?P<mark>`{3,}|~{3,})(?P<language>[^`]*)")
_COMMENT = re.compile(r"\s*<!--\s*(?P<note>.*?)\s*-->\s*")
_INLINE = re.compile(r"`(vqgan\s+[a-z-]+\s[^`]+)`")
_SHELL = ("", "bash", "sh", "shell", "console")
_MARKED = ("output", "tree", "file: ", "not run: ")
_NEEDS = "needs: "


@dataclasses.dataclass(frozen=True)
class Block:
    """One thing to run, or one that says why it is not.

    Attributes:
      file: name of the document.
      line: its first line there, from 1.
      kind: ``shell``, ``python``, ``inline``, ``file``, ``output``, ``tree``, ``not run`` or ``unknown``.
      text: without fences and indentation.
      note: why it is not run; the name of a file that a reader makes of it; for what is run, a package that
        it needs, or nothing.
    """

    file: str
    line: int
    kind: str
    text: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def parse(file: str, text: str) -> list[Block]:
    """All blocks of a document and all whole commands in its text, in the order of their lines.

    A comment in the line before a fence (``<!-- output -->``, ``<!-- tree -->``, ``<!-- not run: WHY -->``,
    ``<!-- file: NAME -->``, ``<!-- needs: PACKAGE -->``) is its note. ``vqgan`` and the mere name of a
    command are no inline command.

    Raises:
      ValueError: a fence is never closed.
    """
    blocks: list[Block] = []
    prose: list[str] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.fullmatch(lines[number])
        if fence is None:
            prose.append(lines[number])
            number += 1
            continue
        end = _closing(file, lines, number, fence["mark"])
        body = [line.removeprefix(fence["indent"]) for line in lines[number + 1 : end]]
        note = _note(lines[number - 1]) if number else ""
        kind, note = _kind(fence["language"].strip().split(" ")[0], note)
        blocks.append(Block(file, number + 1, kind, "\n".join(body) + "\n", note))
        prose.extend([""] * (end + 1 - number))
        number = end + 1
    return sorted(blocks + _inline(file, "\n".join(prose)), key=lambda block: block.line)


def _closing(file: str, lines: list[str], start: int, mark: str) -> int:
    for number in range(start + 1, len(lines)):
        if lines[number].strip().startswith(mark) and not lines[number].strip().strip(mark[0]):
            return number
    raise ValueError(f"{file}:{start + 1}: this block is never closed")


def _note(line: str) -> str:
    comment = _COMMENT.fullmatch(line)
    return comment["note"] if comment else ""


def _kind(language: str, note: str) -> tuple[str, str]:
    for mark in _MARKED:
        if note == mark or note.startswith(mark.rstrip(": ") + ": "):
            return mark.rstrip(": "), note.partition(": ")[2]
    needs = note.removeprefix(_NEEDS) if note.startswith(_NEEDS) else ""
    if language == "python":
        return "python", needs
    return ("shell" if language in _SHELL else "unknown"), needs


def _inline(file: str, prose: str) -> list[Block]:
    found = []
    for match in _INLINE.finditer(prose):
        line = prose.count("\n", 0, match.start()) + 1
        found.append(Block(file, line, "inline", " ".join(match[1].split()) + "\n"))
    return found


def commands(text: str) -> list[str]:
    """The commands of a shell block, each in one line; comments and empty lines are left out."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
