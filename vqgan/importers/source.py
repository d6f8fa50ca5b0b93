"""How a foreign checkpoint is named: a path, and options behind a question mark.

``model.ckpt?input_range=0,1&weights=ema`` is one string, so that it travels to every worker as it is.
The options are the fields of :class:`~vqgan.importers.base.Options`.
"""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from vqgan.errors import UserError
from vqgan.hub import is_hub
from vqgan.importers.base import Options
from vqgan.importers.hub import fetch

_KNOWN = [field.name for field in dataclasses.fields(Options)]


def split_source(source: str) -> tuple[str, str]:
    """Path and options; a path that exists with a question mark in it is taken as it is."""
    if "?" not in source or Path(source).exists():
        return source, ""
    path, _, query = source.rpartition("?")
    return path, query


def parse_source(source: str) -> tuple[Path, Options]:
    """The local path and the options of a source; what lies on the Hub is fetched first.

    Raises:
      UserError: an unknown option or a value that cannot be read.
    """
    text, query = split_source(source)
    values: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        name = name.replace("-", "_")
        if name not in _KNOWN or not equals:
            near = difflib.get_close_matches(name, _KNOWN, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_KNOWN)}"
            raise UserError(f"{source}: unknown option {part!r}; {hint}")
        values[name] = _value(source, name, value)
    path = fetch(text) if is_hub(text) else Path(text)
    return path, Options(**values)


def with_options(source: str, options: dict[str, str | None]) -> str:
    """A source with further options behind it; None values are left out."""
    given = "&".join(f"{name}={value}" for name, value in options.items() if value is not None)
    if not given:
        return source
    return f"{source}{'&' if split_source(source)[1] else '?'}{given}"


def _value(source: str, name: str, text: str) -> Any:
    try:
        if name == "input_range":
            low, high = (float(part) for part in text.split(","))
            return low, high
        if name == "attn_resolutions":
            return tuple(int(part) for part in text.split(",") if part)
        if name == "resolution":
            return int(text)
    except ValueError:
        raise UserError(
            f"{source}: {name}={text} cannot be read; give numbers such as {_EXAMPLES[name]}"
        ) from None
    if name == "weights" and text not in ("raw", "ema"):
        raise UserError(f"{source}: weights={text}: give raw or ema")
    return text


_EXAMPLES = {"input_range": "0,1", "attn_resolutions": "16", "resolution": "256"}


def is_foreign_source(source: str) -> bool:
    """Whether a source can only be a foreign checkpoint: an address on the Hub, or a path with options."""
    path, query = split_source(source)
    return is_hub(source) or (bool(query) and Path(path).exists())
