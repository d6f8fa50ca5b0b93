"""The images in docs/prior.md: the same seeds and classes, drawn in several ways, a row for each.

python benchmarks/prior_images.py run/ guidance.png --vary guidance --values 1 2 4 --count 20
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from common import parser, say
from PIL import Image

from vqgan.codec import Codec
from vqgan.image_grid import tile_images
from vqgan.prior.checkpoint import read_prior
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.request import Request
from vqgan.prior.sampling.sampler import load_sampler

VARIED = ("temperature", "top_k", "top_p", "guidance")


def main() -> None:
    """Writes the image."""
    flags = parser("Samples of a prior, a row for each value of one setting.")
    flags.add_argument("run", help="folder of a prior, or of the run that has trained it")
    flags.add_argument("output", type=Path)
    flags.add_argument("--vary", choices=VARIED, required=True)
    flags.add_argument("--values", type=float, nargs="+", required=True)
    flags.add_argument("--count", type=int, default=16, help="samples in a row; classes take turns")
    flags.add_argument("--codec", help="the one that the prior names by default")
    flags.add_argument("--zoom", type=int, default=1)
    for name in VARIED:
        kind = int if name == "top_k" else float
        flags.add_argument(f"--{name.replace('_', '-')}", type=kind, default=getattr(SamplingConfig(), name))
    args = flags.parse_args()
    prior = read_prior(args.run)
    sampler = load_sampler(prior, batch_size=args.count)
    codec = Codec.load(args.codec or prior.codec.name, batch_size=args.count)
    classes = prior.config.classes
    labels = np.arange(args.count) % classes if classes else None
    settings = SamplingConfig(**{name: getattr(args, name) for name in VARIED})
    rows = []
    for value in args.values:
        change: dict[str, Any] = {args.vary: int(value) if args.vary == "top_k" else value}
        changed = dataclasses.replace(settings, **change)
        rows.append(codec.decode(sampler.sample(Request(np.arange(args.count), labels), changed)))
    image = Image.fromarray(tile_images(np.concatenate(rows), args.count))
    size = (image.width * args.zoom, image.height * args.zoom)
    image.resize(size, Image.Resampling.NEAREST).save(args.output, optimize=True, quality=90)
    say(f"{args.output}: {args.vary} {', '.join(f'{value:g}' for value in args.values)}, from the top")


if __name__ == "__main__":
    main()
