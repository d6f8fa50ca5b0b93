"""Our parameter names taken apart, so that a format can put its own together."""

import re
from dataclasses import dataclass

_NAME = re.compile(
    r"(?:(?P<side>encoder|decoder)\.)?"
    r"(?:levels\.(?P<level>\d+)\.(?:(?P<kind>blocks|attentions)\.(?P<index>\d+)|(?P<resample>resample))\.|"
    r"middle\.(?:block(?P<first>[12])|blocks\.(?P<more>\d+)|(?P<attention>attention))\.)?"
    r"(?P<layer>\w+?)(?:\.(?P<leaf>kernel|bias|scale))?"
)


@dataclass(frozen=True)
class Place:
    """Where a parameter of ours stands.

    Attributes:
      side: ``encoder``, ``decoder``, or empty for what is around the quantizer.
      part: ``block``, ``attention`` or ``resample`` of a level; ``middle_block`` or
        ``middle_attention``; empty for a layer outside of these.
      level: number of the level in order of execution.
      index: number within the level or the middle.
      layer: ``conv1``, ``norm2``, ``query``, ``codebook``, ...
      leaf: ``kernel``, ``bias``, ``scale``, or empty (the codebook).
    """

    side: str
    part: str
    level: int
    index: int
    layer: str
    leaf: str


def parse(name: str) -> Place:
    """The place of a parameter by its dotted name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no parameter of ours")
    found = match.groupdict()
    part, index = "", 0
    if found["kind"]:
        part, index = found["kind"].removesuffix("s"), int(found["index"])
    elif found["resample"]:
        part = "resample"
    elif found["attention"]:
        part = "middle_attention"
    elif found["first"] or found["more"]:
        part = "middle_block"
        index = int(found["first"]) - 1 if found["first"] else int(found["more"]) + 2
    level = int(found["level"] or 0)
    return Place(found["side"] or "", part, level, index, found["layer"], found["leaf"] or "")


def torch_leaf(place: Place) -> str:
    """torch's name of a leaf: ``weight`` for kernels, scales and tables."""
    return "bias" if place.leaf == "bias" else "weight"


def join(*parts: str) -> str:
    """Dotted name of the parts that are not empty."""
    return ".".join(part for part in parts if part)
