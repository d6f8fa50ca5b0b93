"""What the benchmarks share: a corpus made from the test photographs, and codecs of two sizes."""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from flax import nnx
from PIL import Image

from vqgan.codec_checkpoint import model_weights, save_codec
from vqgan.config import ModelConfig
from vqgan.model.vqgan import VQGAN

PHOTOS = Path(__file__).parent.parent / "tests" / "testdata" / "photos"

# A codec of published width for which decoding images is a small part of the work.
LARGE = ModelConfig(
    resolution=256, ch=64, ch_mult=(1, 1, 2, 4), num_res_blocks=2, attn_resolutions=(), mid_attention=False
)


def parser(description: str) -> argparse.ArgumentParser:
    """A parser that every benchmark starts from."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


def make_corpus(folder: Path, images: int, short_side: int = 480, photos: Path = PHOTOS) -> None:
    """Distinct JPEG files, each a random crop of a photograph at ``short_side`` pixels."""
    rng = np.random.default_rng(0)
    sources = [Image.open(path).convert("RGB") for path in sorted(photos.glob("*.jpg"))]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(images):
        source = sources[number % len(sources)]
        share = rng.uniform(0.6, 1.0)
        width, height = round(source.width * share), round(source.height * share)
        left, top = rng.integers(source.width - width + 1), rng.integers(source.height - height + 1)
        scale = short_side / min(width, height)
        size = (round(width * scale), round(height * scale))
        crop = source.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        crop.save(folder / f"{number:06d}.jpg", quality=90)


def random_codec(folder: Path, config: ModelConfig) -> str:
    """A codec with random weights: as fast as a trained one."""
    model = VQGAN(config, rngs=nnx.Rngs(0))
    save_codec(folder, config, model_weights(model))
    return str(folder)


def scratch() -> tempfile.TemporaryDirectory:
    """A temporary folder."""
    return tempfile.TemporaryDirectory(prefix="vqgan-benchmark-")


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)
    sys.stdout.flush()
