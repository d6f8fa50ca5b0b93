"""docs/training.md, as its reader types it."""

import pytest

from tests.docs.blocks import Block
from tests.docs.conftest import Typed
from tests.docs.reading import Change, Document, Reader
from tests.docs.standins import TRAINING, make_photos, small_training

DOCUMENT = Document(
    "docs/training.md",
    (
        small_training("--preset cpu-64"),
        Change('set={"train.seed": 1}', f'set=["train.seed=1", *{TRAINING}]', "half an hour otherwise"),
        Change("vqgan push prior/ owner/name", None, "tests/pipelines/test_pushing_tokens.py does it"),
    ),
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    make_photos(folder / "photos")
    return Reader(DOCUMENT, folder)


@pytest.mark.parametrize("block", DOCUMENT.blocks, ids=str)
def test_block(block: Block, reader: Reader, typed: Typed) -> None:
    typed(reader, block)
