"""LWM's tokenizer: a pickle of a plain parameter dictionary under Flax's automatic names.

Decoder levels come in order of execution; the reconstruction is clipped to [-1, 1].
"""

from vqgan.importers.layout import Fields, KeyLayout, NativeConfig, ParameterPlace, dotted

_LAYERS = {
    "conv1": "Conv_0",
    "conv2": "Conv_1",
    "shortcut": "Conv_2",
    "norm1": "GroupNorm_0",
    "norm2": "GroupNorm_1",
    "norm": "GroupNorm_0",
    "query": "Conv_0",
    "key": "Conv_1",
    "value": "Conv_2",
    "out": "Conv_3",
    "conv_in": "Conv_0",
    "conv_out": "Conv_1",
    "norm_out": "GroupNorm_0",
    "conv": "Conv_0",
}
_FIELDS = {
    "resolution": "resolution",
    "hidden_channels": "ch",
    "channel_mult": "ch_mult",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
    "z_channels": "z_channels",
    "num_embeddings": "codebook_size",
    "quantized_embed_dim": "embed_dim",
    "resample_with_conv": "resamp_with_conv",
}


def _names(place: ParameterPlace, levels: int, _blocks: int) -> tuple[str, ...]:
    if place.layer == "codebook":
        return ("quantize.embeddings",)
    layer = _LAYERS.get(place.layer, place.layer)
    return (dotted(_tree(place), layer, place.leaf),)


def _tree(place: ParameterPlace) -> str:
    if place.part == "middle_block":
        return f"{place.side}.MidBlock_0.ResnetBlock_{place.index}"
    if place.part == "middle_attention":
        return f"{place.side}.MidBlock_0.AttnBlock_0"
    if not place.part:
        return place.side
    down = place.side == "encoder"
    level = f"{place.side}.{'Down' if down else 'Up'}samplingBlock_{place.level}"
    if place.part == "resample":
        return f"{level}.{'Down' if down else 'Up'}sample_0"
    return f"{level}.{'ResnetBlock' if place.part == 'block' else 'AttnBlock'}_{place.index}"


def _native(native: NativeConfig) -> Fields:
    fields = {ours: native.data[theirs] for theirs, ours in _FIELDS.items() if theirs in native.data}
    if "no_attn_mid_block" in native.data:
        fields["mid_attention"] = not native.data["no_attn_mid_block"]
    return fields


LAYOUT = KeyLayout(
    name="lwm",
    marker="encoder.DownsamplingBlock_0.ResnetBlock_0.Conv_0.kernel",
    from_torch=False,
    names=_names,
    native=_native,
    fields={"clip_output": True},
)
