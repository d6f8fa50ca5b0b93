"""The architecture, read off the shapes of the parameters."""

import math
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from vqgan.importers.base import Fields, Probe

DEFAULT_RESOLUTION = 256


def count_levels(probe: Probe) -> tuple[int, int]:
    """Levels and residual blocks per encoder level, by counting names."""
    levels = _count(lambda i: probe(f"encoder.levels.{i}.blocks.0.conv1.kernel"))
    blocks = _count(lambda j: probe(f"encoder.levels.0.blocks.{j}.conv1.kernel"))
    return levels, blocks


def infer_fields(probe: Probe, levels: int, blocks: int, known: Mapping[str, Any]) -> Fields:
    """Fields of the configuration that follow from shapes.

    Args:
      probe: shapes by our names.
      levels: number of levels.
      blocks: residual blocks per encoder level.
      known: fields that are given already: ``resolution`` and ``attn_resolutions`` matter here.

    Raises:
      LookupError: a parameter that every VQGAN has is missing; its name is the argument.
    """

    def width(name: str, axis: int) -> int:
        shape = probe(name)
        if shape is None or len(shape) <= axis or shape[axis] < 1:
            raise LookupError(name)
        return shape[axis]

    widths = [width(f"encoder.levels.{level}.blocks.0.conv1.kernel", 3) for level in range(levels)]
    stem = width("encoder.conv_in.kernel", 3)
    base = _base_width(stem, widths)
    z_channels = width("decoder.conv_in.kernel", 2)
    attended = [i for i in range(levels) if _has_attention(probe, f"encoder.levels.{i}.attentions.0")]
    linear = any(probe(f"{place}.qkv.kernel") for place in _attention_places(levels))
    fields: Fields = {
        "ch": base,
        "ch_mult": tuple(value // base for value in widths),
        "stem_channels": None if stem == base else stem,
        "num_res_blocks": blocks,
        "mid_attention": _has_attention(probe, "encoder.middle.attention"),
        "attention": "linear" if linear else "full",
        "z_channels": z_channels,
        "double_z": width("encoder.conv_out.kernel", 3) == 2 * z_channels,
        "embed_dim": width("codebook", 1),
        "codebook_size": width("codebook", 0),
        "quantizer": "gumbel" if probe("projection.kernel") else "nearest",
    }
    if levels > 1:
        fields["resamp_with_conv"] = probe("decoder.levels.0.resample.conv.kernel") is not None
    resolution = known.get("resolution") or _resolution(attended, levels, known.get("attn_resolutions"))
    fields["resolution"] = resolution
    fields["attn_resolutions"] = tuple(resolution >> level for level in attended)
    return fields


def _resolution(attended: list[int], levels: int, sides: tuple[int, ...] | None) -> int:
    """Side that the levels with attention and their given sides imply, or the usual one."""
    if sides and attended:
        return max(sides) << min(attended)
    return max(DEFAULT_RESOLUTION, 1 << (levels - 1))


def _base_width(stem: int, widths: list[int]) -> int:
    """The width that all are multiples of: the first convolution's, where it is that."""
    return stem if all(width % stem == 0 for width in widths) else math.gcd(*widths)


def _attention_places(levels: int) -> list[str]:
    return ["encoder.middle.attention", *(f"encoder.levels.{i}.attentions.0" for i in range(levels))]


def _has_attention(probe: Probe, name: str) -> bool:
    return probe(f"{name}.out.kernel") is not None


def _count(exists: Callable[[int], Any]) -> int:
    return next(i for i in count() if not exists(i))
