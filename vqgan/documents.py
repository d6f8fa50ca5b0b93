"""JSON documents of ours, read field by field.

A document that is damaged is the file's fault, and its reader says so in one line. An error of our own code
is not, and must show as what it is; so nothing here, and no reader, catches more than parsing itself.
"""

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vqgan.errors import UserError, first_line

Refuse = Callable[[str], UserError]
"""Makes the error of one document out of what is wrong with it."""

MOST = (1 << 63) - 1
_REQUIRED: Any = object()
_SHOWN = 40


class Fields:
    """Reads an object of a document; every method raises the document's own error.

    Where a ``default`` is given, it stands for a field that is missing.

    Attributes:
      data: the object as it is.
    """

    def __init__(self, data: Any, refuse: Refuse, where: str = ""):
        """Takes parsed JSON.

        Args:
          data: the object.
          refuse: makes the error to raise.
          where: dotted name of the object in the document; empty for the document itself.

        Raises:
          UserError: it is no object.
        """
        self._refuse = refuse
        self._where = where
        if not isinstance(data, Mapping):
            raise refuse(f"{repr(where) if where else 'it'} is {_shown(data)}, expected an object")
        self.data: Mapping[str, Any] = data

    def value(self, name: str, default: Any = _REQUIRED) -> Any:
        """Reads any JSON."""
        if name in self.data:
            return self.data[name]
        if default is _REQUIRED:
            raise self._refuse(f"no {self._called(name)}")
        return default

    def text(self, name: str, default: str = _REQUIRED) -> str:
        """Reads a string."""
        return self._typed(name, default, str, "text")

    def text_or_none(self, name: str) -> str | None:
        """Reads a string, or None where the field is null or missing."""
        return None if self.value(name, None) is None else self.text(name)

    def choice(self, name: str, known: Collection[str], default: str = _REQUIRED) -> str:
        """Reads a string that is one of some."""
        text = self.text(name, default)
        if text not in known:
            raise self._wrong(name, text, " or ".join(known))
        return text

    def inner_path(self, name: str) -> str:
        """Reads the path of a file below a folder, which leads nowhere else."""
        path = self.text(name)
        if not path.isprintable() or any(part in ("", ".", "..") for part in path.split("/")):
            raise self._wrong(name, path, "a path inside of the folder")
        return path

    def boolean(self, name: str, default: bool = _REQUIRED) -> bool:
        """Reads true or false."""
        return self._typed(name, default, bool, "true or false")

    def integer(self, name: str, default: int = _REQUIRED, *, least: int = 0, most: int = MOST) -> int:
        """Reads a whole number in ``[least, most]``."""
        return self._integer(name, self.value(name, default), least, most)

    def number(self, name: str, default: float = _REQUIRED) -> float:
        """Reads a number of either kind."""
        value = self.value(name, default)
        if type(value) not in (int, float) or not -MOST <= value <= MOST:
            raise self._wrong(name, value, "a number")
        return float(value)

    def integers(
        self, name: str, count: int | None = None, *, least: int = 0, most: int = MOST
    ) -> tuple[int, ...]:
        """Reads a list of whole numbers, of a given length unless that is None."""
        values = self._list(name, _REQUIRED)
        if count is not None and len(values) != count:
            raise self._wrong(name, values, f"{count} whole numbers")
        return tuple(self._integer(name, value, least, most) for value in values)

    def texts(self, name: str, default: Collection[str] = _REQUIRED) -> tuple[str, ...]:
        """Reads a list of strings."""
        values = self._list(name, default)
        for value in values:
            if not isinstance(value, str):
                raise self._wrong(name, value, "a list of texts")
        return tuple(values)

    def mapping(self, name: str, default: Mapping[str, Any] = _REQUIRED) -> dict[str, Any]:
        """Reads an object of any fields."""
        return dict(self.fields(name, default).data)

    def fields(self, name: str, default: Mapping[str, Any] = _REQUIRED) -> "Fields":
        """Opens an object to be read field by field."""
        return Fields(self.value(name, default), self._refuse, self._path(name))

    def items(self, name: str) -> list["Fields"]:
        """Reads a list of objects."""
        values = self._list(name, _REQUIRED)
        return [Fields(value, self._refuse, f"{self._path(name)}.{n}") for n, value in enumerate(values)]

    def sizes(self, name: str, default: Mapping[str, int] = _REQUIRED) -> dict[str, int]:
        """Reads an object of whole numbers from 0."""
        inner = self.fields(name, default)
        return {key: inner.integer(key) for key in inner.data}

    def only(self, names: Collection[str]) -> None:
        """Refuses fields of other names."""
        for name in self.data:
            if name not in names:
                raise self._refuse(f"unknown {self._called(name)}")

    def _typed(self, name: str, default: Any, kind: type, expected: str) -> Any:
        value = self.value(name, default)
        if type(value) is not kind:
            raise self._wrong(name, value, expected)
        return value

    def _integer(self, name: str, value: Any, least: int, most: int) -> int:
        if type(value) is not int or not least <= value <= most:
            limits = f"from {least}" if most == MOST else f"from {least} to {most}"
            raise self._wrong(name, value, f"a whole number {limits}")
        return value

    def _list(self, name: str, default: Any) -> list[Any]:
        value = self.value(name, default)
        if not isinstance(value, (list, tuple)):
            raise self._wrong(name, value, "a list")
        return list(value)

    def _wrong(self, name: str, value: Any, expected: str) -> UserError:
        return self._refuse(f"{self._called(name)} is {_shown(value)}, expected {expected}")

    def _path(self, name: str) -> str:
        return f"{self._where}.{name}" if self._where else name

    def _called(self, name: str) -> str:
        return repr(self._path(name)[:200])


def parse_document(data: bytes, refuse: Refuse) -> Fields:
    """Reads the object that a JSON text holds.

    Raises:
      UserError: it is no JSON, or something else than an object.
    """
    try:
        text = data.decode()
        found = json.loads(text)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair could never be printed
    except (ValueError, RecursionError) as error:
        raise refuse(first_line(error)) from error
    return Fields(found, refuse)


def _shown(value: Any) -> str:
    """Returns a value in a message, cut short."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    shown = json.dumps(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
