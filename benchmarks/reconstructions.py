"""The image in the README: photographs above, their reconstructions by the shipped codec below.

python benchmarks/reconstructions.py docs/reconstructions.jpg
"""

from pathlib import Path

import numpy as np
from common import PHOTOS, parser, read_photos, say
from PIL import Image

from vqgan import Codec
from vqgan.metrics.codebook_usage import codebook_usage
from vqgan.metrics.image import psnr


def main() -> None:
    """Writes the image and prints PSNR and codebook usage."""
    flags = parser("Originals above reconstructions.")
    flags.add_argument("output", type=Path)
    flags.add_argument("--codec", default="tiny")
    flags.add_argument("--photos", type=Path, default=PHOTOS)
    flags.add_argument("--size", type=int, default=256)
    flags.add_argument("--shown", type=int, default=6)
    args = flags.parse_args()
    codec = Codec.load(args.codec, batch_size=2)
    paths, images = read_photos(args.photos, args.size)
    tokens = codec.encode(images)
    decoded = codec.decode(tokens)
    values = psnr(images, decoded)
    for path, value in zip(paths, values, strict=True):
        say(f"{path.name}: {value:.2f} dB")
    usage = codebook_usage(np.bincount(tokens.ravel(), minlength=codec.config.codebook_size))
    say(
        f"mean {values.mean():.2f} dB over {len(paths)} photographs at {args.size} pixels; {usage.used} of "
        f"{codec.config.codebook_size} codes used, entropy {usage.entropy:.2f} bits"
    )
    rows = [np.concatenate(list(part[: args.shown]), axis=1) for part in (images, decoded)]
    Image.fromarray(np.concatenate(rows)).save(args.output, quality=88)


if __name__ == "__main__":
    main()
