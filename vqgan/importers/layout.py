"""Key layouts: how a code base names, stores and configures the parameters of a VQGAN.

A format is one :class:`KeyLayout`; it puts its names together from the places of our parameters.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from vqgan.channels import MOST_CHANNELS, RGB
from vqgan.errors import UserError
from vqgan.importers.interpolation import ResolvedMapping
from vqgan.importers.tensors import Tensor, shown

Fields: TypeAlias = dict[str, Any]
"""Fields of a :class:`~vqgan.config.ModelConfig`, some of them."""

Probe: TypeAlias = Callable[[str], tuple[int, ...] | None]
"""Our name of a parameter to its shape, in our layout; None where the file has no such parameter."""

_NAME = re.compile(
    r"(?:(?P<side>encoder|decoder)\.)?"
    r"(?:levels\.(?P<level>\d+)\.(?:(?P<kind>blocks|attentions)\.(?P<index>\d+)|(?P<other>resample|adaptive))\.|"
    r"middle\.(?:block(?P<first>[12])|blocks\.(?P<more>\d+)|(?P<attention>attention))\.)?"
    r"(?P<layer>\w+?(?:\.(?:gain|shift|\d+))?)(?:\.(?P<leaf>kernel|bias|scale))?"
)


@dataclass(frozen=True)
class NativeConfig:
    """A checkpoint's own configuration file, as plain data."""

    path: Path
    data: Mapping[str, Any]


@dataclass(frozen=True)
class ParameterPlace:
    """Where a parameter of ours stands.

    Attributes:
      side: ``encoder``, ``decoder``, or empty for what is around the quantizer.
      part: ``block``, ``attention``, ``resample`` or ``adaptive`` of a level; ``middle_block`` or
        ``middle_attention``; empty for a layer outside of these.
      level: number of the level in order of execution.
      index: number within the level or the middle.
      layer: ``conv1``, ``norm2``, ``norm2.gain``, ``query``, ``codebook``, ``smoothing.0``, ...
      leaf: ``kernel``, ``bias``, ``scale``, or empty (the codebook).
    """

    side: str
    part: str
    level: int
    index: int
    layer: str
    leaf: str


def parse_parameter(name: str) -> ParameterPlace:
    """Finds the place of a parameter by its dotted name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no parameter of ours")
    found = match.groupdict()
    part, index = "", 0
    if found["kind"]:
        part, index = found["kind"].removesuffix("s"), int(found["index"])
    elif found["other"]:
        part = found["other"]
    elif found["attention"]:
        part = "middle_attention"
    elif found["first"] or found["more"]:
        part = "middle_block"
        index = int(found["first"]) - 1 if found["first"] else int(found["more"]) + 2
    level = int(found["level"] or 0)
    return ParameterPlace(found["side"] or "", part, level, index, found["layer"], found["leaf"] or "")


def torch_leaf(place: ParameterPlace) -> str:
    """Returns torch's name of a leaf: ``weight`` for kernels, scales and tables."""
    return "bias" if place.leaf == "bias" else "weight"


def width_fields(stem: int, widths: Sequence[int]) -> Fields:
    """Returns the fields that say a model's widths.

    Args:
      stem: channels of the encoder's first convolution.
      widths: channels of each level, from the highest resolution.
    """
    base = stem if all(width % stem == 0 for width in widths) else math.gcd(*widths)
    return {
        "ch": base,
        "ch_mult": tuple(width // base for width in widths),
        "stem_channels": None if stem == base else stem,
    }


def dotted(*parts: str) -> str:
    """Joins the parts that are not empty to a dotted name."""
    return ".".join(part for part in parts if part)


def declared_classes(native: NativeConfig | None) -> tuple[str, ...]:
    """Lists the classes that a configuration names for its model, by all the ways to name one.

    They are the ``target`` or ``class_path`` above a ``ddconfig``, or of ``model`` where there is none; else
    ``_class_name``, ``architectures`` and ``model_type``, which the configuration of a part, ``vq_config``,
    may have as well.
    """
    if native is None:
        return ()
    found = find_params(native.data)
    if found is not None:
        return found[:1] if found[0] else ()
    model = native.data.get("model")
    target = model.get("target", model.get("class_path")) if isinstance(model, Mapping) else None
    if isinstance(target, str) and target:
        return (target,)
    part = native.data.get("vq_config")
    architectures = native.data.get("architectures")
    names = [
        native.data.get("_class_name"),
        *(architectures if isinstance(architectures, (list, tuple)) else ()),
        native.data.get("model_type"),
        part.get("model_type") if isinstance(part, Mapping) else None,
    ]
    return tuple(str(name) for name in names if name)


def find_params(data: Any, target: str = "", depth: int = 0) -> tuple[str, Mapping[str, Any]] | None:
    """Finds the mapping that holds ``ddconfig``, and what ``target`` or ``class_path`` above it names.

    A first stage inside another model is found as well.
    """
    if not isinstance(data, Mapping) or depth > 8:
        return None
    if isinstance(data.get("ddconfig"), Mapping):
        return target, data
    own = data.get("target", data.get("class_path"))
    inside = ("params", "init_args")
    first = ("model", *inside, "first_stage_config")
    for name in (*first, *(name for name in data if name not in first)):
        below = own if name in inside and isinstance(own, str) else ""
        found = find_params(data.get(name), below, depth + 1)
        if found is not None:
            return found
    return None


def check_known(where: str, data: Mapping[str, Any], known: re.Pattern[str]) -> None:
    """Refuses a setting that is on and that the reader of a configuration does not know.

    One that only gives others their value, by references in the file, is none.

    Raises:
      UserError: there is one; it may change the tokens.
    """
    for name, value in data.items():
        named = isinstance(data, ResolvedMapping) and name in data.referenced
        if value and not named and not known.fullmatch(str(name)):
            raise UserError(
                f"{where}: {shown(name)} is set ({shown(value)}) and unknown to us, so tokens may differ; "
                "remove it if it acts in training only"
            )


def read_switch(where: str, settings: Mapping[str, Any], name: str) -> bool:
    """Reads a setting that is on where nothing is said.

    Raises:
      UserError: it is neither true nor false.
    """
    value = settings.get(name, True)
    if type(value) is not bool:
        raise UserError(f"{where}: {name} is {shown(value)}; expected true or false")
    return value


def check_same(where: str, name: str, given: Any, told: Any) -> None:
    """Refuses a configuration that says another architecture than the tensors do: it is another model's.

    Raises:
      UserError: what it gives is not what they tell.
    """
    if given != told:
        raise UserError(
            f"{where}: its configuration says that {name} is {given}, its tensors that it is {told}; "
            "check that the configuration belongs to this file"
        )


@dataclass(frozen=True)
class KeyLayout:
    """How one code base names and stores parameters.

    Attributes:
      name: of the format.
      marker: a parameter that every file of this format has. Formats may share one.
      from_torch: kernels are stored as torch does (output, input, height, width).
      names: foreign names that a parameter may have, given levels and encoder blocks per level.
      native: reads fields from a native configuration; it may refuse one, or return nothing.
      ignored: names of parameters that a codec does not need.
      fields: what the shapes cannot tell, and is the same for every file of the format.
      geometry: levels and encoder blocks per level, where counting names does not give them.
      fits: tells by all names whether a file with the marker can be of this format.
      unnamed: tells by all names whether it is, where no configuration names the model's class.
      classes: what a configuration may name; None where that says nothing of the tokenizer.
      assumed: what is taken for granted where no configuration names a class.
      even_blocks: the middles and the decoder's levels have as many blocks as the encoder's levels.
      encoder_only: a file may be without a decoder.
      averages_first: tells whether the original code runs with the averaged weights, given the names and
        the configuration; never if None.
      averaged: puts averaged weights in the place of the trained ones, given the tensors and the file (for
        errors); None where the file has none. Formats that keep them elsewhere have no such function.
      remap: keeps the codes of a list of used ones, given the tensors, the configuration and the file;
        returns tensors and what is to be said of the list, or None where there is none.
      prepare: rearranges the tensors so that each is one parameter, where a code base keeps several in one.
      rename: foreign names of a parameter by its whole name, in the place of ``names``, where the
        architecture is not one of convolutions; ``infer`` then tells all of it.
      infer: fields that tensors tell beyond the usual shapes, given those that are known and the file (for
        errors); they count before all others.
    """

    name: str
    marker: str
    from_torch: bool
    names: Callable[[ParameterPlace, int, int], tuple[str, ...]]
    native: Callable[[NativeConfig], Fields]
    ignored: re.Pattern[str] = re.compile(r"(?!)")
    fields: Mapping[str, Any] = field(default_factory=dict)
    geometry: Callable[[Mapping[str, Tensor]], tuple[int, int]] | None = None
    fits: Callable[[Collection[str]], bool] = lambda _: True
    unnamed: Callable[[Collection[str]], bool] = lambda _: True
    classes: re.Pattern[str] | None = None
    assumed: str = ""
    even_blocks: bool = False
    encoder_only: bool = False
    averages_first: Callable[[Collection[str], NativeConfig | None], bool] | None = None
    averaged: Callable[[Mapping[str, Tensor], str], Mapping[str, Tensor] | None] | None = None
    remap: (
        Callable[[Mapping[str, Tensor], NativeConfig | None, str], tuple[Mapping[str, Tensor], Fields] | None]
        | None
    ) = None
    prepare: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None
    rename: Callable[[str, int, int], tuple[str, ...]] | None = None
    infer: Callable[[Mapping[str, Tensor], Fields, str], Fields] | None = None


def check_image_channels(
    where: str, data: Mapping[str, Any], names: tuple[str, str] = ("in_channels", "out_ch")
) -> None:
    """Checks that a configuration is of a model from images to images of the same channels, RGB by default.

    Raises:
      UserError: it gives other channels than it takes, or has too many.
    """
    taken, given = (data.get(name, RGB.count) for name in names)
    if type(taken) is not int or taken != given or not 1 <= taken <= MOST_CHANNELS:
        raise UserError(
            f"{where}: {names[0]} is {shown(taken)} and {names[1]} {shown(given)}; only images of the same "
            f"1 to {MOST_CHANNELS} channels on both sides are supported"
        )
