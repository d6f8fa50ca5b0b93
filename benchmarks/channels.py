"""Small codecs of 1, 4 and 6 channels, trained for a minute on versions of photographs: PSNR and a picture.

python benchmarks/channels.py channels.jpg

Grey; RGB with a round alpha; and six bands of 16 bits: red, green, blue and three mixtures of them, which
stand for a multispectral camera's. The photographs are those that the codecs learn from: the figures show
that the way works, not how good a codec gets.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import PHOTOS, finished
from PIL import Image

from pipelines import train
from transforms.images.config import DecodeConfig
from transforms.images.crops import Geometry
from transforms.images.decode import prepare
from vqgan import Codec
from vqgan.image_grid import tile_pairs
from vqgan.metrics.image import psnr

SIDE, SHOWN = 64, 6
MIXTURES = np.array([[0.6, 0.4, 0], [0, 0.6, 0.4], [0.3, 0.3, 0.4]])
SETTINGS = {
    "model.ch_mult": [1, 2, 2], "data.crop_size": 32, "data.validation_size": SIDE, "train.steps": 160,
    "train.batch_size": 8, "train.evaluate_every": 160, "train.save_every": 160,
    "codebook.autoencoder_steps": 0, "codebook.revive_every": 20,
}  # fmt: skip
CHANNELS: dict[str, dict[str, Any]] = {
    "grey": {"count": 1},
    "rgba": {"count": 4},
    "bands": {"count": 6, "ranges": [[0, 10000]]},
}


def main() -> None:
    """Writes the versions, trains a codec on each, prints the metrics and draws originals above images."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    grids = []
    with tempfile.TemporaryDirectory() as folder:
        for name, channels in CHANNELS.items():
            images = write_versions(Path(folder, name), name)
            run = f"{folder}/run-{name}"
            settings = {**SETTINGS, **{f"model.channels.{key}": value for key, value in channels.items()}}
            finished(
                train(preset="tiny", input=images, validation=images, output=run, set=settings, quiet=True)
            )
            originals, reconstructions = reconstruct(f"{run}/codec", images)
            found = float(np.mean(psnr(originals, reconstructions)))
            print(f"{name}: {found:.1f} dB PSNR over {originals.shape[-1]} channels", flush=True)
            grids.append(tile_pairs(originals[:SHOWN], reconstructions[:SHOWN], SHOWN))
    width = max(grid.shape[1] for grid in grids)
    Image.fromarray(np.concatenate([grid[:, :width] for grid in grids])).save(args.picture, quality=90)


def write_versions(folder: Path, name: str) -> Path:
    """Writes one version of every photograph, 96 pixels a side."""
    folder.mkdir()
    for path in sorted(PHOTOS.glob("*.jpg")):
        with Image.open(path) as opened:
            image = opened.convert("RGB").resize((96, 96))
        if name == "grey":
            image.convert("L").save(folder / f"{path.stem}.png")
        elif name == "rgba":
            y, x = np.mgrid[-1:1:96j, -1:1:96j]
            image.putalpha(Image.fromarray(((x**2 + y**2 < 0.8) * 255).astype(np.uint8)))
            image.save(folder / f"{path.stem}.png")
        else:
            rgb = np.asarray(image) / 255
            bands = np.concatenate([rgb, rgb @ MIXTURES.T], axis=2)
            np.save(folder / f"{path.stem}.npy", np.rint(bands * 10000).astype(np.uint16))
    return folder


def reconstruct(path: str, images: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns originals, uint8 ``[N, S, S, C]``, and what their tokens decode to."""
    codec = Codec.load(path)
    decode = DecodeConfig(channels=codec.config.channels)
    files = sorted(images.iterdir())
    squares = [prepare(file.read_bytes(), file.name, decode, Geometry(SIDE)).pixels[0] for file in files]
    originals = np.stack(squares)
    return originals, codec.decode(codec.encode(originals))


if __name__ == "__main__":
    main()
