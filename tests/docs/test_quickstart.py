"""docs/quickstart.md, as its reader types it."""

import pytest

from tests.docs.blocks import Block
from tests.docs.conftest import Typed
from tests.docs.reading import Change, Document, Reader
from tests.docs.standins import MAKE, make_photos, small_prior, small_training

DOCUMENT = Document(
    "docs/quickstart.md",
    (
        MAKE,
        Change(". .venv/bin/activate", None, "the tests run in an environment already"),
        small_training("--preset cpu-64"),
        small_prior("vqgan train-prior --tokens crops/ --output prior/"),
    ),
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    make_photos(folder / "photos", 12)
    return Reader(DOCUMENT, folder)


@pytest.mark.parametrize("block", DOCUMENT.blocks, ids=str)
def test_block(block: Block, reader: Reader, typed: Typed) -> None:
    typed(reader, block)
