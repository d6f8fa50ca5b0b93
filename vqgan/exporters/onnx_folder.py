"""A codec as a folder of ONNX models: ``encoder.onnx``, ``decoder.onnx`` and what is to be known of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqgan.channels import ChannelsConfig, Range
from vqgan.codec_checkpoint import PARTS, CodecInfo, load_weights
from vqgan.config import ModelConfig
from vqgan.exporters.onnx_codec import check_onnx, decoder_model, encoder_model
from vqgan.extras import require_extra
from vqgan.folders import new_folder

if TYPE_CHECKING:
    from onnx import ModelProto

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
_PILLOW_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def write_onnx(folder: Path, info: CodecInfo) -> list[str]:
    """Writes a codec's models into a folder, which is there whole or not at all.

    Args:
      folder: where to; it must not exist yet, or be empty.
      info: of the codec. One without a decoder has an encoder's model alone.

    Returns:
      The names of the models.

    Raises:
      UserError: a variant that has no graph, or there is something in the folder already.
    """
    require_extra("export", "--to onnx")
    check_onnx(info.config)
    metadata = codec_metadata(info.config, info.fingerprint)
    with new_folder(folder) as new:
        weights = load_weights(info, PARTS if info.config.has_decoder else PARTS[:2])
        _write(new / ENCODER, encoder_model(info.config, weights, metadata))
        if info.config.has_decoder:
            _write(new / DECODER, decoder_model(info.config, weights, metadata))
        (new / "README.md").write_text(_readme(info))
        return sorted(path.name for path in new.glob("*.onnx"))


def _write(path: Path, model: "ModelProto") -> None:
    import onnx

    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def codec_metadata(config: ModelConfig, fingerprint: str) -> dict[str, str]:
    """Returns what both models say of themselves: texts, as JSON where they are more than one word.

    ``vqgan_input_range`` is a pair of numbers, or a pair for each channel where the codec has such ranges.
    """
    channels, (low, high) = config.channels, config.input_range
    forward, back = f"uint8 / 255 * {high - low:g} + {low:g}", f"(images - {low:g}) / {high - low:g} * 255"
    if channels.input_ranges:
        forward, back = "uint8 / 255 * (high - low) + low", "(images - low) / (high - low) * 255"
    said: dict[str, Any] = {
        "fingerprint": fingerprint,
        "input_range": channels.input_ranges or config.input_range,
        "preprocessing": forward,
        "postprocessing": f"round({back}), as uint8",
        "channels": channels.describe(),
        "channel_count": channels.count,
        **({"source_ranges": channels.ranges} if channels.ranges else {}),
        "layout": "NCHW",
        "downsampling": config.downsampling,
        "resolution": config.resolution,
        "codebook_size": config.codebook_size,
        "quantizer": config.quantizer,
    }
    return {
        f"vqgan_{name}": value if isinstance(value, str) else json.dumps(value)
        for name, value in said.items()
    }


def _readme(info: CodecInfo) -> str:
    """Says what a program must know, which the models' metadata say as well."""
    return _facts(info) + _program(info.config)


def _facts(info: CodecInfo) -> str:
    config, channels, f = info.config, info.config.channels, info.config.downsampling
    inputs = _ranges(channels.input_ranges or (config.input_range,))
    source = _ranges(channels.ranges)
    levels = f"""| levels | 0 to 255 stand for values of the source {source}; what lies beyond is clipped |
"""
    decoding = f"""| {DECODER} | `tokens` to `images`, clipped to that range |
"""
    return f"""# A VQGAN in ONNX

| | |
|---|---|
| fingerprint | `{info.fingerprint}` |
| images | float32 `[B, {channels.count}, H, W]`, {channels.describe()} in {inputs} |
{levels if channels.ranges else ""}| {ENCODER} | `images` to `tokens`, int32 `[B, H/{f}, W/{f}]` |
| sides | multiples of {f} pixels; trained at {config.resolution} |
| tokens | 0 to {config.codebook_size - 1}, quantizer {config.quantizer} |
{decoding if config.has_decoder else ""}"""


def _ranges(pairs: Sequence[Range]) -> str:
    texts = [f"[{low:g}, {high:g}]" for low, high in pairs]
    return texts[0] if len(set(texts)) == 1 else f"{', '.join(texts)} by channel"


def _program(config: ModelConfig) -> str:
    """Returns lines of Python from a file to tokens, and from there to levels."""
    pairs = [list(pair) for pair in config.channels.input_ranges or (config.input_range,)]
    pillow = "from PIL import Image\n" if _is_picture(config.channels) else ""
    forward = f"""
```python
import numpy as np
import onnxruntime
{pillow}
low, high = np.array({pairs}).T  # of {"each channel" if len(pairs) > 1 else "all channels"}
{_read_levels(config)}  # [H, W, {config.channels.count}]
pixels = levels * ((high - low) / 255) + low
encoder = onnxruntime.InferenceSession("{ENCODER}")
(tokens,) = encoder.run(None, {{"images": pixels.transpose(2, 0, 1)[None].astype(np.float32)}})
```
"""
    back = f"""
```python
decoder = onnxruntime.InferenceSession("{DECODER}")
(images,) = decoder.run(None, {{"tokens": tokens}})
levels = np.rint((images.transpose(0, 2, 3, 1) - low) * (255 / (high - low))).astype(np.uint8)
```
"""
    return forward + back if config.has_decoder else forward


def _is_picture(channels: ChannelsConfig) -> bool:
    """Tells whether Pillow's pictures have such channels; of others an array is shown."""
    return channels.count in _PILLOW_MODES and not channels.ranges


def _read_levels(config: ModelConfig) -> str:
    """Returns lines that read a file into levels."""
    channels, side = config.channels, config.resolution
    if _is_picture(channels):
        mode = _PILLOW_MODES[channels.count]
        return f"""image = Image.open("image.png").convert("{mode}").resize(({side}, {side}))
levels = np.asarray(image).reshape({side}, {side}, {channels.count})"""
    pairs = [list(pair) for pair in channels.ranges]
    ends = f"np.array({pairs}).T" if pairs else "0, np.iinfo(samples.dtype).max"
    return f"""samples = np.load("image.npy")
first, last = {ends}  # of the samples
levels = np.rint(np.clip((samples - first) / (last - first), 0, 1) * 255)"""
