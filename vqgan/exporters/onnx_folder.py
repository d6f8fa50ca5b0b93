"""A codec as a folder of ONNX models: ``encoder.onnx``, ``decoder.onnx`` and what is to be known of them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqgan.codec_checkpoint import PARTS, CodecInfo, load_weights
from vqgan.config import ModelConfig
from vqgan.exporters.onnx_codec import check_onnx, decoder_model, encoder_model
from vqgan.extras import require_extra
from vqgan.folders import new_folder

if TYPE_CHECKING:
    from onnx import ModelProto

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"


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
    """Returns what both models say of themselves: texts, as JSON where they are more than one word."""
    low, high = config.input_range
    said: dict[str, Any] = {
        "fingerprint": fingerprint,
        "input_range": [low, high],
        "preprocessing": f"uint8 / 255 * {high - low:g} + {low:g}",
        "postprocessing": f"round((images - {low:g}) / {high - low:g} * 255), as uint8",
        "channels": "RGB",
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
    config, (low, high) = info.config, info.config.input_range
    f = config.downsampling
    text = f"""# A VQGAN in ONNX

| | |
|---|---|
| fingerprint | `{info.fingerprint}` |
| images | float32 `[B, 3, H, W]`, RGB in [{low:g}, {high:g}] |
| {ENCODER} | `images` to `tokens`, int32 `[B, H/{f}, W/{f}]` |
| sides | multiples of {f} pixels; trained at {config.resolution} |
| tokens | 0 to {config.codebook_size - 1}, quantizer {config.quantizer} |
"""
    decoding = f"""| {DECODER} | `tokens` to `images`, clipped to [{low:g}, {high:g}] |
"""
    program = f"""
```python
import numpy as np
import onnxruntime
from PIL import Image

encoder = onnxruntime.InferenceSession("{ENCODER}")
image = Image.open("image.png").convert("RGB").resize(({config.resolution}, {config.resolution}))
pixels = np.asarray(image, np.float32).transpose(2, 0, 1)[None] * {(high - low) / 255!r} + {low!r}
(tokens,) = encoder.run(None, {{"images": pixels.astype(np.float32)}})
```
"""
    back = f"""
```python
decoder = onnxruntime.InferenceSession("{DECODER}")
(images,) = decoder.run(None, {{"tokens": tokens}})
pixels = np.rint((images.transpose(0, 2, 3, 1) - {low!r}) * {255 / (high - low)!r}).astype(np.uint8)
```
"""
    return text + decoding + program + back if config.has_decoder else text + program
