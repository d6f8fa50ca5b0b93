"""The images in docs/training.md: images of the validation split, and what a run made of them at some steps.

python benchmarks/training_images.py run/ docs/training-grid.png --steps 1400 2400
"""

from pathlib import Path

import numpy as np
from common import parser, say
from PIL import Image

from vqgan.image_grid import GAP, MARGIN
from vqgan.training.logs import list_grids


def rows_of(sheet: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Originals and reconstructions of a sheet's first two rows of pairs, ``[side, width, 3]`` each."""
    pair = 2 * side + MARGIN
    tops = [top for top in (0, pair + GAP) if top + pair <= len(sheet)]
    originals = [sheet[top : top + side] for top in tops]
    reconstructions = [sheet[top + side + MARGIN : top + pair] for top in tops]
    return np.concatenate(originals, axis=1), np.concatenate(reconstructions, axis=1)


def main() -> None:
    """Writes the image: a row of originals, then one for each step."""
    flags = parser("Originals, and their reconstructions at some steps of a run.")
    flags.add_argument("run", type=Path, help="folder of a training run")
    flags.add_argument("output", type=Path)
    flags.add_argument("--steps", type=int, nargs="+", required=True, help="steps with an evaluation")
    flags.add_argument("--side", type=int, default=64, help="data.validation_size of the run")
    flags.add_argument("--shown", type=int, default=10, help="images in a row")
    flags.add_argument("--zoom", type=int, default=2)
    args = flags.parse_args()
    sheets = dict(list_grids(args.run / "grids")["validation"])
    rows: list[np.ndarray] = []
    for step in args.steps:
        original, reconstruction = rows_of(np.asarray(Image.open(sheets[step]).convert("RGB")), args.side)
        rows = [*(rows or [original]), reconstruction]
    width = args.shown * (args.side + MARGIN)
    gap = np.full((MARGIN, width, 3), 128, np.uint8)
    stacked = np.concatenate([part for row in rows for part in (row[:, :width], gap)])
    image = Image.fromarray(stacked)
    size = (image.width * args.zoom, image.height * args.zoom)
    image.resize(size, Image.Resampling.NEAREST).quantize(256).save(args.output, optimize=True)
    say(f"{args.output}: originals, then steps {', '.join(map(str, args.steps))}")


if __name__ == "__main__":
    main()
