"""Names and shapes of a model's parameters, computed from its configuration alone.

An importer needs them before, and without, JAX: a launcher that only wants a foreign checkpoint's
fingerprint must not load it. A test holds this list against the modules themselves.
"""

import math
from collections.abc import Iterator
from typing import TypeAlias

from vqgan.config import MOST_PARAMETERS, ModelConfig
from vqgan.errors import UserError

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


def _norm(name: str, channels: int) -> Named:
    yield f"{name}.scale", (channels,)
    yield f"{name}.bias", (channels,)


def _block(name: str, inputs: int, outputs: int, config: ModelConfig) -> Named:
    yield from _norm(f"{name}.norm1", inputs)
    yield from _conv(f"{name}.conv1", inputs, outputs, 3, config.bias)
    yield from _norm(f"{name}.norm2", outputs)
    yield from _conv(f"{name}.conv2", outputs, outputs, 3, config.bias)
    if inputs != outputs:
        width = outputs if config.shortcut_from_branch else inputs
        yield from _conv(f"{name}.shortcut", width, outputs, 1, config.bias)


def _attention(name: str, channels: int, config: ModelConfig) -> Named:
    if config.attention == "linear":
        yield from _conv(f"{name}.qkv", channels, 3 * channels, 1, bias=False)
    else:
        yield from _norm(f"{name}.norm", channels)
        for layer in ("query", "key", "value"):
            yield from _conv(f"{name}.{layer}", channels, channels, 1)
    yield from _conv(f"{name}.out", channels, channels, 1)


def _middle(name: str, channels: int, config: ModelConfig) -> Named:
    names = ["block1", "block2", *(f"blocks.{index}" for index in range(config.mid_blocks - 2))]
    for block in names[: config.mid_blocks]:
        yield from _block(f"{name}.{block}", channels, channels, config)
    if config.mid_attention:
        yield from _attention(f"{name}.attention", channels, config)


def _levels(name: str, widths: list[int], side: int, channels: int, config: ModelConfig, down: bool) -> Named:
    """Yields levels in order of execution; ``side`` is that of the first one."""
    blocks = config.num_res_blocks if down else config.decoder_blocks
    learned = config.learned_downsampling if down else config.resamp_with_conv
    pixels = 4 if config.depth_to_space and not down else 1
    for index, width in enumerate(widths):
        if config.adaptive_norm and not down:
            for layer in ("gamma", "beta"):
                yield from _linear(f"{name}.levels.{index}.adaptive.{layer}", config.z_channels, channels)
        for block in range(blocks):
            yield from _block(f"{name}.levels.{index}.blocks.{block}", channels, width, config)
            channels = width
            if side in config.attn_resolutions:
                yield from _attention(f"{name}.levels.{index}.attentions.{block}", width, config)
        if index < len(widths) - 1:
            if learned:
                yield from _conv(f"{name}.levels.{index}.resample.conv", width, pixels * width, 3)
            side = side // 2 if down else side * 2


def _encoder_part(config: ModelConfig) -> Named:
    widths = [config.ch * multiple for multiple in config.ch_mult]
    outputs = config.z_channels * (2 if config.double_z else 1)
    yield from _conv("encoder.conv_in", 3, config.stem, 3, config.bias)
    yield from _levels("encoder", widths, config.resolution, config.stem, config, down=True)
    yield from _middle("encoder.middle", widths[-1], config)
    yield from _norm("encoder.norm_out", widths[-1])
    yield from _conv("encoder.conv_out", widths[-1], outputs, config.encoder_out_kernel)
    if config.quant_conv:
        yield from _conv("quant_conv", outputs, config.embed_dim, 1)


def _quantizer_part(config: ModelConfig) -> Named:
    if config.quantizer in ("fsq", "lfq"):
        return
    if config.quantizer == "gumbel":
        yield "projection.kernel", (config.embed_dim, config.codebook_size)
        yield "projection.bias", (config.codebook_size,)
    yield "codebook", (config.codebook_size, config.embed_dim)


def _decoder_part(config: ModelConfig) -> Named:
    if not config.has_decoder:
        return
    widths = [config.ch * multiple for multiple in reversed(config.ch_mult)]
    side = config.resolution // config.downsampling
    if config.quant_conv:
        yield from _conv("post_quant_conv", config.embed_dim, config.z_channels, 1)
    yield from _conv("decoder.conv_in", config.z_channels, widths[0], 3)
    yield from _middle("decoder.middle", widths[0], config)
    yield from _levels("decoder", widths, side, widths[0], config, down=False)
    yield from _norm("decoder.norm_out", widths[-1])
    yield from _conv("decoder.conv_out", widths[-1], 3, 3)
