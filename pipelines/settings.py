"""``--set SECTION.FIELD=VALUE``: a preset's configuration with some fields changed.

Imports configurations only, so that a parser of flags may import it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from vqgan.config import from_dict, to_dict
from vqgan.errors import UserError

T = TypeVar("T")
DTYPES = ("float32", "bfloat16")
"""Types that models may compute in."""


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
        data[section][field] = _value(text)
    return from_dict(type(chosen), data, where="--set")


def split_setting(setting: str) -> tuple[str, str, str]:
    """Splits a setting into section, field and value.

    Raises:
      UserError: it is written otherwise.
    """
    name, equals, text = setting.partition("=")
    section, dot, field = name.partition(".")
    if not equals or not dot or "." in field:
        raise UserError(f"--set {setting}: write SECTION.FIELD=VALUE, such as train.steps=1000")
    return section, field, text


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
