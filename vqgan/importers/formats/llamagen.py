"""LlamaGen: ``.pt`` files with the weights under ``model`` (and ``ema`` where training averaged them).

Attention stands at the lowest level only; codes are normalised wherever they are used; decoder levels
come in order of execution. The file says nothing of the architecture.
"""

import re

from vqgan.importers.formats.taming import layer_names
from vqgan.importers.layout import Fields, KeyLayout, NativeConfig, ParameterPlace, dotted, torch_leaf


def _names(place: ParameterPlace, levels: int, _blocks: int) -> tuple[str, ...]:
    if place.layer == "codebook":
        return ("quantize.embedding.weight",)
    return tuple(dotted(_tree(place), layer, torch_leaf(place)) for layer in layer_names(place))


def _tree(place: ParameterPlace) -> str:
    if place.part in ("middle_block", "middle_attention"):
        # The middle is one list: block, attention, block.
        index = 1 if place.part == "middle_attention" else 2 * place.index
        return f"{place.side}.mid.{index}"
    if not place.part:
        return place.side
    level = f"{place.side}.conv_blocks.{place.level}"
    if place.part == "resample":
        return f"{level}.downsample" if place.side == "encoder" else f"{level}.upsample"
    return f"{level}.res.{place.index}" if place.part == "block" else f"{level}.attn.{place.index}"


def _native(_: NativeConfig) -> Fields:
    return {}


LAYOUT = KeyLayout(
    name="llamagen",
    marker="encoder.conv_blocks.0.res.0.conv1.weight",
    from_torch=True,
    names=_names,
    native=_native,
    ignored=re.compile(r"quantize\.codebook_used"),
    fields={"quantizer": "cosine"},
)
