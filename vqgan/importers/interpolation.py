"""References between the values of a YAML file, as OmegaConf writes them: ``n_embed: ${model.params.codes}``.

After OmegaConf's grammar: ``${a.b[0].c}`` from the root, ``${.a}`` and ``${..a}`` from where it stands,
references within references and within text. Resolvers (``${oc.env:HOME}``) depend on more than the file, so
they are left as they are: text of the type :class:`Unresolved`, which is refused where it is needed.
"""

import collections
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeAlias

from vqgan.importers.tensors import DamagedError

_MAX_DEPTH = 100  # of references to references, and of mappings in mappings
_MAX_HOPS = 20  # of references on the way to what one names
_MAX_TEXT = 10_000  # characters that references in a text may make of it
_INNERMOST = re.compile(r"(?<!\\)\$\{([^${}]*)\}")
_NAME = re.compile(r"(?P<dots>\.*)(?P<path>[^\s:]+)")
_STEP = re.compile(r"[^.\[\]]+")

Place: TypeAlias = tuple[Any, ...]
"""Keys and indexes that lead from the root to a value."""


class ResolvedMapping(dict[Any, Any]):
    """A mapping whose references are resolved.

    Attributes:
      referenced: keys that something in the file refers to, so that they need not mean anything themselves.
    """

    referenced: Collection[Any] = ()


class _NoTargetError(Exception):
    """A reference stands for no value; the message goes on from "which"."""


class Unresolved(str):
    """A text with a reference that stands for no value; ``reason`` says why, after "which"."""

    __slots__ = ("reason",)
    reason: str

    @classmethod
    def because(cls, text: str, reason: str) -> "Unresolved":
        """Marks a text."""
        made = cls(text)
        made.reason = reason
        return made


def resolve_references(data: Any, most: int) -> Any:
    """Puts what references stand for in their place.

    Args:
      data: a tree of mappings, lists and values.
      most: values that the result may have.

    Returns:
      The same tree without references, but for :class:`Unresolved` ones.

    Raises:
      DamagedError: it would have more than ``most`` values, or is nested without end.
    """
    return _Resolver(data, most).at(())


def find_unresolved(value: Any) -> Unresolved | None:
    """Finds the first unresolved reference in a tree."""
    return next((found for found in _values(value) if isinstance(found, Unresolved)), None)


def _values(value: Any) -> Iterator[Any]:
    if isinstance(value, (Mapping, list, tuple)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _values(inner)
    else:
        yield value


class _Resolver:
    """Resolves each place of a tree once; what is being resolved must not be needed for itself."""

    def __init__(self, data: Any, most: int):
        self._data = data
        self._most = most
        self._done: dict[Place, tuple[Any, int]] = {}
        self._open: set[Place] = set()
        self._referenced: dict[Place, set[Any]] = collections.defaultdict(set)  # fills up as others resolve

    def at(self, place: Place) -> Any:
        """Returns what stands at a place, without references."""
        return self._counted(place)[0]

    def _counted(self, place: Place) -> tuple[Any, int]:
        """Returns what stands at a place, and how many values that is."""
        if place not in self._done:
            if len(self._open) >= _MAX_DEPTH:
                raise DamagedError(f"its values are nested, or refer to each other, {_MAX_DEPTH} times")
            self._open.add(place)
            self._done[place] = self._made(place, self._raw(place))
            self._open.discard(place)
            if self._done[place][1] > self._most:
                raise DamagedError("its references stand for more values than any configuration has")
        return self._done[place]

    def _made(self, place: Place, value: Any) -> tuple[Any, int]:
        if isinstance(value, str):
            return self._text(place, value)
        if not isinstance(value, (Mapping, list)):
            return value, 1
        keys = list(value) if isinstance(value, Mapping) else list(range(len(value)))
        inner = [self._counted((*place, key)) for key in keys]
        made = [found for found, _ in inner]
        count = 1 + sum(number for _, number in inner)
        if not isinstance(value, Mapping):
            return made, count
        mapping = ResolvedMapping(zip(keys, made, strict=True))
        mapping.referenced = self._referenced[place]
        return mapping, count

    def _raw(self, place: Place) -> Any:
        value = self._data
        for step in place:
            value = value[step]
        return value

    def _text(self, place: Place, text: str) -> tuple[Any, int]:
        """Resolves the references of a text, the innermost first; one that is all of it may be any value."""
        left = text
        while match := _INNERMOST.search(left):
            try:
                target = self._target(place, match[1])
            except _NoTargetError as error:
                return Unresolved.because(text, str(error)), 1
            if match[0] == left:
                return self._counted(target)
            value = self.at(target)
            if isinstance(value, (Unresolved, Mapping, list)):
                return Unresolved.because(text, "needs a single value in it"), 1
            left = left[: match.start()] + str(value) + left[match.end() :]
            if len(left) > _MAX_TEXT:
                raise DamagedError(f"its references make a text of more than {_MAX_TEXT:,} characters")
        return left, 1

    def _target(self, place: Place, reference: str, hops: int = 0) -> Place:
        """Returns the place that a reference names.

        Raises:
          _NoTargetError: there is none.
        """
        if ":" in reference:
            raise _NoTargetError("depends on a resolver and not on this file alone")
        match = _NAME.fullmatch(reference.strip())
        if match is None or len(match["dots"]) > len(place):
            raise _NoTargetError("names nothing in this file")
        found: Place = place[: -len(match["dots"])] if match["dots"] else ()
        for step in _STEP.findall(match["path"]):
            found = self._step(found, step, hops)
        if found in self._open:
            raise _NoTargetError("refers to itself")
        self._referenced[found[:-1]].add(found[-1])
        return found

    def _step(self, place: Place, step: str, hops: int) -> Place:
        value = self._raw(place)
        if isinstance(value, str) and (whole := _INNERMOST.fullmatch(value)):
            if hops >= _MAX_HOPS:
                raise _NoTargetError("leads through too many others")
            return self._step(self._target(place, whole[1], hops + 1), step, hops + 1)
        if isinstance(value, Mapping):
            for key in value:
                if str(key) == step:
                    return (*place, key)
        if isinstance(value, list) and step.isdecimal() and len(step) < 9 and int(step) < len(value):
            return (*place, int(step))
        raise _NoTargetError("names nothing in this file")
