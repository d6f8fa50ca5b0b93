"""Priors of icons by class: autoregressive and masked ones of the same size, trained for the same steps.

Takes the folder that ``benchmarks/icons.py`` has made. For each kind and seed prints bits a token (of hidden
tokens for a masked prior, which is another figure), the share of samples that the real icons nearest to each
vote to be of their class (features of EfficientNet-Lite0), the Fréchet distance to those real icons over the
same features, samples for each second of processor time, and the processor time of training; beside them what
real icons of validation reach, encoded and decoded. The distance depends on the number of images: compare
within one table only.

    python benchmarks/icon_priors.py icons/ --seeds 0 1 2
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import finished, parser, say
from icons import read_pixels

from pipelines.sampling.sample_prior import write_png
from pipelines.training.training_prior import TrainPriorRequest
from pipelines.training.training_prior import run_prior_training as train
from vqgan import Codec, Prior, open_tokens
from vqgan.compilation_cache import enable_compilation_cache
from vqgan.features.efficientnet_lite import load_efficientnet
from vqgan.image_grid import tile_images
from vqgan.metrics.frechet import feature_statistics, frechet_distance

KINDS = ("autoregressive", "masked")
NEIGHBOURS = 5
BATCH = 32
COLUMNS = 16  # of the picture
SETTINGS = (  # 0.45 million parameters
    "model.layers=3",
    "model.width=96",
    f"train.batch_size={BATCH}",
    "train.patience=3",
    "optimizer.learning_rate=0.003",
    "data.samples=0",
)


class Voters:
    """Real icons that vote on what an image shows.

    Attributes:
      names: of the classes, sorted, as a data set numbers them.
    """

    def __init__(self, pixels: np.ndarray, labels: list[str]) -> None:
        """Takes icons, uint8 ``[N, SIDE, SIDE, 3]``, and their classes."""
        self.names = sorted(set(labels))
        self._labels = np.array([self.names.index(label) for label in labels])
        self._network = load_efficientnet()
        self._features = self.features(pixels)

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Features ``[N, D]`` of images, in batches of one size."""
        parts = [
            np.resize(pixels[n : n + BATCH], (BATCH, *pixels.shape[1:])) for n in range(0, len(pixels), BATCH)
        ]
        return np.concatenate([np.asarray(self._network.features(part)) for part in parts])[: len(pixels)]

    def votes(self, features: np.ndarray) -> np.ndarray:
        """Classes that the nearest real icons by the angle vote for, int ``[N]``."""
        unit, own = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, self._features))
        nearest = np.argsort(-unit @ own.T, axis=1)[:, :NEIGHBOURS]
        return np.array(
            [np.bincount(self._labels[row], minlength=len(self.names)).argmax() for row in nearest]
        )

    def score(self, pixels: np.ndarray, asked: np.ndarray) -> tuple[float, float]:
        """The share of images that are voted to be what was asked for, and the Fréchet distance."""
        features = self.features(pixels)
        distance = frechet_distance(feature_statistics(features), feature_statistics(self._features))
        return float(np.mean(self.votes(features) == asked)), distance


class Row(NamedTuple):
    """A row of the table; see the module."""

    bits: float
    vote: float
    frechet: float
    speed: float
    seconds: float
    steps: int


def train_prior(folder: Path, kind: str, seed: int, steps: int) -> tuple[str, float, int]:
    """Trains a prior; returns its folder, the processor time, and the step of what was the best."""
    started = time.process_time()
    every = max(1, steps // 10)
    request = TrainPriorRequest(
        tokens=(f"{folder}/tokens-train",),
        validation=f"{folder}/tokens-validation",
        output=f"{folder}/{kind}-{seed}",
        settings=(
            *SETTINGS,
            f"model.kind={kind}",
            f"train.seed={seed}",
            f"train.steps={steps}",
            f"train.evaluate_every={every}",
        ),
    )
    summary = finished(train(request))
    return summary.model, time.process_time() - started, summary.best_step or 0


def measure(
    folder: Path, voters: Voters, kind: str, seed: int, args: argparse.Namespace
) -> tuple[Row, np.ndarray]:
    """Trains and scores one prior; returns its row and its samples, the classes in turn."""
    model, seconds, steps = train_prior(folder, kind, seed, args.steps)
    prior = Prior.load(model, batch_size=BATCH)
    drawn = prior.sample(BATCH, guidance=args.guidance, seed=args.count)  # compiles
    started = time.process_time()
    drawn = prior.sample(args.count, guidance=args.guidance)
    speed = args.count / (time.process_time() - started)
    images = prior.images(drawn)
    vote, distance = voters.score(images, np.arange(args.count) % len(voters.names))
    bits = prior.info.card["metrics"]["bits"]["value"]
    return Row(bits, vote, distance, speed, seconds, steps), images


def cells(row: Row) -> list[str]:
    """A row of the table as text."""
    return [
        f"{row.bits:.2f}",
        f"{row.vote:.1%}",
        f"{row.frechet:.1f}",
        f"{row.speed:.1f}",
        f"{row.seconds:.0f} s",
        f"{row.steps:.0f}",
    ]


def pick_turns(images: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """A row of the picture: images of the classes in turn."""
    return np.stack([images[labels == n % classes][n // classes] for n in range(COLUMNS)])


def main() -> None:
    """Trains all priors and prints the table."""
    flags = parser(__doc__ or "")
    flags.add_argument("folder", type=Path, help="what icons.py has made")
    flags.add_argument("--steps", type=int, default=300)
    flags.add_argument("--kinds", nargs="+", default=list(KINDS))
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--count", type=int, default=96, help="samples of each prior")
    flags.add_argument("--each", type=int, default=30, help="real icons of each class that vote")
    flags.add_argument("--guidance", type=float, default=2.0)
    args = flags.parse_args()
    enable_compilation_cache()
    pixels, labels = read_pixels(args.folder / "train.parquet", args.each)
    voters = Voters(pixels, labels)
    real = open_tokens(f"{args.folder}/tokens-validation")
    batch = real.take(np.arange(len(real)))
    codec = Codec.load(args.folder / "codec", batch_size=BATCH)
    decoded = codec.decode(batch.tokens.reshape(-1, *real.grid))
    vote, distance = voters.score(decoded[: args.count], batch.labels[: args.count])
    say("| prior | bits a token | voted to be of their class | Fréchet | samples/s | training | best step |")
    say("|---|---|---|---|---|---|---|")
    say(f"| real icons of validation, encoded and decoded | | {vote:.1%} | {distance:.1f} | | | |")
    shown = [pick_turns(decoded, batch.labels, len(voters.names))]
    for kind in args.kinds:
        rows = []
        for seed in args.seeds:
            row, images = measure(args.folder, voters, kind, seed, args)
            rows.append(row)
            say(f"| {kind}, seed {seed} | {' | '.join(cells(row))} |")
            if seed == args.seeds[0]:
                shown.append(images[: 2 * COLUMNS])
        mean, spread = np.mean(rows, axis=0), np.ptp(rows, axis=0)
        pairs = zip(cells(Row(*mean)), cells(Row(*spread)), strict=True)
        say(f"| {kind}, mean (greatest less least) | {' | '.join(f'{a} ({b})' for a, b in pairs)} |")
    write_png(
        f"{args.folder}/classes-{'-'.join(args.kinds)}.png", tile_images(np.concatenate(shown), COLUMNS)
    )


if __name__ == "__main__":
    main()
