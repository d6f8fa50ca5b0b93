"""torch and ONNX Runtime beside JAX and OpenVINO: encode and decode, and how far tokens agree.

The codecs are taming-transformers' f16 shape with random weights, but for its attention, which the torch
modules have not, and ``tiny``. ONNX Runtime runs what ``vqgan export`` writes, of the same weights; torch
modules of the same shapes with weights of its own, as published (float32, NCHW) and in ``channels_last``.
One thread each is what compares best, since torch's threads spin while they wait:

    export OMP_NUM_THREADS=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false
    taskset -c 0 python benchmarks/peers.py --ch 128 --batch-size 2
"""

import json
import os
from pathlib import Path

import numpy as np
from common import (
    Figure,
    figure,
    installed,
    random_codec,
    say,
    scratch,
    write_results,
)
from engines import codec_flags, compare_directions, open_ways, photographs

from pipelines.importing import export_codec
from vqgan import Codec
from vqgan.config import ModelConfig
from vqgan.engines.agreement import compare_pixels, compare_tokens

ONNX_RUNTIME = "onnx runtime float32"


class TorchModules:
    """Encoder, nearest code and decoder in torch, with uint8 images at its borders."""

    def __init__(self, config: ModelConfig, channels_last: bool) -> None:
        import torch
        from torch_training import decoder, encoder

        self._torch, self._format = torch, torch.channels_last if channels_last else torch.contiguous_format
        self._encoder, self._decoder = (
            make(config).eval().to(memory_format=self._format) for make in (encoder, decoder)
        )
        self._codes = torch.randn(config.codebook_size, config.embed_dim)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Makes tokens ``[B, h, w]`` of ``[B, H, W, 3]`` images."""
        with self._torch.inference_mode():
            pixels = self._torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
            latents = self._encoder(pixels.contiguous(memory_format=self._format)).permute(0, 2, 3, 1)
            # |z|² is the same for all codes.
            distances = self._codes.square().sum(1) - 2 * latents.flatten(0, 2) @ self._codes.T
            return np.asarray(distances.argmin(1).view(latents.shape[:3]))

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Makes ``[B, H, W, 3]`` images of tokens ``[B, h, w]``."""
        with self._torch.inference_mode():
            codes = self._codes[self._torch.from_numpy(tokens.astype(np.int64))].permute(0, 3, 1, 2)
            images = self._decoder(codes.contiguous(memory_format=self._format))
            levels = (images.clamp(-1, 1) + 1) * 127.5
            return np.asarray(levels.round().to(self._torch.uint8).permute(0, 2, 3, 1))


class ExportedModels:
    """A folder of ONNX models, with uint8 images at its borders as a codec has them."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = len(os.sched_getaffinity(0))  # it would take all cores
        # Threads that wait for work would count as processor time.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(folder / f"{name}.onnx", settings) for name in ("encoder", "decoder")
        )
        said = self._encoder.get_modelmeta().custom_metadata_map
        self._low, self._high = json.loads(said["vqgan_input_range"])

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Makes tokens ``[B, h, w]`` of ``[B, H, W, 3]`` images."""
        scaled = images.astype(np.float32) * np.float32((self._high - self._low) / 255) + np.float32(
            self._low
        )
        (tokens,) = self._encoder.run(None, {"images": scaled.transpose(0, 3, 1, 2)})
        return np.asarray(tokens)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Makes ``[B, H, W, 3]`` images of tokens ``[B, h, w]``."""
        (images,) = self._decoder.run(None, {"tokens": tokens})
        levels = (images.transpose(0, 2, 3, 1) - self._low) * (255 / (self._high - self._low))
        return np.asarray(np.rint(levels).astype(np.uint8))


def measure(label: str, name: str, folder: Path, images: np.ndarray, rounds: int) -> list[Figure]:
    """Prints and returns what was measured of one codec."""
    say(export_codec(name, str(folder), "onnx"))
    ways = {way: codec for way, codec in open_ways(name, images).items() if "bfloat16" not in way}
    reference, exported = ways["jax"], ExportedModels(folder)
    tokens = exported.encode(images)
    agreement, pixels = compare_tokens(reference, images, tokens), exported.decode(tokens)
    say(f"{label}, {ONNX_RUNTIME}: {agreement}; pixels: {compare_pixels(reference, tokens, pixels)}")
    runs: dict[str, Codec | ExportedModels | TorchModules] = {**ways, ONNX_RUNTIME: exported}
    if installed("torch", "torch"):
        forms = {"torch": False, "torch channels_last": True}
        runs |= {way: TorchModules(reference.config, last) for way, last in forms.items()}
    figures = compare_directions(label, runs, images, tokens, rounds)
    share = 100 * agreement.equal / agreement.tokens
    return [*figures, figure(f"{label}, {ONNX_RUNTIME}: tokens that are JAX's", [share], "%")]


def main() -> None:
    """Measures both codecs."""
    args = codec_flags("torch and ONNX Runtime beside the engines of a codec.").parse_args()
    if not installed("onnxruntime", "ONNX Runtime"):
        return
    images = photographs(args.batch_size, args.size)
    with scratch() as place:
        config = ModelConfig(ch=args.ch, codebook_size=1024, attn_resolutions=(), mid_attention=False)
        f16 = random_codec(Path(place) / "f16", config)
        label = f"f16, ch {args.ch}, {args.size} px"
        figures = measure(label, f16, Path(place) / "f16-onnx", images, args.rounds)
        figures += measure(f"tiny, {args.size} px", "tiny", Path(place) / "tiny-onnx", images, args.rounds)
    write_results(args.output, figures, batch_size=args.batch_size, rounds=args.rounds)


if __name__ == "__main__":
    main()
