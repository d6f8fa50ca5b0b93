"""docs/prior.md, as its reader types it."""

import pytest

from tests.docs.blocks import Block
from tests.docs.conftest import Typed
from tests.docs.reading import Change, Document, Reader
from tests.docs.standins import make_codec, make_photos, small_prior, tokenize

DOCUMENT = Document(
    "docs/prior.md",
    (
        small_prior("vqgan train-prior --tokens tokens/ --output run/"),
        small_prior("vqgan train-prior --tokens crops/ --output crops-run/"),
        Change("train.steps=1500", "train.steps=3", "24 minutes otherwise"),
        Change("train.evaluate_every=150", "train.evaluate_every=3", "24 minutes otherwise"),
        Change("data.validation_limit=512", "data.validation_limit=8", "24 minutes otherwise"),
        Change("vqgan sample --condition DIR", None, "tests/pipelines/test_sample_prior.py does it"),
        Change("vqgan import-prior CHECKPOINT", None, "importing.md has the whole command, which is run"),
        Change("vqgan train --preset cpu-64", None, "it names what training.md has in full"),
    ),
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    photos = make_photos(folder / "photos")
    tokenize(photos, folder / "tokens", "--folder-labels", "--no-report")
    make_codec(folder / "codec", 64)
    return Reader(DOCUMENT, folder)


@pytest.mark.parametrize("block", DOCUMENT.blocks, ids=str)
def test_block(block: Block, reader: Reader, typed: Typed) -> None:
    typed(reader, block)


def test_samples_of_the_classes_that_were_asked_for(reader: Reader) -> None:
    """Runs after the blocks."""
    assert reader.names["tokens"].shape == (3, 4, 4)
