"""``vqgan demo``: photographs to tokens and back, with a report to look at."""

import sys
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from pipelines import tokenize_images
from transforms.geometry import Geometry
from transforms.images import DecodeConfig
from transforms.inference import load_codec
from transforms.sources import SourceConfig
from transforms.verifying import verify
from vqgan.errors import UserError
from vqgan.shards import Shard

PHOTOS = Path(__file__).parent / "photos"
CODEC = "tiny"
IMAGE_SIZE = 256
BATCH_SIZE = 4


def run(output: str, images: str | None) -> None:
    """Tokenizes photographs, checks the shards, and renders pictures from them.

    Args:
      output: folder for shards (``tokens/``) and pictures (``pictures/``).
      images: the user's own images, or None for those that come along.

    Raises:
      UserError: as ``vqgan tokenize`` does.
    """
    folder = Path(output)
    config = tokenize_images.TokenizeConfig(
        source=SourceConfig(input=images or f"{PHOTOS}/*.jpg"),
        output=str(folder / "tokens"),
        codec=CODEC,
        geometry=Geometry(image_size=IMAGE_SIZE),
        decode=DecodeConfig(),
        batch_size=BATCH_SIZE,
    )
    tokenize_images.run(config, [])
    problems, summary = verify(config.output)
    if problems:
        raise UserError(f"{config.output}: {problems[0]}; delete the folder and run the demo again")
    _say(f"verified: {summary}")
    count = render(config.output, folder / "pictures")
    _say(
        f"\n{folder.resolve()}\n"
        f"  tokens/tokens-*.parquet  the shards\n"
        f"  tokens/report.html       originals beside reconstructions: open this first\n"
        f"  pictures/                {count} pictures, decoded from the shards alone"
    )


def render(tokens: str, pictures: Path) -> int:
    """Decodes every row of a data set's shards to a PNG. Gives their number."""
    codec = load_codec(CODEC, BATCH_SIZE, "float32")
    pictures.mkdir(parents=True, exist_ok=True)
    count = 0
    for path in sorted(Path(tokens).glob("tokens-*.parquet")):
        with Shard(str(path), path.name) as shard:
            shard.require(codec.fingerprint)
            for batch in shard.batches(["key", "view", "tokens"]):
                decoded = codec.decode(shard.tokens(batch))
                for key, view, pixels in zip(
                    batch.column("key").to_pylist(), batch.column("view").to_pylist(), decoded, strict=True
                ):
                    _save(pictures / _file_name(key, view), pixels)
                    count += 1
    return count


def _file_name(key: str, view: int) -> str:
    """A name that stays inside the folder whatever the key, and differs for different keys."""
    return f"{quote(key, safe=' ')}-{view}.png"


def _save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
