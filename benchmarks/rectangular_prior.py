"""A small prior on photographs at 256x384: trained, sampled, completed, decoded; figures and a picture.

The photographs are taken in buckets, and the prior learns those of the landscapes: grids of 32 x 48, 1,536
tokens of `tiny`. The lower halves of two photographs of the tests are completed, which it has not seen.

    python benchmarks/training_data.py photos/      # on Debian; any folder of photographs will do
    python benchmarks/rectangular_prior.py photos/ docs/rectangles-prior.jpg
"""

import json
import resource
import time
from pathlib import Path

import numpy as np
from common import PHOTOS, finished, parser, say, scratch
from PIL import Image

from pipelines import decode, sample, tokenize, train_prior
from pipelines.sampling.complete_image import CompleteConfig, complete_image
from vqgan import Prior
from vqgan.image_grid import tile_images

BUCKETS = ((256, 384), (384, 256), 256)
SIZE = "256x384"
UNSEEN = ("sunset.jpg", "picosdeeuropa.jpg")
DRAWS = 2
SETTINGS = (
    "model.layers=2",
    "model.width=128",
    "model.heads=4",
    "train.batch_size=4",
    "train.evaluate_every=80",
    "train.save_every=40",
    "train.patience=0",
    "optimizer.learning_rate=0.004",
    "optimizer.warmup_steps=20",
    "data.holdout=10",
    "data.samples=0",
)


def main() -> None:
    """Makes tokens, a prior, samples and completions, prints figures, and draws all in one picture."""
    arguments = parser(__doc__)
    arguments.add_argument("photos", type=Path, help="folder of photographs to learn from")
    arguments.add_argument("picture", type=Path)
    arguments.add_argument("--steps", type=int, default=240)
    arguments.add_argument("--work", type=Path, help="keep what is made here, and go on with it")
    args = arguments.parse_args()
    with scratch() as temporary:
        work = args.work or Path(temporary)
        prior = learn(args.photos, work, args.steps)
        rows = [complete(prior, work, name) for name in UNSEEN]
        rows.append(draw(prior, work))
        picture = Image.fromarray(np.concatenate(rows))
        picture.resize((picture.width // 2, picture.height // 2)).save(args.picture, quality=85)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    say(f"most memory: {most:.1f} GB")


def learn(photos: Path, work: Path, steps: int) -> str:
    """Tokenizes and trains; returns the folder of the prior, and says what it has learned."""
    tokens = tokenize(
        input=photos, output=work / "tokens", codec="tiny", buckets=BUCKETS, views="hflip", report=False
    )
    landscapes = json.loads((work / "tokens" / SIZE / "manifest.json").read_text())
    started = time.process_time()
    settings = (*SETTINGS, f"train.steps={steps}")
    made = finished(train_prior(tokens=work / "tokens" / SIZE, output=work / "prior", set=settings))
    minutes = (time.process_time() - started) / 60
    counts = tokens.manifest["data_sets"][SIZE]
    say(f"photographs: {tokens.counts['images']}, of them {counts['images']} at {SIZE}, each also mirrored")
    say(f"grid: {' x '.join(map(str, landscapes['grid']))} tokens")
    say(f"bits a token in validation after {made.step} steps: {made.metrics['bits']:.2f}")
    say(f"of frequencies alone: {made.metrics['unigram_bits']:.2f}")
    say(f"processor minutes of training: {minutes:.1f}")
    return made.model


def complete(prior: str, work: Path, name: str) -> np.ndarray:
    """Completes the lower half of a photograph: original, what was given, and draws, side by side."""
    path = work / f"completed-{name}.png"
    config = CompleteConfig(image=str(PHOTOS / name), prior=prior, output=str(path), draws=DRAWS)
    started = time.process_time()
    say(complete_image(config).removeprefix(f"{work}/"))
    say(f"processor seconds of that: {time.process_time() - started:.0f}")
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def draw(prior: str, work: Path) -> np.ndarray:
    """Samples by the command, decodes what it wrote, and returns as many as a row of the others has."""
    count = 2 + DRAWS
    time_a_sample(prior)
    sample(prior=prior, output=work / "samples", count=count, images=False, quiet=True)
    decode(tokens=work / "samples", output=work / "decoded", report=False, quiet=True)
    paths = sorted((work / "decoded" / "images").glob("*.png"))
    return tile_images(np.stack([np.asarray(Image.open(path)) for path in paths]), count)


def time_a_sample(prior: str) -> None:
    """Says how long one takes, and four together, once all is compiled."""
    for count in (1, 4):
        opened = Prior.load(prior, batch_size=count)
        opened.sample(count)
        started = time.process_time()
        opened.sample(count)
        say(f"processor seconds of {count} drawn together: {time.process_time() - started:.1f}")


if __name__ == "__main__":
    main()
