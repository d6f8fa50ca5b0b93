"""Whether samples of a class-conditional prior show their class: real digits, judged by their neighbours.

Tokenizes the digits of the demo, trains a prior, samples every class at some scales of guidance, and lets
the real digits nearest to each sample vote on what it is. Prints the share that is voted to be of the class
that was asked for, beside that of real digits which were encoded and decoded (each judged without itself).

    python benchmarks/digits.py --steps 1000
"""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from common import finished, parser, say, scratch

from pipelines.demo import DIGITS, read_by_neighbours, real_digits, shrink_to_digits
from pipelines.sampling.sample_prior import SampleConfig
from pipelines.sampling.sample_prior import run_sample as sample
from pipelines.tokenize_images import TokenizeConfig
from pipelines.tokenize_images import run_tokenize as tokenize
from pipelines.training.training_prior import TrainPriorRequest
from pipelines.training.training_prior import run_prior_training as train
from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig
from transforms.sources import SourceConfig
from vqgan.codec import Codec
from vqgan.prior.sampling.config import SamplingConfig


def read_rows(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Token grids and classes of a data set."""
    manifest = json.loads((Path(folder) / "manifest.json").read_text())
    tables = [pq.read_table(Path(folder) / entry["name"]) for entry in manifest["shards"]]
    tokens = np.concatenate([np.stack(table.column("tokens").to_numpy()) for table in tables])
    labels = np.concatenate([table.column("label").to_numpy() for table in tables])
    return tokens.reshape(-1, *manifest["grid"]).astype(np.int32), labels


def main() -> None:
    """Runs all parts and prints a row for each scale."""
    flags = parser(__doc__ or "")
    flags.add_argument("--steps", type=int, default=1000, help="training steps")
    flags.add_argument("--count", type=int, default=200, help="samples at each scale")
    flags.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 3.0, 4.0])
    flags.add_argument("--keep", help="folder to work in, kept and continued; a temporary one by default")
    args = flags.parse_args()
    with scratch() as temporary:
        folder = args.keep or temporary
        tokenize(
            TokenizeConfig(
                source=SourceConfig(str(DIGITS), key_column="key", label_column="label"),
                output=f"{folder}/tokens",
                codec="tiny",
                geometry=Geometry(image_size=64),
                decode=DecodeConfig(),
                quiet=True,
            ),
            [],
        )
        settings = (
            f"train.steps={args.steps}",
            "train.batch_size=32",
            "data.holdout=10",
            "optimizer.learning_rate=0.002",
        )
        request = TrainPriorRequest(tokens=(f"{folder}/tokens",), output=f"{folder}/run", settings=settings)
        finished(train(request))
        pixels, classes = real_digits()
        codec = Codec.load("tiny", batch_size=50)
        tokens, labels = read_rows(f"{folder}/tokens")
        chosen = np.arange(0, len(tokens), max(1, len(tokens) // args.count))
        votes = read_by_neighbours(
            shrink_to_digits(codec.decode(tokens[chosen])), pixels, classes, own=chosen
        )
        say("| images | voted to be of their class |\n|---|---|")
        say(f"| real, encoded and decoded | {np.mean(votes == labels[chosen]):.1%} |")
        for scale in args.guidance:
            output = f"{folder}/samples-{scale:g}"
            sample(
                SampleConfig(
                    f"{folder}/run", output, args.count, settings=SamplingConfig(guidance=scale), quiet=True
                )
            )
            tokens, labels = read_rows(output)
            share = np.mean(
                read_by_neighbours(shrink_to_digits(codec.decode(tokens)), pixels, classes) == labels
            )
            say(f"| samples, guidance {scale:g} | {share:.1%} |")


if __name__ == "__main__":
    main()
