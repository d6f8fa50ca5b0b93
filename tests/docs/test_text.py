"""docs/text.md, as its reader types it."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.demo import DIGITS
from tests.docs.blocks import Block
from tests.docs.conftest import Typed
from tests.docs.reading import ROOT, Change, Document, Reader
from tests.docs.standins import make_codec, small_prior
from vqgan.prior.checkpoint import read_prior

PRIORS = ROOT / "tests" / "testdata" / "priors"
DOCUMENT = Document(
    "docs/text.md",
    (
        small_prior("vqgan train-prior --tokens tokens/ --output run/"),
        small_prior("vqgan train-prior --tokens tokens/ --output run-vectors/"),
        Change("--count 20", "--count 4", "takes long"),
        Change("--image-size 256", "--image-size 16 --heads 2", "a small stand-in"),
    ),
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    pq.write_table(pq.read_table(DIGITS).slice(0, 40), folder / "digits.parquet")
    (folder / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "embed_captions.py", folder / "examples")
    shutil.copy(PRIORS / "llamagen-t2i" / "gpt.pt", folder / "t2i_XL_stage1_256.pt")
    make_codec(folder / "vq_ds16_t2i.pt", 16)
    vectors = np.random.default_rng(0).normal(size=(2, 3, 12)).tolist()
    kind = pa.list_(pa.list_(pa.float32(), 12))
    pq.write_table(pa.table({"key": ["a", "b"], "vectors": pa.array(vectors, kind)}), folder / "t5.parquet")
    return Reader(DOCUMENT, folder)


@pytest.mark.parametrize("block", DOCUMENT.blocks, ids=str)
def test_block(block: Block, reader: Reader, typed: Typed) -> None:
    typed(reader, block)


def test_what_it_says_holds(reader: Reader) -> None:
    """Of what the blocks have left behind."""
    info = read_prior(Path(reader.folder, "run"))
    assert {"handwritten", "seven", "digit"} <= set(info.words)
    assert info.config.text_words == len(info.words) + 1
    assert reader.names["right"].shape == (2,)
    assert np.isfinite(reader.names["wrong"]).all()
    assert reader.names["drawn"].shape == (4, 4, 4)
    assert read_prior(Path(reader.folder, "run-vectors")).config.text_width == 64
    imported = read_prior(Path(reader.folder, "t2i")).config
    assert (imported.text_length, imported.text_null) == (120, True)
    for samples, count in (("samples", 4), ("samples-vectors", 4), ("pictures", 4)):
        assert len(list(Path(reader.folder, samples, "images").glob("*.png"))) == count
