"""vqgan-jax: ``flax_model.msgpack`` with a ``config.json`` in the manner of transformers.

Taming's tree in Flax names (``down_0``, ``block_0``). Older files store the parameters of group
normalisations as ``(1, 1, 1, C)``.
"""

import re
from collections.abc import Mapping
from typing import Any

from vqgan.errors import UserError
from vqgan.importers.formats.taming import layer_names, tree_name
from vqgan.importers.layout import (
    Fields,
    KeyLayout,
    NativeConfig,
    ParameterPlace,
    check_image_channels,
    dotted,
)
from vqgan.importers.tensors import shown

_FIELDS = {
    "resolution": "resolution",
    "ch": "ch",
    "ch_mult": "ch_mult",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
    "z_channels": "z_channels",
    "double_z": "double_z",
    "embed_dim": "embed_dim",
    "n_embed": "codebook_size",
    "resamp_with_conv": "resamp_with_conv",
    "input_range": "input_range",  # of our own export
}
# Settings that change what the network computes, and their values that are supported.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "act_fn": ("swish", "silu"),
    "use_gumbel": (False, None),
    "give_pre_end": (False, None),
}


def _names(place: ParameterPlace, levels: int, _blocks: int) -> tuple[str, ...]:
    if place.layer == "codebook":
        return ("quantize.embedding.embedding",)
    tree = re.sub(r"\.(\d+)", r"_\1", tree_name(place, levels))
    return tuple(dotted(tree, layer, place.leaf) for layer in layer_names(place))


def _native(native: NativeConfig) -> Fields:
    data = native.data
    check_image_channels(str(native.path), data)
    for name, known in _ONLY.items():
        if data.get(name, known[0]) not in known:
            raise UserError(f"{native.path}: {name} is {shown(data[name])}; only {known[0]!r} is supported")
    return {ours: data[theirs] for theirs, ours in _FIELDS.items() if theirs in data}


LAYOUT = KeyLayout(
    name="vqgan-jax",
    marker="encoder.down_0.block_0.conv1.kernel",
    from_torch=False,
    names=_names,
    native=_native,
    classes=re.compile("(Flax)?(VQGAN|VQModel|VQGanModel)", re.IGNORECASE),
)
