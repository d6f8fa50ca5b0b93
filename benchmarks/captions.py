"""Whether a prior obeys its text: real digits and their names, right captions against wrong ones.

Tokenizes the digits of the demo without their classes, gives each three captions ("a handwritten seven", "7",
...), and trains a prior on them: on words, or on vectors that ``examples/embed_captions.py`` makes. Then it
compares, for digits of validation, the likelihood of the tokens under the right caption with that under
a wrong one, for each of the nine wrong digits; and it samples each caption at some scales of guidance, and
lets the real digits nearest to each sample vote on what it is.

    python benchmarks/captions.py
    python benchmarks/captions.py --vectors
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import finished, parser, say, scratch

from pipelines.demo import DIGITS, read_by_neighbours, real_digits, shrink_to_digits
from pipelines.sampling.sample_prior import write_png
from pipelines.tokenize_images import TokenizeConfig
from pipelines.tokenize_images import run_tokenize as tokenize
from pipelines.training.training_prior import TrainPriorRequest
from pipelines.training.training_prior import run_prior_training as train
from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig
from transforms.sources import SourceConfig
from vqgan import Prior, open_tokens
from vqgan.image_grid import tile_images

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HOLDOUT = 10
IMAGE_SIZE = 32  # 16 tokens each, so that it takes minutes on two cores


def captions_of(digit: int) -> list[str]:
    """What is said of an image of a digit; the first is used in validation."""
    return [f"a handwritten {NAMES[digit]}", f"the digit {NAMES[digit]}", f"a small grey {digit}"]


def write_captions(path: Path) -> None:
    """Writes the captions of all digits by key."""
    table = pq.read_table(DIGITS, columns=["key", "label"])
    captions = [captions_of(label) for label in table.column("label").to_pylist()]
    pq.write_table(pa.table({"key": table.column("key"), "caption": captions}), path)


def make_data(folder: str) -> None:
    """Tokenizes the digits without their classes, and writes captions and their vectors."""
    tokenize(
        TokenizeConfig(
            source=SourceConfig(str(DIGITS), key_column="key"),
            output=f"{folder}/tokens",
            codec="tiny",
            geometry=Geometry(image_size=IMAGE_SIZE),
            decode=DecodeConfig(),
            quiet=True,
        ),
        [],
    )
    write_captions(Path(folder) / "captions.parquet")


def train_prior(folder: str, steps: int, vectors: bool) -> str:
    """Trains a prior on words or vectors; returns the folder of its run."""
    output = f"{folder}/run-{'vectors' if vectors else 'words'}"
    settings = (
        f"train.steps={steps}",
        "train.batch_size=64",
        f"data.holdout={HOLDOUT}",
        "data.samples=0",
        "model.layers=2",
        "model.width=96",
        "optimizer.learning_rate=0.004",
    )
    column = "vectors" if vectors else "caption"
    file = "vectors" if vectors else "captions"
    address = f"{folder}/{file}.parquet:{column}"
    request = TrainPriorRequest(
        tokens=(f"{folder}/tokens",),
        output=output,
        settings=settings,
        condition_text=None if vectors else address,
        condition_embeddings=address if vectors else None,
    )
    return finished(train(request)).output


def held_back(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Token grids ``[N, h, w]`` that were not trained on, and what they show, ``[N]``."""
    tokens = open_tokens(f"{folder}/tokens", columns=["key"], holdout=HOLDOUT, validation=True)
    batch = tokens.take(np.arange(len(tokens)))
    table = pq.read_table(DIGITS, columns=["key", "label"])
    labels = dict(zip(table.column("key").to_pylist(), table.column("label").to_pylist(), strict=True))
    return batch.tokens.reshape(-1, *tokens.grid), np.array([labels[key] for key in batch.columns["key"]])


def as_text(prior: Prior, captions: list[str]) -> dict[str, Any]:
    """The keyword of a prior's methods that takes these captions."""
    if prior.config.text_words:
        return {"prompts": captions}
    from embed_captions import embed

    return {"vectors": [embed(caption) for caption in captions]}


def compare(prior: Prior, tokens: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Shares of pairs, and of digits against all nine others, where the right caption is the likelier one."""
    scores = np.stack(
        [
            prior.log_likelihoods(tokens, **as_text(prior, [captions_of(digit)[0]]))
            for digit in range(len(NAMES))
        ],
        axis=1,
    )  # (N, 10)
    right = np.take_along_axis(scores, labels[:, None], axis=1)
    wrong = np.arange(len(NAMES))[None] != labels[:, None]
    return float(np.mean((right > scores)[wrong])), float(np.mean(scores.argmax(axis=1) == labels))


def main() -> None:
    """Runs all parts and prints a row for each figure."""
    flags = parser(__doc__ or "")
    flags.add_argument("--steps", type=int, default=500, help="training steps")
    flags.add_argument("--count", type=int, default=100, help="samples at each scale")
    flags.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    flags.add_argument("--vectors", action="store_true", help="train on vectors in place of words")
    flags.add_argument("--keep", help="folder to work in, kept and continued; a temporary one by default")
    args = flags.parse_args()
    with scratch() as temporary:
        folder = args.keep or str(temporary)
        make_data(folder)
        if args.vectors:
            from embed_captions import embed_column

            embed_column(f"{folder}/captions.parquet", "caption", f"{folder}/vectors.parquet", "vectors")
        run = train_prior(folder, args.steps, args.vectors)
        prior = Prior.load(run, batch_size=50)
        pairs, best = compare(prior, *held_back(folder))
        say("| | |\n|---|---|")
        say(f"| pairs of a right and a wrong caption where the right one is likelier | {pairs:.1%} |")
        say(f"| digits whose right caption is likelier than all nine others | {best:.1%} |")
        asked = np.arange(args.count) % len(NAMES)
        prompts = [captions_of(digit)[0] for digit in range(len(NAMES))]
        for scale in args.guidance:
            drawn = prior.sample(args.count, guidance=scale, temperature=0.8, **as_text(prior, prompts))
            images = prior.images(drawn)
            votes = read_by_neighbours(shrink_to_digits(images), *real_digits())
            say(f"| samples read as what was asked for, guidance {scale:g} | {np.mean(votes == asked):.1%} |")
            write_png(f"{folder}/guidance-{scale:g}.png", tile_images(images, len(NAMES)))


if __name__ == "__main__":
    main()
