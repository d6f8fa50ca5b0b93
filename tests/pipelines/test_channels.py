"""Codecs of 1, 4 and 6 channels from images to tokens to images: every command, on toy codecs."""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from pipelines.training.training_codec import configure_codec_training
from tests.pipelines.test_training_codec import TOY_SETTINGS
from tests.toy_codec import TOY
from tests.vqgan.importers.foreign import random_weights
from transforms.images.npy import write_array
from vqgan.channels import ChannelsConfig
from vqgan.codec import Codec
from vqgan.codec_checkpoint import read_info, save_codec
from vqgan.data.tokens import open_tokens
from vqgan.discriminators import DiscriminatorConfig, make_discriminator
from vqgan.errors import UserError

Vqgan = Callable[..., Any]
INSTALLED = importlib.util.find_spec("openvino") is not None
RANGES = ((0, 1000), (0, 2000), (-1, 1), (0, 255), (5, 6), (0, 1))
CHANNELS = {
    1: ChannelsConfig(1),
    4: ChannelsConfig(4, input_ranges=((0, 1), (0, 1), (-1, 1), (-1, 1))),
    6: ChannelsConfig(6, ranges=RANGES),
}
# Few programs, and those of four channels alone; docs/channels.md trains the others.
TRAINING = (
    *TOY_SETTINGS, "adversarial.weight=0", "codebook.autoencoder_steps=0", "train.steps=4",
    "model.channels.count=4", "model.channels.input_ranges=[[0,1],[0,1],[-1,1],[-1,1]]",
)  # fmt: skip


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


def make_channels_codec(folder: Path, images: Path, channels: int, vqgan: Vqgan) -> Path:
    """A codec of the channels: of four it is trained, of others its weights are random."""
    if channels == 4:
        settings = [part for setting in TRAINING for part in ("--set", setting)]
        assert vqgan("train", "--input", images, "--output", folder, *settings, "--quiet").code == 0
        return folder / "codec"
    config = dataclasses.replace(TOY, channels=CHANNELS[channels])
    save_codec(folder, config, random_weights(config))
    return folder


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_from_images_to_images(tmp_path: Path, vqgan: Vqgan, channels: int) -> None:
    images, tokens, out = (tmp_path / name for name in ("in", "tokens", "out"))
    write_images(images, channels)
    codec = make_channels_codec(tmp_path / "codec", images, channels, vqgan)
    assert read_info(codec).config.channels == CHANNELS[channels]
    shared = ["--codec", codec, "--input", images, "--image-size", "16", "--quiet"]
    assert vqgan("tokenize", *shared, "--output", tokens).code == 0
    manifest = json.loads((tokens / "manifest.json").read_text())
    assert manifest["counts"]["images"] == 12
    assert manifest["identity"]["preprocessing"]["decode"]["channels"]["count"] == channels
    verified = vqgan("verify", tokens, "--codec", codec, "--input", images)
    assert verified.code == 0
    assert "100.0000% of tokens agree" in verified.out
    form = "png" if channels <= 4 else "npy"
    decode = ["decode", "--tokens", tokens, "--codec", codec, "--output", out, "--quiet", "--format"]
    other = "webp" if channels == 1 else "jpeg"
    assert "does not hold them; choose" in vqgan(*decode, other).line
    assert vqgan(*decode, form).code == 0
    assert vqgan("verify", out).code == 0
    check_decoded(codec, tokens, out / "images", form)
    found = tmp_path / "found"
    assert vqgan("evaluate", *shared, "--metrics", "psnr,ssim", "--output", found).code == 0
    metrics = json.loads((found / "evaluation.json").read_text())["codecs"][0]["metrics"]
    assert metrics["psnr"]["images"] == 12
    if channels != 1:
        assert "takes 1 or 3 channels" in vqgan("evaluate", *shared, "--metrics", "frechet").line


@pytest.mark.skipif(not INSTALLED, reason="NOT CHECKED: openvino is not installed (extra cpu)")
def test_by_another_engine(tmp_path: Path, vqgan: Vqgan) -> None:
    images = tmp_path / "in"
    write_images(images, 6)
    codec = make_channels_codec(tmp_path / "codec", images, 6, vqgan)
    engine = ("--engine", "openvino", "--quiet", "--no-report")
    shared = ("--codec", codec, "--input", images, "--image-size", "16")
    assert vqgan("tokenize", *shared, "--output", tmp_path / "tokens", *engine).code == 0
    found = json.loads((tmp_path / "tokens" / "manifest.json").read_text())["agreement_with_jax"]
    assert found["clear"] == found["clear_equal"] > 0.9 * found["tokens"]
    decode = ("decode", "--tokens", tmp_path / "tokens", "--codec", codec, "--format", "npy")
    assert vqgan(*decode, "--output", tmp_path / "out", *engine).code == 0
    found = json.loads((tmp_path / "out" / "manifest.json").read_text())["agreement_with_jax"]
    assert (found["images"], found["largest"] <= 1) == (4, True)


def check_decoded(path: Path, tokens: Path, images: Path, form: str) -> None:
    """Compares a file with what the codec gives in Python."""
    first = open_tokens(str(tokens), columns=["key"]).take([0])
    codec = Codec.load(path)
    decoded = codec.decode(first.tokens.reshape(1, 8, 8))[0]
    file = images / f"{first.columns['key'][0]}.{form}"
    if form == "npy":
        low, high = np.array(RANGES, np.float64).T
        np.testing.assert_allclose(np.load(file), decoded * ((high - low) / 255) + low, atol=1e-3)
    else:
        np.testing.assert_array_equal(np.asarray(Image.open(file)).reshape(decoded.shape), decoded)
    with pytest.raises(ValueError, match=f"uint8 .N, H, W, {decoded.shape[-1]}. or"):
        codec.encode(np.zeros((1, 16, 16, 3), np.uint8))


def test_refusals(tmp_path: Path, vqgan: Vqgan) -> None:
    images = tmp_path / "in"
    write_images(images, 4)
    codec = make_channels_codec(tmp_path / "codec", images, 6, vqgan)
    shared = ["tokenize", "--codec", codec, "--input", images, "--image-size", "16", "--quiet"]
    rejected = vqgan(*shared, "--output", tmp_path / "out", "--max-reject-rate", "0.5").line
    assert "6 channels are wanted: give TIFF or .npy" in rejected
    with pytest.raises(UserError, match="LPIPS: its network takes 1 or 3 channels, and images have 2"):
        configure_codec_training("tiny", ["loss.perceptual=1", "model.channels.count=2"])


def test_discriminators_take_the_channels() -> None:
    for kind in ("patch", "stylegan"):
        config = DiscriminatorConfig(kind=kind, channels=4, layers=1, resolution=16)
        network = make_discriminator(config, channels=5, rngs=nnx.Rngs(0))
        assert network(jnp.zeros((2, 16, 16, 5))).shape[0] == 2
