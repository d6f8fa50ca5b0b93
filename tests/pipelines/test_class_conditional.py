"""The whole circle on real images with classes: digits to tokens, a prior, and samples that show it."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import cli
from pipelines.demo import DIGITS
from vqgan.data.tokens import all_batches, open_tokens
from vqgan.training.logs import read_metrics

pytestmark = pytest.mark.usefixtures("few_optimizations")

CLASSES = (0, 1, 7)
STEPS = 220


def vqgan(*argv: object) -> None:
    assert cli.main([str(argument) for argument in argv]) == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokens of three digits, a prior trained on them, samples of it, and their images."""
    folder = tmp_path_factory.mktemp("digits")
    table = pq.read_table(DIGITS)
    kept = table.filter(pc.is_in(table.column("label"), value_set=pa.array(CLASSES, pa.int32())))
    pq.write_table(kept, folder / "digits.parquet")
    source = ["--input", folder / "digits.parquet", "--key-column", "key", "--label-column", "label"]
    common = ["--codec", "tiny", "--image-size", 32, "--batch-size", 32, "--no-report", "--quiet"]
    vqgan("tokenize", *source, "--output", folder / "tokens", *common)
    settings = [
        "model.layers=2",
        "model.width=64",
        f"train.steps={STEPS}",
        "train.batch_size=64",
        f"train.evaluate_every={STEPS}",
        f"train.save_every={STEPS}",
        "data.samples=0",
        "data.holdout=10",
        "optimizer.learning_rate=0.004",
    ]
    flags = [part for setting in settings for part in ("--set", setting)]
    vqgan("train-prior", "--tokens", folder / "tokens", "--output", folder / "run", *flags, "--quiet")
    draw = ["--prior", folder / "run", "--output", folder / "samples", "--count", 90, "--guidance", 2]
    classes = [part for number in CLASSES for part in ("--class", number)]
    vqgan("sample", *draw, *classes, "--batch-size", 30, "--no-images", "--quiet")
    decode = ["--tokens", folder / "samples", "--output", folder / "images", "--format", "parquet"]
    vqgan("decode", *decode, "--batch-size", 30, "--no-report", "--quiet")
    return folder


def images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images of a data set reduced to 8 by 8 grey values ``[N, 64]``, and their classes ``[N]``."""
    table = pq.read_table(folder)
    column = table.column("image")
    data = [value["bytes"] if isinstance(value, dict) else value for value in column.to_pylist()]
    opened = (Image.open(io.BytesIO(value)).convert("L") for value in data)
    grey = [image.resize((8, 8), Image.Resampling.BOX) for image in opened]
    values = np.stack([np.asarray(image, np.float32).reshape(-1) for image in grey])
    return values, table.column("label").to_numpy()


def test_samples_show_their_class(run: Path) -> None:
    """The real digits nearest to a sample say what it is; a guess would be right one time in three."""
    real, classes = images(run / "digits.parquet")
    found, asked = images(run / "images" / "data" / "images-00000-of-00001.parquet")
    nearest = np.argsort(((found[:, None] - real[None]) ** 2).sum(axis=-1), axis=1)[:, :5]
    votes = np.array([np.bincount(classes[row]).argmax() for row in nearest])
    assert len(votes) == 90
    assert np.mean(votes == asked) > 0.6
    for number in CLASSES:
        assert np.mean(votes[asked == number] == number) > 0.4


def test_validation_is_far_below_the_unigram_entropy(run: Path) -> None:
    figures = [
        record for record in read_metrics(run / "run" / "metrics.jsonl") if "validation/loss" in record
    ]
    assert figures[-1]["validation/loss"] < 0.75 * figures[-1]["validation/unigram"]


def test_samples_are_rows_like_any_other(run: Path) -> None:
    """The reader takes them, and so could a prior that is trained on them."""
    tokens = open_tokens(str(run / "samples"))
    (batch,) = all_batches(tokens, 100)
    assert sorted(set(batch.labels.tolist())) == list(CLASSES)
    assert batch.tokens.shape == (90, 16)
