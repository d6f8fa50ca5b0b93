"""Patterns over file names: shell globs and webdataset's brace ranges."""

import dataclasses
import math
import re
from fnmatch import fnmatchcase

from vqgan.errors import UserError

MAX_EXPANSIONS = 1_000_000
"""Most names that one pattern may expand to: ``{0..9999999999}`` is a slip, and would fill memory."""

_BRACE = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])")

State = frozenset[tuple[int, int]]
"""Where matching stands: pairs of (number of the pattern, number of its next segment)."""

EVERYTHING: State = frozenset({(-1, -1)})
"""The state of a path that matched: all that lies below it matches too."""


def is_pattern(path: str) -> bool:
    """Tells whether ``path`` has characters that a glob or brace range is made of."""
    return any(character in path for character in "*?[{")


def expand_braces(pattern: str) -> list[str]:
    """Returns ``a{1..3}.tar`` and ``{a,b}.tar`` written out, in order and without duplicates.

    Numbers keep their leading zeros, as in the shell: ``{08..10}`` is 08, 09, 10. Braces that hold
    neither a range nor a comma are ordinary characters.

    Raises:
      UserError: more than :data:`MAX_EXPANSIONS` names.
    """
    braces = [(brace, _options(brace[1], pattern)) for brace in _BRACE.finditer(pattern)]
    _check_count(math.prod(len(options) for _, options in braces if options), pattern)
    for brace, options in braces:
        if options:
            head, tail = pattern[: brace.start()], pattern[brace.end() :]
            return _expand_each([head + option + tail for option in options], pattern)
    return [pattern]


def _expand_each(patterns: list[str], whole: str) -> list[str]:
    names: dict[str, None] = {}
    for pattern in patterns:
        names.update(dict.fromkeys(expand_braces(pattern)))
        _check_count(len(names), whole)
    return list(names)


def _options(body: str, pattern: str) -> list[str]:
    """Returns what one pair of braces stands for; empty if it is not a range or an enumeration."""
    if numbers := _NUMBERS.fullmatch(body):
        return _number_range(numbers[1], numbers[2], int(numbers[3] or 1), pattern)
    if letters := _LETTERS.fullmatch(body):
        return [chr(code) for code in _inclusive(ord(letters[1]), ord(letters[2]), 1)]
    return body.split(",") if "," in body else []


def _number_range(first: str, last: str, step: int, pattern: str) -> list[str]:
    padded = any(len(text.lstrip("-")) > 1 and text.lstrip("-")[0] == "0" for text in (first, last))
    width = max(len(first), len(last)) if padded else 0
    numbers = _inclusive(int(first), int(last), step)
    _check_count(abs(numbers.stop - numbers.start) // abs(numbers.step), pattern)
    return [f"{number:0{width}d}" for number in numbers]


def _inclusive(first: int, last: int, step: int) -> range:
    size = abs(step) or 1
    return range(first, last + 1, size) if first <= last else range(first, last - 1, -size)


def _check_count(count: int, pattern: str) -> None:
    if count > MAX_EXPANSIONS:
        raise UserError(
            f"{pattern}: the braces stand for more than {MAX_EXPANSIONS:,} names; narrow the range or use *"
        )


@dataclasses.dataclass(frozen=True)
class Globs:
    """Several glob patterns, matched one folder level at a time so that a walk can prune.

    ``*``, ``?`` and ``[...]`` stay within one level, ``**`` stands for any number of levels. A
    pattern that matches a folder matches all that is in it.

    Attributes:
      patterns: each pattern split into its segments.
    """

    patterns: tuple[tuple[str, ...], ...]

    def start(self) -> State:
        """Returns the state before the first segment."""
        return self._close({(number, 0) for number in range(len(self.patterns))})

    def step(self, state: State, name: str) -> State:
        """Returns the state one level further down, at ``name``; empty if nothing below can match."""
        if state is EVERYTHING:
            return EVERYTHING
        moved = set()
        for number, position in state:
            segment = self.patterns[number][position]
            if segment == "**":
                moved.add((number, position))
            elif fnmatchcase(name, segment):
                moved.add((number, position + 1))
        return self._close(moved)

    def _close(self, state: set[tuple[int, int]]) -> State:
        """Adds the states in which ``**`` stands for no level at all."""
        closed = set()
        for number, position in state:
            segments = self.patterns[number]
            while position < len(segments) and segments[position] == "**":
                closed.add((number, position))
                position += 1
            if position == len(segments):
                return EVERYTHING
            closed.add((number, position))
        return frozenset(closed)
