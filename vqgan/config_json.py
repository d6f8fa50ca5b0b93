"""Configurations as JSON: frozen dataclasses to plain data and, checked field by field, back.

Every configuration of a codec, a prior or a run is written and read by these functions. Only the standard
library is imported here, so that a launcher can read and check a configuration without loading JAX.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from vqgan.errors import UserError
from vqgan.image_sizes import ImageSize, read_size

T = TypeVar("T")

RUN_FILE = "run.yaml"
"""Where a run leaves the settings that it was given, for ``--config``."""
LARGEST = 1 << 53  # of a whole number in a configuration: beyond it JSON's readers disagree
_SHOWN = 80


def to_dict(config: Any) -> dict[str, Any]:
    """Turns a configuration into JSON-ready data (tuples become lists).

    A field whose metadata name a value to be ``left_out`` is left out where it has that value: what older
    versions wrote, and hashed, stays as it was.
    """
    values = {field: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {
        field.name: _plain(value)
        for field, value in values.items()
        if "left_out" not in field.metadata or field.metadata["left_out"] != value
    }


def from_dict(cls: type[T], data: Mapping[str, Any], where: str = "configuration") -> T:
    """Builds a configuration of type ``cls``, nested ones included, from JSON data.

    Raises:
      UserError: an unknown field (with the nearest known name), or a value of the wrong type.
    """
    return cls(**typed_fields(cls, data, where))


def typed_fields(cls: type[Any], data: Mapping[str, Any], where: str = "configuration") -> dict[str, Any]:
    """Checks some fields of a configuration of type ``cls`` and gives each its field's type.

    Raises:
      UserError: an unknown field (with the nearest known name), or a value of the wrong type.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"{where}: expected an object, got {_shown(data)}")
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}
    for name in data:
        if name not in known:
            near = difflib.get_close_matches(str(name)[:_SHOWN], sorted(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
            raise UserError(f"{where}: unknown field {_shown(name)}{hint}")
    return {name: _typed(hints[name], value, f"{where}.{name}") for name, value in data.items()}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Gives ``value`` its field's type: lists to tuples, integers to floats, mappings to dataclasses."""
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where)  # type: ignore[arg-type]
    args = typing.get_args(hint)
    if set(args) >= set(typing.get_args(ImageSize)):
        return None if value is None and type(None) in args else read_size(where, value)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: expected a list, got {_shown(value)}")
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise UserError(f"{where}: expected {len(args)} values, got {len(value)}")
        return tuple(_typed(args[0], item, where) for item in value)
    if type(None) in args:
        return None if value is None else _typed(next(a for a in args if a is not type(None)), value, where)
    if type(value) is int and not -LARGEST <= value <= LARGEST:
        raise UserError(f"{where}: {str(value)[:20]}… is too large a number")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where}: expected {hint.__name__}, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """Returns a value in a message, cut short."""
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
