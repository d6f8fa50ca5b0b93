"""Texts that ``vqgan sample`` is given: prompts, or vectors from a file."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.options.model_options import SampleOptions
from pipelines.sampling.given_tokens import GivenText, open_text
from vqgan.errors import UserError
from vqgan.prior.checkpoint import CodecIdentity, PriorInfo
from vqgan.prior.config import PriorConfig


def prior(**fields: int) -> PriorInfo:
    config = PriorConfig(**fields)  # type: ignore[arg-type]
    return PriorInfo(Path("p"), config, "", CodecIdentity("", "", {}, 0), words=("a", "red", "circle"))


WORDS = prior(text_length=3, text_words=4)
VECTORS = prior(text_length=3, text_width=2)


@pytest.fixture
def vectors(tmp_path: Path) -> str:
    kind = pa.list_(pa.list_(pa.list_(pa.float32(), 2)))
    rows = pa.array([[[[1, 2]], [[3, 4], [5, 6]]], [], [[[7, 8]]]], kind)
    pq.write_table(pa.table({"key": ["a", "b", "a"], "v": rows}), tmp_path / "v.parquet")
    return f"{tmp_path}/v.parquet:v"


def test_prompts() -> None:
    text = open_text(GivenText(("a red circle", "")), WORDS)
    assert text is not None
    np.testing.assert_array_equal(text.values, [[1, 2, 3], [0, 0, 0]])
    np.testing.assert_array_equal(text.mask.sum(axis=1), [3, 0])
    assert open_text(GivenText(), WORDS) is None


def test_vectors_in_the_order_of_the_file(vectors: str) -> None:
    text = open_text(GivenText(embeddings=vectors), VECTORS)
    assert text is not None
    np.testing.assert_array_equal(text.mask.sum(axis=1), [1, 2, 1])
    np.testing.assert_array_equal(text.values[:, -1], [[1, 2], [5, 6], [7, 8]])


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (WORDS, "not trained on vectors but on words: give --prompt"),
        (prior(), "not trained on vectors but on classes or nothing: leave it out"),
        (prior(text_length=1, text_width=2), "up to 2 vectors of 2; the prior takes up to 1 of 2"),
        (prior(text_length=3, text_width=5), "the prior takes up to 3 of 5: encode them as for its training"),
    ],
)
def test_refused_vectors(info: PriorInfo, message: str, vectors: str) -> None:
    with pytest.raises(UserError, match=message):
        open_text(GivenText(embeddings=vectors), info)


def test_both_are_refused(vectors: str) -> None:
    with pytest.raises(UserError, match="--prompt and --condition-embeddings: give one of them"):
        open_text(GivenText(("a",), vectors), WORDS)


def test_flags() -> None:
    options = SampleOptions(prior="p", count=1, output="o", prompt=("a red", "a circle"))
    assert options.config().text == GivenText(("a red", "a circle"))
