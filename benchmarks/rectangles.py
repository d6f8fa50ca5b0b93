"""What buckets of aspect ratios keep of photographs that a square crop loses, in numbers and in a picture.

python benchmarks/rectangles.py docs/rectangles.jpg
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines import tokenize
from vqgan import Codec, open_tokens
from vqgan.data.tokens import TokenSet

PHOTOS = Path(__file__).parents[1] / "tests" / "testdata" / "photos"
SHOWN = ("friends.jpg", "sunset.jpg", "wine.jpg", "umang.jpg", "seeding.jpg")
BUCKETS = (128, (128, 192), (192, 128))
GAP = 8


def main() -> None:
    """Tokenizes photographs as squares and in buckets, prints what is kept, and draws some of both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"input": PHOTOS, "codec": "tiny", "quiet": True, "report": False}
        tokenize(output=f"{folder}/square", image_size=128, **settings)
        made = tokenize(output=f"{folder}/buckets", buckets=BUCKETS, **settings)
        full = [name for name, counts in made.manifest["data_sets"].items() if counts["rows"]]
        square = read(f"{folder}/square")
        buckets = {name: read(f"{folder}/buckets/{name}") for name in full}
    rows = [line for key in sorted(square) for line in describe(key, square[key], buckets)]
    print(f"{'photograph':<20} {'pixels':>10}  {'square':>7}  bucket")
    print("\n".join(rows))
    kept = [[share for share, _ in part.values()] for part in (square, *buckets.values())]
    several = np.concatenate(kept[1:])
    print(f"{'mean':<31}  {np.mean(kept[0]):>7.0%}  {np.mean(several):>7.0%}")
    draw(square, {key: found for part in buckets.values() for key, found in part.items()}).save(
        args.picture, quality=88
    )


def read(path: str) -> dict[str, tuple[float, np.ndarray]]:
    """Returns the share of its pixels that each image keeps, and what its tokens decode to, by its key."""
    tokens: TokenSet = open_tokens(path, columns=["key", "crop", "width", "height"])
    batch = tokens.take(np.arange(len(tokens)))
    left, top, right, bottom = np.asarray(batch.columns["crop"]).T
    width, height = (np.asarray(batch.columns[name]) for name in ("width", "height"))
    shares = (right - left) * (bottom - top) / (width * height)
    images = Codec.load("tiny").decode(batch.tokens.reshape(-1, *tokens.grid))
    return dict(zip(batch.columns["key"], zip(shares, images, strict=True), strict=True))


def describe(
    key: str, square: tuple[float, np.ndarray], buckets: dict[str, dict[str, tuple[float, np.ndarray]]]
) -> list[str]:
    """Returns the line of a photograph."""
    with Image.open(PHOTOS / key) as image:
        size = f"{image.width}x{image.height}"
    return [
        f"{key:<20} {size:>10}  {square[0]:>7.0%}  {part[key][0]:>7.0%} at {name}"
        for name, part in buckets.items()
        if key in part
    ]


def draw(
    squares: dict[str, tuple[float, np.ndarray]], nearest: dict[str, tuple[float, np.ndarray]]
) -> Image.Image:
    """Returns squares above, the same images at their buckets below."""
    pairs = [(squares[key][1], nearest[key][1]) for key in SHOWN if key in squares]
    widths = [max(above.shape[1], below.shape[1]) for above, below in pairs]
    heights = [max(pair[row].shape[0] for pair in pairs) for row in (0, 1)]
    canvas = Image.new("RGB", (sum(widths) + GAP * (len(pairs) - 1), sum(heights) + GAP), (255, 255, 255))
    left = 0
    for (above, below), width in zip(pairs, widths, strict=True):
        canvas.paste(Image.fromarray(above), (left + (width - above.shape[1]) // 2, 0))
        canvas.paste(Image.fromarray(below), (left + (width - below.shape[1]) // 2, heights[0] + GAP))
        left += width + GAP
    return canvas


if __name__ == "__main__":
    main()
