"""Codecs of 1, 4 and 6 channels from training to images: every command, on toy codecs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.pipelines.test_training_codec import TOY_SETTINGS
from transforms.images.npy import write_array
from vqgan.codec import Codec
from vqgan.codec_checkpoint import read_info
from vqgan.data.tokens import open_tokens

Vqgan = Callable[..., Any]
RANGES = [[0, 1000], [0, 2000], [-1, 1], [0, 255], [5, 6], [0, 1]]
# Few programs: the adversarial phase is that of six channels alone.
PLAIN = ("adversarial.weight=0", "codebook.autoencoder_steps=0", "train.steps=4")
CHANNELS = {
    1: ["model.channels.count=1", "data.colour=grey", *PLAIN],
    4: ["model.channels.count=4", "model.channels.input_ranges=[[0,1],[0,1],[-1,1],[-1,1]]", *PLAIN],
    6: ["model.channels.count=6", f"model.channels.ranges={json.dumps(RANGES)}"],
}


def levels(seed: int, channels: int, side: int = 24) -> np.ndarray:
    """Smooth images, uint8 ``[S, S, C]``."""
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(3 * x * (n + 1) + seed) * np.cos(2 * y + n) for n in range(channels)]
    return np.rint(np.stack(waves, axis=-1) * 127 + 128).clip(0, 255).astype(np.uint8)


def write_images(folder: Path, channels: int) -> None:
    """Twelve images of the channels: PNG where it holds them, else arrays in the ranges."""
    folder.mkdir()
    for seed in range(12):
        pixels = levels(seed, channels)
        if channels <= 4:
            Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(folder / f"{seed:02}.png")
        else:
            low, high = np.array(RANGES, np.float64).T
            values = (pixels * ((high - low) / 255) + low).astype(np.float32)
            (folder / f"{seed:02}.npy").write_bytes(write_array(values))


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_from_training_to_images(tmp_path: Path, vqgan: Vqgan, channels: int) -> None:
    images, run, tokens, out = (tmp_path / name for name in ("in", "run", "tokens", "out"))
    write_images(images, channels)
    settings = [part for setting in (*TOY_SETTINGS, *CHANNELS[channels]) for part in ("--set", setting)]
    assert vqgan("train", "--input", images, "--output", run, *settings, "--quiet").code == 0
    codec, info = run / "codec", read_info(run / "codec")
    assert info.config.channels.count == channels
    shared = ["--codec", codec, "--input", images, "--image-size", "16", "--quiet"]
    assert vqgan("tokenize", *shared, "--output", tokens).code == 0
    manifest = json.loads((tokens / "manifest.json").read_text())
    assert manifest["counts"]["images"] == 12
    assert manifest["identity"]["preprocessing"]["decode"]["channels"]["count"] == channels
    assert vqgan("verify", tokens, "--codec", codec, "--input", images).code == 0
    form = "png" if channels <= 4 else "npy"
    assert (
        vqgan(
            "decode", "--tokens", tokens, "--codec", codec, "--output", out, "--format", form, "--quiet"
        ).code
        == 0
    )
    assert vqgan("verify", out).code == 0
    # The very pixels, through the Python face.
    first = open_tokens(str(tokens), columns=["key"]).take([0])
    decoded = Codec.load(codec).decode(first.tokens.reshape(1, 8, 8))[0]
    file = out / "images" / f"{first.columns['key'][0]}.{form}"
    if channels > 4:
        low, high = np.array(RANGES, np.float64).T
        np.testing.assert_allclose(np.load(file), decoded * ((high - low) / 255) + low, atol=1e-3)
        assert np.load(file).shape == (16, 16, 6)
    else:
        shown = np.asarray(Image.open(file))
        np.testing.assert_array_equal(shown.reshape(decoded.shape), decoded)
    found = tmp_path / "found"
    assert vqgan("evaluate", *shared, "--metrics", "psnr,ssim", "--output", found).code == 0
    metrics = json.loads((found / "evaluation.json").read_text())["codecs"][0]["metrics"]
    assert metrics["psnr"]["images"] == 12
    assert metrics["psnr"]["value"] > 5
