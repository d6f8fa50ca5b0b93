"""Priors of icons by class: autoregressive and masked ones of the same size, trained for the same steps.

Takes the folder that ``benchmarks/icon_classes.py`` has made. For each kind and seed prints

- bits a token, of hidden tokens for a masked prior, which is another figure;
- the share of samples that the icons of training nearest to each vote to be of their class, over features of
  EfficientNet-Lite0; these icons are encoded and decoded as well, and as many of every class vote;
- the Fréchet distance to those icons over the same features. It depends on the number of images: compare
  within one table only;
- the share of tokens that a sample has in common with the row of training most like it;
- samples for each second of processor time, and the processor time of training;

and beside them what real icons of validation reach, encoded and decoded.

    python benchmarks/icon_priors.py classes/ --seeds 0 1 2
    python benchmarks/icon_priors.py classes/ --seeds 0 1 2 --guidance 1   # the same priors anew
"""

import argparse
import io
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from common import finished, parser, say
from icon_classes import FIRST
from PIL import Image

from pipelines.sampling.sample_prior import write_png
from pipelines.training.training_prior import TrainPriorRequest
from pipelines.training.training_prior import run_prior_training as train
from vqgan import Codec, Prior, open_tokens
from vqgan.compilation_cache import enable_compilation_cache
from vqgan.features.efficientnet_lite import load_efficientnet
from vqgan.image_grid import tile_images
from vqgan.metrics.frechet import feature_statistics, frechet_distance
from vqgan.prior.sampling.config import SamplingConfig

KINDS = ("autoregressive", "masked")
NEIGHBOURS = 5
BATCH = 32
ROWS = 4  # of the picture, for each kind
ENLARGED = 2  # times that the picture shows its pixels
SETTINGS = (  # 0.92 million parameters
    "model.layers=4",
    "model.width=128",
    "model.dropout=0.1",
    f"train.batch_size={BATCH}",
    "train.patience=3",
    "train.cpu_devices=1",
    "optimizer.learning_rate=0.002",
    "data.samples=0",
)


def read_icons(path: Path, each: int) -> tuple[np.ndarray, list[str]]:
    """Reads ``each`` icons of every class, spread over it, copies of none; fewer where it has no more."""
    rows = [row for row in pq.read_table(path).to_pylist() if row["key"].endswith(FIRST)]
    pixels, labels = [], []
    for label in sorted({row["label"] for row in rows}):
        files = [row["image"] for row in rows if row["label"] == label]
        for n in np.linspace(0, len(files) - 1, min(each, len(files))).round().astype(int):
            pixels.append(np.asarray(Image.open(io.BytesIO(files[n]))))
            labels.append(label)
    return np.stack(pixels), labels


class Voters:
    """Icons that vote on what an image shows.

    Attributes:
      names: of the classes, sorted, as a data set numbers them.
    """

    def __init__(self, pixels: np.ndarray, labels: list[str], kept: Path) -> None:
        """Takes icons, uint8 ``[N, SIDE, SIDE, 3]``, their classes, and a file that keeps their features."""
        self.names = sorted(set(labels))
        self._labels = np.array([self.names.index(label) for label in labels])
        self._network = load_efficientnet()
        self._features = self.kept_features(pixels, kept)

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Features ``[N, D]`` of images, in batches of one size."""
        parts = [
            np.resize(pixels[n : n + BATCH], (BATCH, *pixels.shape[1:])) for n in range(0, len(pixels), BATCH)
        ]
        return np.concatenate([np.asarray(self._network.features(part)) for part in parts])[: len(pixels)]

    def kept_features(self, pixels: np.ndarray, kept: Path) -> np.ndarray:
        """The same of real icons, from a file that keeps them, as they take longer than all else here."""
        if not kept.exists():
            np.save(kept, self.features(pixels))
        return np.asarray(np.load(kept))

    def votes(self, features: np.ndarray) -> np.ndarray:
        """Classes that the nearest real icons by the angle vote for, int ``[N]``."""
        unit, own = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, self._features))
        nearest = np.argsort(-unit @ own.T, axis=1)[:, :NEIGHBOURS]
        return np.array(
            [np.bincount(self._labels[row], minlength=len(self.names)).argmax() for row in nearest]
        )

    def distance(self, features: np.ndarray) -> float:
        """The Fréchet distance of images to those that vote."""
        return frechet_distance(feature_statistics(features), feature_statistics(self._features))


class Row(NamedTuple):
    """A row of the table; see the module."""

    bits: float
    vote: float
    frechet: float
    alike: float
    speed: float
    seconds: float
    steps: int


class Bench(NamedTuple):
    """What priors are measured against.

    Attributes:
      voters: real icons.
      trained: tokens of all rows of training, ``[N, L]``.
    """

    voters: Voters
    trained: np.ndarray

    def alike(self, tokens: np.ndarray) -> float:
        """The share of tokens in common with the most similar row of training, the mean of all grids."""
        rows = tokens.reshape(len(tokens), -1)
        return float(np.mean([(self.trained == row).mean(axis=1).max() for row in rows]))


def train_prior(folder: Path, kind: str, seed: int, args: argparse.Namespace) -> tuple[str, float, int]:
    """Trains a prior; returns its folder, the processor time, and the step of what was the best."""
    started = time.process_time()
    request = TrainPriorRequest(
        tokens=(f"{folder}/tokens-train",),
        validation=f"{folder}/tokens-validation",
        output=f"{folder}/{kind}-{seed}",
        settings=(
            *SETTINGS,
            f"model.kind={kind}",
            f"train.seed={seed}",
            f"train.steps={args.steps}",
            f"train.evaluate_every={max(1, args.steps // 10)}",
            *args.set,
        ),
    )
    summary, taken = finished(train(request)), Path(request.output) / "seconds.txt"
    if not taken.exists():  # the same command measures a finished prior anew, and trains none
        taken.write_text(f"{time.process_time() - started:.1f}\n")
    return summary.model, float(taken.read_text()), summary.best_step or 0


def measure(
    folder: Path, bench: Bench, kind: str, seed: int, args: argparse.Namespace
) -> tuple[Row, np.ndarray]:
    """Trains and scores one prior; returns its row and its samples, the classes in turn."""
    model, seconds, steps = train_prior(folder, kind, seed, args)
    prior = Prior.load(model, batch_size=BATCH)
    config = SamplingConfig(guidance=args.guidance, temperature=args.temperature)
    prior.sample(BATCH, config=config, seed=args.count)  # compiles
    started = time.process_time()
    drawn = prior.sample(args.count, config=config)
    speed = args.count / (time.process_time() - started)
    images = prior.images(drawn)
    asked = np.arange(args.count) % len(bench.voters.names)
    features = bench.voters.features(images)
    voted = bench.voters.votes(features)
    wrong = Counter(bench.voters.names[n] for n in asked[voted != asked])
    say(f"{kind}, seed {seed}: not voted to be of their class: {dict(wrong)}")
    bits = prior.info.card["metrics"]["bits"]["value"]
    vote = float(np.mean(voted == asked))
    return Row(bits, vote, bench.voters.distance(features), bench.alike(drawn), speed, seconds, steps), images


def cells(row: Row) -> list[str]:
    """A row of the table as text."""
    return [
        f"{row.bits:.2f}",
        f"{row.vote:.1%}",
        f"{row.frechet:.1f}",
        f"{row.alike:.0%}",
        f"{row.speed:.1f}",
        f"{row.seconds:.0f} s",
        f"{row.steps:.0f}",
    ]


def write_picture(path: Path, parts: list[np.ndarray], columns: int) -> None:
    """Writes blocks of images below each other, enlarged."""
    tiled = Image.fromarray(tile_images(np.concatenate(parts), columns))
    size = (tiled.width * ENLARGED, tiled.height * ENLARGED)
    write_png(str(path), np.asarray(tiled.resize(size, Image.Resampling.BICUBIC)))


def main() -> None:
    """Trains all priors and prints the table."""
    flags = parser(__doc__ or "")
    flags.add_argument("folder", type=Path, help="what icon_classes.py has made")
    flags.add_argument("--steps", type=int, default=800)
    flags.add_argument("--kinds", nargs="+", default=list(KINDS))
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--count", type=int, default=160, help="samples of each prior")
    flags.add_argument("--each", type=int, default=60, help="icons of training of each class that vote")
    flags.add_argument("--guidance", type=float, default=3.0)
    flags.add_argument("--temperature", type=float, default=0.8)
    flags.add_argument("--set", action="append", default=[], help="a setting of training, as of train-prior")
    args = flags.parse_args()
    enable_compilation_cache()
    trained = open_tokens(f"{args.folder}/tokens-train")
    codec = Codec.load(args.folder / "codec", batch_size=BATCH)
    pixels, labels = read_icons(args.folder / "train.parquet", args.each)
    kept = [args.folder / f"features-{name}-{codec.fingerprint[:12]}.npy" for name in (args.each, "held")]
    voters = Voters(codec.decode(codec.encode(pixels)), labels, kept[0])
    bench = Bench(voters, trained.take(np.arange(len(trained))).tokens)
    real = open_tokens(f"{args.folder}/tokens-validation")
    batch = real.take(np.arange(len(real)))
    decoded = Codec.load(args.folder / "codec", batch_size=BATCH).decode(batch.tokens.reshape(-1, *real.grid))
    voted = voters.votes(voters.kept_features(decoded, kept[1]))
    vote = np.mean(voted == batch.labels)
    say("| prior | bits a token | vote | Fréchet | alike | samples/s | training | best step |")
    say("|---|---|---|---|---|---|---|---|")
    say(f"| real | | {vote:.1%} | | {bench.alike(batch.tokens):.0%} | | | |")
    classes = len(voters.names)
    shown = [np.stack([decoded[batch.labels == n % classes][n // classes] for n in range(2 * classes)])]
    for kind in args.kinds:
        rows = []
        for seed in args.seeds:
            row, images = measure(args.folder, bench, kind, seed, args)
            rows.append(row)
            say(f"| {kind}, seed {seed} | {' | '.join(cells(row))} |")
            if seed == args.seeds[0]:
                shown.append(images[: 2 * classes * ROWS])
        mean, spread = np.mean(rows, axis=0), np.ptp(rows, axis=0)
        pairs = zip(cells(Row(*mean)), cells(Row(*spread)), strict=True)
        say(f"| {kind}, mean (greatest less least) | {' | '.join(f'{a} ({b})' for a, b in pairs)} |")
    write_picture(args.folder / f"classes-{'-'.join(args.kinds)}.png", shown, 2 * classes)


if __name__ == "__main__":
    main()
