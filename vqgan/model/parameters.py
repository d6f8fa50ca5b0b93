"""Names and shapes of a model's parameters, computed from its configuration alone.

An importer needs them before, and without, JAX: a launcher that only wants a foreign checkpoint's
fingerprint must not load it. A test holds this list against the modules themselves.
"""

import math
from collections.abc import Iterator
from typing import TypeAlias

from vqgan.config import MOST_PARAMETERS, ModelConfig
from vqgan.errors import UserError
from vqgan.token_layouts import ViTConfig

Shape: TypeAlias = tuple[int, ...]
Named: TypeAlias = Iterator[tuple[str, Shape]]

MOST_CODES = 1 << 26  # each is counted, in 8 bytes


def codec_parameter_shapes(config: ModelConfig) -> dict[str, dict[str, Shape]]:
    """Lists for each part of a codec (encoder, quantizer, decoder) its parameters: dotted name to shape."""
    return {
        "encoder": dict(_encoder_part(config)),
        "quantizer": dict(_quantizer_part(config)),
        "decoder": dict(_decoder_part(config)),
    }


def codec_parameter_count(config: ModelConfig) -> int:
    """Counts the parameters of all three parts together."""
    return sum(
        math.prod(shape) for part in codec_parameter_shapes(config).values() for shape in part.values()
    )


def check_codec_size(config: ModelConfig, where: str) -> None:
    """Refuses a codec that is larger than any, before memory or time is spent on it.

    Args:
      config: architecture, perhaps a stranger's.
      where: what says so, for the error.

    Raises:
      UserError: it has more than :data:`vqgan.config.MOST_PARAMETERS` or :data:`MOST_CODES`.
    """
    parameters = codec_parameter_count(config)
    if parameters > MOST_PARAMETERS:
        raise UserError(
            f"{where}: the model would have {parameters:,} parameters, at most {MOST_PARAMETERS:,}; "
            "correct ch, ch_mult, z_channels, embed_dim, codebook_size or the numbers of blocks"
        )
    if config.codebook_size > MOST_CODES:
        raise UserError(f"{where}: model.codebook_size is {config.codebook_size:,}, at most {MOST_CODES:,}")


def _conv(name: str, inputs: int, outputs: int, size: int, bias: bool = True) -> Named:
    yield f"{name}.kernel", (size, size, inputs, outputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _linear(name: str, inputs: int, outputs: int) -> Named:
    yield f"{name}.kernel", (inputs, outputs)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, channels: int, config: ModelConfig) -> Named:
    yield f"{name}.scale", (channels,)
    yield f"{name}.bias", (channels,)
    if config.spatial_norm and name.startswith("decoder."):
        for layer in ("gain", "shift"):
            yield from _conv(f"{name}.{layer}", config.embed_dim, channels, 1)


def _block(name: str, inputs: int, outputs: int, config: ModelConfig) -> Named:
    yield from _norm(f"{name}.norm1", inputs, config)
    yield from _conv(f"{name}.conv1", inputs, outputs, 3, config.bias)
    yield from _norm(f"{name}.norm2", outputs, config)
    yield from _conv(f"{name}.conv2", outputs, outputs, 3, config.bias)
    if inputs != outputs:
        width = outputs if config.shortcut_from_branch else inputs
        yield from _conv(f"{name}.shortcut", width, outputs, 1, config.bias)


def _attention(name: str, channels: int, config: ModelConfig) -> Named:
    if config.attention == "linear":
        yield from _conv(f"{name}.qkv", channels, 3 * channels, 1, bias=False)
    else:
        yield from _norm(f"{name}.norm", channels, config)
        for layer in ("query", "key", "value"):
            yield from _conv(f"{name}.{layer}", channels, channels, 1)
    yield from _conv(f"{name}.out", channels, channels, 1)


def _middle(name: str, channels: int, config: ModelConfig) -> Named:
    names = ["block1", "block2", *(f"blocks.{index}" for index in range(config.mid_blocks - 2))]
    for block in names[: config.mid_blocks]:
        yield from _block(f"{name}.{block}", channels, channels, config)
    if config.mid_attention:
        yield from _attention(f"{name}.attention", channels, config)


def encoder_attention(config: ModelConfig) -> set[int]:
    """Finds the encoder's levels with attention, 0 the highest resolution."""
    sides = [
        config.resolution // config.haar_patch >> min(level, config.halved_levels)
        for level in range(len(config.ch_mult))
    ]
    return {level for level, side in enumerate(sides) if side in config.attn_resolutions}


def decoder_attention(config: ModelConfig) -> set[int]:
    """Finds the decoder's levels with attention, 0 the highest resolution."""
    if config.decoder_attn_levels is not None:
        return set(config.decoder_attn_levels)
    # Its level n runs at the side of the encoder's where each halves.
    first = len(config.ch_mult) - 1 - config.halved_levels
    sides = [
        config.resolution // config.haar_patch >> max(0, level - first)
        for level in range(len(config.ch_mult))
    ]
    return {level for level, side in enumerate(sides) if side in config.attn_resolutions}


def _levels(name: str, levels: list[int], channels: int, config: ModelConfig) -> Named:
    """Yields levels in order of execution, given by their numbers."""
    down = name == "encoder"
    blocks = config.num_res_blocks if down else config.decoder_blocks
    learned = config.learned_downsampling if down else config.resamp_with_conv
    attended = encoder_attention(config) if down else decoder_attention(config)
    first = 0 if down else len(levels) - config.halved_levels  # of the levels that resample
    pixels = 4 if config.depth_to_space and not down else 1
    for index, level in enumerate(levels):
        width = (config.ch if down else config.decoder_width) * config.ch_mult[level]
        if config.adaptive_norm and not down:
            for layer in ("gamma", "beta"):
                yield from _linear(f"{name}.levels.{index}.adaptive.{layer}", config.z_channels, channels)
        for block in range(blocks):
            yield from _block(f"{name}.levels.{index}.blocks.{block}", channels, width, config)
            channels = width
            if level in attended:
                yield from _attention(f"{name}.levels.{index}.attentions.{block}", width, config)
        if learned and first <= level < first + config.halved_levels:
            yield from _conv(f"{name}.levels.{index}.resample.conv", width, pixels * width, 3)


def _layer_norm(name: str, width: int) -> Named:
    yield f"{name}.scale", (width,)
    yield f"{name}.bias", (width,)


def _transformer(name: str, width: int, layers: int, patches: int, tokens: int) -> Named:
    yield f"{name}.class_token", (width,)
    yield f"{name}.positions", (1 + patches, width)
    yield f"{name}.token_positions", (tokens, width)
    yield from _layer_norm(f"{name}.norm_in", width)
    yield from _layer_norm(f"{name}.norm_out", width)
    for block in (f"{name}.blocks.{index}" for index in range(layers)):
        for norm in ("norm1", "norm2"):
            yield from _layer_norm(f"{block}.{norm}", width)
        for layer, inputs, outputs in (("qkv", 1, 3), ("out", 1, 1), ("expand", 1, 4), ("contract", 4, 1)):
            yield from _linear(f"{block}.{layer}", inputs * width, outputs * width)


def _vit_encoder(config: ModelConfig, vit: ViTConfig) -> Named:
    width, patches = vit.encoder_width, (config.resolution // vit.patch) ** 2
    yield from _conv("encoder.patch_embed", 3, width, vit.patch)
    yield "encoder.latent_tokens", (vit.tokens, width)
    yield from _transformer("encoder.transformer", width, vit.encoder_layers, patches, vit.tokens)
    yield from _linear("encoder.project", width, config.embed_dim)


def _vit_decoder(config: ModelConfig, vit: ViTConfig) -> Named:
    width, patches = vit.decoder_width, (config.resolution // vit.decoder_patch) ** 2
    yield from _linear("vit.embed", config.embed_dim, width)
    yield "vit.mask_token", (width,)
    yield from _transformer("vit.transformer", width, vit.decoder_layers, patches, vit.tokens)
    if vit.pixel_codes:
        yield from _linear("mixture.hidden", width, 2 * width)
        yield from _linear("mixture.to_logits", 2 * width, vit.pixel_codes)
        yield "mixture.codebook", (vit.pixel_codes, config.z_channels)
    else:
        yield from _linear("pixels.to_pixels", width, 3 * vit.decoder_patch**2)
        yield from _conv("pixels.conv_out", 3, 3, 3)


def _encoder_part(config: ModelConfig) -> Named:
    if config.vit is not None:
        yield from _vit_encoder(config, config.vit)
        return
    width = config.ch * config.ch_mult[-1]
    outputs = config.z_channels * (2 if config.double_z else 1)
    yield from _conv(
        "encoder.conv_in", config.channels.count * config.haar_patch**2, config.stem, 3, config.bias
    )
    yield from _levels("encoder", list(range(len(config.ch_mult))), config.stem, config)
    yield from _middle("encoder.middle", width, config)
    yield from _norm("encoder.norm_out", width, config)
    yield from _conv("encoder.conv_out", width, outputs, config.encoder_out_kernel)
    if config.quant_conv:
        yield from _conv("quant_conv", outputs, config.embed_dim, config.quant_conv_kernel)


def _quantizer_part(config: ModelConfig) -> Named:
    if config.quantizer in ("fsq", "lfq"):
        return
    if config.quantizer == "gumbel":
        yield "projection.kernel", (config.embed_dim, config.codebook_size)
        yield "projection.bias", (config.codebook_size,)
    yield "codebook", (config.codebook_size, config.embed_dim)
    for index in range(config.scales.convolutions if config.scales else 0):
        yield from _conv(f"smoothing.{index}", config.embed_dim, config.embed_dim, 3)


def _decoder_part(config: ModelConfig) -> Named:
    if not config.has_decoder:
        return
    if config.vit is not None:
        yield from _vit_decoder(config, config.vit)
        if not config.vit.pixel_codes:
            return
    widest, narrowest = (config.decoder_width * config.ch_mult[level] for level in (-1, 0))
    if config.quant_conv:
        yield from _conv("post_quant_conv", config.embed_dim, config.z_channels, config.quant_conv_kernel)
    yield from _conv("decoder.conv_in", config.z_channels, widest, 3)
    yield from _middle("decoder.middle", widest, config)
    yield from _levels("decoder", list(reversed(range(len(config.ch_mult)))), widest, config)
    yield from _norm("decoder.norm_out", narrowest, config)
    yield from _conv("decoder.conv_out", narrowest, config.channels.count * config.haar_patch**2, 3)
