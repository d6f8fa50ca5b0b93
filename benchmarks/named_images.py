"""Whether a prior obeys the names of coloured images: right names against wrong ones, and what it draws.

Trains a prior on token sets and captions (Parquet: ``key``, ``caption`` with one or a list, ``group``), on
words, or on vectors that ``examples/embed_captions.py`` makes. Then compares, for images of validation, the
likelihood of the tokens under the right caption, the first and the last one, with that under wrong ones:
those of other such images, and those of another group. Words that no image to train on has are left out;
captions of which nothing is left, and pairs that are alike without those words, are not compared. At last it
samples some prompts at some scales of guidance.

    python benchmarks/named_images.py --tokens icons/tokens-train --validation icons/tokens-validation \\
        --captions icons/captions.parquet --output names/ --prompts "red heart" "grinning face"
    python benchmarks/named_images.py --tokens photo-tokens/ --captions photos.parquet --output photo-names/
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from captions import as_text
from common import finished, parser, say

from pipelines.sampling.sample_prior import write_png
from pipelines.training.training_prior import TrainPriorRequest
from pipelines.training.training_prior import run_prior_training as train
from vqgan import Prior, open_tokens
from vqgan.compilation_cache import enable_compilation_cache
from vqgan.image_grid import tile_images
from vqgan.prior.text import split_words

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

SETTINGS = (  # 0.45 million parameters
    "model.layers=3",
    "model.width=96",
    "train.batch_size=32",
    "train.patience=3",
    "optimizer.learning_rate=0.003",
    "data.samples=0",
)


def train_prior(args: argparse.Namespace) -> str:
    """Trains a prior on the captions; returns its folder."""
    column = f"{args.captions}:caption"
    if args.vectors:
        from embed_captions import embed_column

        column = f"{args.output}/vectors.parquet:vectors"
        embed_column(str(args.captions), "caption", column.partition(":")[0], "vectors")
    request = TrainPriorRequest(
        tokens=(args.tokens,),
        validation=args.validation,
        output=f"{args.output}/run{'-vectors' * args.vectors}",
        settings=(
            *SETTINGS,
            f"data.holdout={args.holdout}",
            f"train.seed={args.seed}",
            f"train.steps={args.steps}",
            f"train.evaluate_every={max(1, args.steps // 10)}",
            *args.set,
        ),
        condition_text=None if args.vectors else column,
        condition_embeddings=column if args.vectors else None,
    )
    return finished(train(request)).model


def held_back(args: argparse.Namespace) -> tuple[np.ndarray, list[str]]:
    """Token grids ``[N, h, w]`` of validation, the first view of each image, and the images' keys."""
    where, holdout = (args.validation, 0) if args.validation else (args.tokens, args.holdout)
    tokens = open_tokens(where, columns=["key", "view"], holdout=holdout, validation=bool(holdout))
    batch = tokens.take(np.arange(len(tokens)))
    first = np.flatnonzero(batch.columns["view"] == 0)
    return batch.tokens.reshape(-1, *tokens.grid)[first], [batch.columns["key"][n] for n in first]


def known_name(prior: Prior, name: str) -> str:
    """The words of a name that the prior knows, as many as it takes; for a prior of vectors all of them."""
    known = [word for word in split_words(name) if not prior.info.words or word in prior.info.words]
    return " ".join(known[: prior.config.text_length])


def draw_pairs(names: list[str], groups: list[str], wrong: int, across: bool, seed: int) -> np.ndarray:
    """Draws pairs of an image and one whose name is wrong for it, int ``[M, 2]``.

    Args:
      names: what is known of each image's name; images without are left out.
      groups: of each image.
      wrong: names that are drawn for each image, some perhaps twice.
      across: of another group only.
      seed: of the draws.
    """
    rng, pairs = np.random.default_rng(seed), []
    for one, name in enumerate(names):
        fits = [
            other
            for other in range(len(names))
            if names[other] and names[other] != name and not (across and groups[other] == groups[one])
        ]
        if name and fits:
            pairs += [(one, other) for other in rng.choice(fits, wrong)]
    return np.array(pairs).reshape(-1, 2)


def share_right(prior: Prior, tokens: np.ndarray, names: list[str], pairs: np.ndarray) -> float:
    """The share of pairs in which an image is likelier under its own name than under the other's."""
    own, other = pairs.T
    images, place = np.unique(own, return_inverse=True)
    right = prior.log_likelihoods(tokens[images], **as_text(prior, [names[n] for n in images]))
    wrong = prior.log_likelihoods(tokens[own], **as_text(prior, [names[n] for n in other]))
    return float(np.mean(right[place] > wrong))


def draw_prompts(prior: Prior, args: argparse.Namespace) -> None:
    """Writes ``prompts.png``: a column for each prompt, two rows for each scale of guidance."""
    count, rows = 2 * len(args.prompts), []
    for scale in args.guidance:
        drawn = prior.sample(count, guidance=scale, temperature=0.9, **as_text(prior, args.prompts))
        rows.append(prior.images(drawn))
    write_png(f"{args.output}/prompts.png", tile_images(np.concatenate(rows), len(args.prompts)))


def main() -> None:
    """Trains, compares and draws."""
    flags = parser(__doc__ or "")
    flags.add_argument("--tokens", required=True, help="token data set to train on")
    flags.add_argument("--validation", help="token data set of validation; a share of --tokens by default")
    flags.add_argument("--captions", type=Path, required=True, help="Parquet: key, caption, group")
    flags.add_argument("--output", type=Path, required=True)
    flags.add_argument("--vectors", action="store_true", help="train on vectors in place of words")
    flags.add_argument("--steps", type=int, default=400)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--holdout", type=int, default=8, help="without --validation")
    flags.add_argument("--wrong", type=int, default=4, help="wrong names for each image")
    flags.add_argument("--prompts", nargs="*", default=[])
    flags.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0, 6.0])
    flags.add_argument("--set", action="append", default=[], help="as vqgan train-prior takes it")
    args = flags.parse_args()
    enable_compilation_cache()
    args.output.mkdir(parents=True, exist_ok=True)
    prior = Prior.load(train_prior(args), batch_size=64)
    tokens, keys = held_back(args)
    table = pq.read_table(args.captions)
    said = [[caption] if isinstance(caption, str) else caption for caption in table["caption"].to_pylist()]
    captions = dict(zip(table["key"].to_pylist(), said, strict=True))
    groups = dict(zip(table["key"].to_pylist(), table["group"].to_pylist(), strict=True))
    say("| what the right name is compared with | images | pairs | right one likelier |\n|---|---|---|---|")
    for number, what in ((0, "name"), (-1, "name and group")):
        names = [known_name(prior, captions[key][number]) for key in keys]
        for across in (False, True):
            pairs = draw_pairs(names, [groups[key] for key in keys], args.wrong, across, args.seed)
            share = share_right(prior, tokens, names, pairs)
            whose = "another group's" if across else "any other image's"
            say(f"| {whose} {what} | {len(set(pairs[:, 0]))} | {len(pairs)} | {share:.1%} |")
    if args.prompts:
        draw_prompts(prior, args)


if __name__ == "__main__":
    main()
