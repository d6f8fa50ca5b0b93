"""``--set SECTION.FIELD=VALUE``: a preset's configuration with some fields changed; and what the fields mean.

Imports configurations only, so that a parser of flags may import it.
"""

import dataclasses
import difflib
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pipelines.options.declarations import field_docs
from vqgan.config_json import from_dict, to_dict
from vqgan.errors import UserError
from vqgan.image_sizes import ImageSize, describe_size

T = TypeVar("T")
DTYPES = ("float32", "bfloat16")
"""Types that models may compute in."""
COLUMNS_OUT = ("latents",)
"""Columns of token shards that are there where they are asked for."""


def check_at_least_one(config: Any, names: Sequence[str]) -> None:
    """Checks numbers of a configuration; None, where a field may be that, is no number.

    Raises:
      UserError: one is below 1; names its flag.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: it must be at least 1")


def apply_settings(presets: Mapping[str, T], preset: str, settings: Sequence[str]) -> T:
    """Returns a preset with every ``section.field=value`` applied; values are JSON, or else plain text.

    Raises:
      UserError: unknown preset, section or field, or a wrong value.
    """
    if preset not in presets:
        raise UserError(f"--preset {preset}: known are {', '.join(sorted(presets))}")
    chosen = presets[preset]
    data = to_dict(chosen)
    for setting in settings:
        section, field, text = split_setting(setting)
        if section not in data:
            raise UserError(f"--set {setting}: there is no section {section!r}; known: {', '.join(data)}")
        *parents, name = field.split(".")
        place = data[section]
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UserError(f"--set {setting}: write SECTION.FIELD=VALUE, such as train.steps=1000")
        place[name] = _value(text)
    return from_dict(type(chosen), data, where="--set")


def split_setting(setting: str) -> tuple[str, str, str]:
    """Splits a setting into section, field and value.

    Raises:
      UserError: it is written otherwise.
    """
    name, equals, text = setting.partition("=")
    section, dot, field = name.partition(".")
    if not equals or not dot:
        raise UserError(f"--set {setting}: write SECTION.FIELD=VALUE, such as train.steps=1000")
    return section, field, text


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


# What may be set


def describe_presets(presets: Mapping[str, Any]) -> str:
    """Returns a line for each preset: steps, batch, and the size of what is trained."""
    rows = [f"  {name:<{max(map(len, presets))}}  {_preset_line(config)}" for name, config in presets.items()]
    return "\n".join(["presets:", *rows])


def _preset_line(config: Any) -> str:
    train, model = config.train, config.model
    if hasattr(model, "downsampling"):
        size = f"{model.downsampling} pixels a token, {model.codebook_size:,} codes"
        size += f", crops of {describe_size(config.data.crop_size)}"
    else:
        size = f"{model.kind}, {model.layers} layers of width {model.width}"
    return f"{size}; {train.steps:,} steps of {train.batch_size}"


def explain(config: Any, section: str = "", fitted: Sequence[str] = ()) -> str:
    """Returns every field of a configuration with its type, its value and what it means.

    Args:
      config: a preset's, of sections that are dataclasses.
      section: one of them; all by default.
      fitted: fields of ``model`` that follow from the data, which are left out.

    Raises:
      UserError: no such section.
    """
    sections = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if section and section not in sections:
        near = difflib.get_close_matches(section, sections, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sections)}"
        raise UserError(f"--explain {section}: there is no such section; {hint}")
    chosen = [section] if section else list(sections)
    return "\n".join(_explained(name, sections[name], fitted if name == "model" else ()) for name in chosen)


def _explained(section: str, config: Any, fitted: Sequence[str]) -> str:
    docs, hints = field_docs(type(config)), typing.get_type_hints(type(config))
    summary = inspect.cleandoc(type(config).__doc__ or "").partition("\n")[0]
    lines = [f"{section}: {summary}"]
    for field in dataclasses.fields(config):
        if field.name not in fitted:
            value = to_dict(config).get(field.name, getattr(config, field.name))
            value = value if isinstance(value, str) else json.dumps(value, default=to_dict)
            lines.append(f"  {section}.{field.name}={value}  ({_type_name(hints[field.name])})")
            lines.append(
                textwrap.fill(
                    docs.get(field.name, ""), 100, initial_indent=" " * 6, subsequent_indent=" " * 6
                )
            )
    return "\n".join([*lines, ""])


def _type_name(hint: Any) -> str:
    if set(typing.get_args(hint)) >= set(typing.get_args(ImageSize)):
        return "side or HxW" + (" or null" if type(None) in typing.get_args(hint) else "")
    if isinstance(hint, types.UnionType):
        return " or ".join(map(_type_name, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return f"list of {_type_name(typing.get_args(hint)[0])}"
    return {type(None): "null", str: "text"}.get(hint, getattr(hint, "__name__", str(hint)))
