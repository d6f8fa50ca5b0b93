"""A command's settings, declared once: its flags, the keywords of its function, the keys of ``--config``.

A frozen dataclass after :class:`Options` declares them. A field's type says how its text is read; its line
under ``Attributes:`` and its default are what ``--help`` shows. Imports the standard library alone.
"""

import dataclasses
import difflib
import functools
import inspect
import numbers
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

from vqgan.config_json import RUN_FILE
from vqgan.errors import UserError
from vqgan.image_sizes import ImageSize, read_size

P = ParamSpec("P")
O = TypeVar("O", bound="Options")  # noqa: E741
R = TypeVar("R")
PathLike = str | os.PathLike[str]


# What is declared


@dataclasses.dataclass(frozen=True)
class Flag:
    """How a field of :class:`Options` looks beside its type and default.

    Attributes:
      name: of the flag; by default the field's, with dashes.
      former: names that are still taken, without a word in the help.
      metavar: stands for the value in the help.
      choices: values that there are.
      shown: the default in words, where its value says little.
      separator: of the items of a tuple in one text; by default the flag is given once for each.
      many: the flag may be given several times; so may that of a tuple without a separator.
      read: turns what was given, as text or as a value, into the field's value.
      positional: the value stands for itself on the command line, without the name.
      on_command_line: whether there is such a flag at all.
      recorded: whether the file that a run leaves for ``--config`` has it.
    """

    name: str = ""
    former: tuple[str, ...] = ()
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    shown: str | None = None
    separator: str | None = None
    many: bool = False
    read: Callable[[Any], Any] | None = None
    positional: bool = False
    on_command_line: bool = True
    recorded: bool = True


def flag(**settings: Any) -> dict[str, Flag]:
    """Returns the metadata of a field; ``settings`` are those of :class:`Flag`."""
    return {"flag": Flag(**settings)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of a command; values are given their fields' types, whoever gives them.

    Raises:
      UserError: a value of another type, or none of the choices.
    """

    title: ClassVar[str] = ""
    """Of the group in the help that the fields of this class are in."""
    leaves_file: ClassVar[bool] = True
    """Whether a run leaves its settings for ``--config`` in its folder."""

    def __post_init__(self) -> None:
        for field, hint in _typed_fields(type(self)):
            value = getattr(self, field.name)
            if value is not field.default:
                object.__setattr__(self, field.name, _typed(field, hint, value))

    def record(self) -> dict[str, Any]:
        """Returns all settings as JSON data, but for the place of the output and what is said meanwhile."""
        fields = [field for field in ordered_fields(type(self)) if flag_of(field).recorded]
        return {field.name: _plain(getattr(self, field.name)) for field in fields}

    @classmethod
    def merge(cls, base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the settings of a file with those of the command line, which win."""
        return {**base, **given}


def flag_of(field: dataclasses.Field[Any]) -> Flag:
    """Returns how a field looks on the command line."""
    found: Flag = field.metadata.get("flag", Flag())
    return found


def ordered_fields(cls: type[Any]) -> list[dataclasses.Field[Any]]:
    """Returns the fields of a class, those of its own before those of its bases."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    names = dict.fromkeys(name for base in cls.__mro__ for name in inspect.get_annotations(base))
    return [fields[name] for name in names if name in fields]


def group_title(cls: type[Options], field: dataclasses.Field[Any]) -> str:
    """Returns the title of the group of a field: that of the class which declares it."""
    owner = next(base for base in cls.__mro__ if field.name in inspect.get_annotations(base))
    return str(getattr(owner, "title", ""))


def flag_name(field: dataclasses.Field[Any]) -> str:
    """Returns the flag of a field, with its dashes; of a positional one what stands for it in the help."""
    if flag_of(field).positional:
        return flag_of(field).metavar or field.name
    return f"--{flag_of(field).name or field.name.replace('_', '-')}"


def field_docs(cls: type[Any]) -> dict[str, str]:
    """Returns what the docstrings of a dataclass and its bases say of each field, as plain text."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, attributes = inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")
        listed = attributes.split("\n\n")[0]
        for name, text in re.findall(r"^  (\w+): (.*(?:\n {3,}.*)*)", listed, re.MULTILINE):
            found[name] = re.sub(r"(?::\w+)?:`~?([^`]+)`|``", r"\1", " ".join(text.split()))
    return found


def _typed_fields(cls: type[Any]) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(cls)
    return [(field, hints[field.name]) for field in dataclasses.fields(cls)]


# Values


def _typed(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """Gives a value its field's type."""
    reader = flag_of(field).read
    if reader is not None:
        return reader(value)
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in parts:
        return None
    kind = next(part for part in parts if part is not type(None))
    if isinstance(value, os.PathLike) and len(parts) > 1:
        return os.fspath(value)
    if typing.get_origin(kind) is tuple:
        return _items(field, value)
    if kind is float and isinstance(value, str):  # YAML takes 1e-4 for a text
        value = _number(value)
    if kind is bool or isinstance(value, bool):
        wanted: Any = bool if kind is bool else ()
    else:
        wanted = {int: numbers.Integral, float: numbers.Real}.get(kind, kind)
    if not isinstance(value, wanted):
        raise UserError(f"{flag_name(field)} {value!r}: give {_kind_name(kind)}")
    choices = flag_of(field).choices
    if choices is not None and value not in choices:
        raise UserError(f"{flag_name(field)} {value}: known are {', '.join(choices)}")
    return kind(value)


def _items(field: dataclasses.Field[Any], value: Any) -> tuple[str, ...]:
    separator = flag_of(field).separator
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        value = text.split(separator) if separator else [text]
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(item, (str, os.PathLike, int)) for item in value
    ):
        raise UserError(f"{flag_name(field)} {value!r}: give a text, or a list of them")
    items = (str(item).strip() for item in value)
    return tuple(item for item in items if item or not separator)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _kind_name(kind: type[Any]) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def read_paths(name: str, value: Any) -> tuple[str, ...]:
    """Reads one path or name, or several.

    Raises:
      UserError: it is anything else.
    """
    items = [value] if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(items, (list, tuple)) or not all(
        isinstance(each, (str, os.PathLike)) for each in items
    ):
        raise UserError(f"{name} {value!r}: give a path or name, or a list of them")
    return tuple(map(os.fspath, items))


def split_numbers(text: str, separator: str, count: int) -> tuple[int, ...] | None:
    """Returns the whole numbers of a text such as ``32x32``; None if it is anything else."""
    parts = [part.strip() for part in text.split(separator)]
    return tuple(map(int, parts)) if len(parts) == count and all(map(str.isdecimal, parts)) else None


def read_numbers(name: str, separator: str, count: int) -> Callable[[Any], Any]:
    """Makes a reader of so many whole numbers, from a text or a list; None stays None.

    Raises:
      UserError: it is anything else, when it is called.
    """

    def read(value: Any) -> Any:
        if value is None:
            return None
        text = value if isinstance(value, str) else separator.join(map(str, value))
        found = split_numbers(text.lower(), separator, count)
        if found is None:
            raise UserError(f"{name} {text}: give {count} whole numbers with {separator!r} between them")
        return found

    return read


def read_image_size(value: Any) -> ImageSize | None:
    """Reads the side of a square in pixels, or height and width such as ``256x384``; None stays None.

    Raises:
      UserError: it is anything else.
    """
    return None if value is None else read_size("--image-size", value)


# Functions


def takes(options: Callable[P, O]) -> Callable[[Callable[[O], R]], Callable[P, R]]:
    """Makes a function of some options one of keywords: the fields, typed, with their defaults.

    Args:
      options: a class after :class:`Options`.

    Raises:
      TypeError: an unknown keyword (the nearest is named) or a missing one, when the function is called.
    """

    def decorate(run: Callable[[O], R]) -> Callable[P, R]:
        @functools.wraps(run)
        def call(*args: P.args, **keywords: P.kwargs) -> R:
            _check_keywords(run.__name__, typing.cast(type[Any], options), keywords)
            return run(options(*args, **keywords))

        signature = inspect.signature(options)
        returned = inspect.signature(run).return_annotation
        call.__signature__ = signature.replace(return_annotation=returned)  # type: ignore[attr-defined]
        return call

    return decorate


def _check_keywords(function: str, cls: type[Any], given: Mapping[str, Any]) -> None:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in given:
        if name not in fields:
            raise TypeError(
                f"{function}() got an unexpected keyword argument {name!r}{_nearest(name, fields)}"
            )
    missing = [name for name, field in fields.items() if name not in given and is_required(field)]
    if missing:
        raise TypeError(f"{function}() is missing the keyword arguments: {', '.join(missing)}")


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Tells whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"


def check_names(cls: type[Options], data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the settings of a file by the names of their fields, which may be written with dashes.

    Raises:
      UserError: a name that is none, with the nearest one.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    known = {flag_of(field).name.replace("-", "_") or name: name for name, field in fields.items()}
    found = {}
    for key, value in data.items():
        name = str(key).replace("-", "_")
        name = name if name in fields else known.get(name, name)
        if name not in fields:
            raise UserError(f"{where}: unknown setting {key!r}{_nearest(name, fields)}")
        found[name] = value
    return found


# Files


def read_settings(cls: type[Options], path: PathLike) -> dict[str, Any]:
    """Reads a file of settings, which a run has left or somebody has written.

    Args:
      cls: what the settings are of.
      path: YAML file; or a run's folder, which has one if the command leaves it there.

    Returns:
      Settings by the names of fields, as keywords of the command's function.

    Raises:
      UserError: there is none, it is no YAML mapping, or a setting is unknown.
    """
    from transforms.sharded.plan import PLAN_FOLDER

    file = Path(path)
    if file.is_dir() and not cls.leaves_file:
        raise UserError(f"--config {path}: this is a folder; give a YAML file")
    if file.is_dir():
        found = [place for place in (file / RUN_FILE, file / PLAN_FOLDER / RUN_FILE) if place.is_file()]
        if not found:
            raise UserError(f"--config {path}: this folder has no {RUN_FILE}; give a file, or a run's folder")
        file = found[0]
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"--config {file}: cannot be read ({error.strerror})") from error
    return parse_settings(cls, data, f"--config {file}")


def parse_settings(cls: type[Options], text: bytes, where: str) -> dict[str, Any]:
    """Returns the settings in a YAML file; ``where`` is the file, for messages. Raises UserError."""
    import yaml

    try:
        loader = yaml.SafeLoader(text.decode("utf-8-sig"))
        document = loader.get_single_node()
        names = [key.value for key, _ in document.value] if isinstance(document, yaml.MappingNode) else []
        data = None if document is None else loader.construct_document(document)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: this is no YAML; write NAME: VALUE lines") from error
    if not isinstance(data, Mapping):
        raise UserError(f"{where}: expected NAME: VALUE lines, got {str(data)[:50]!r}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{where}: {', '.join(twice)} stands there more than once; keep one line of each")
    return check_names(cls, data, where)


def render_settings(command: str, record: Mapping[str, Any]) -> bytes:
    """Returns settings as the file that ``--config`` takes; the same ones give the same bytes."""
    import yaml

    text = yaml.safe_dump(dict(record), sort_keys=False, allow_unicode=True, width=100)
    return f"# For vqgan {command} --config; flags win over it.\n{text}".encode()
