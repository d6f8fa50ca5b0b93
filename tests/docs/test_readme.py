"""README.md, as its reader types it."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.docs.blocks import Block
from tests.docs.reading import Change, Document, Reader
from tests.docs.standins import MAKE, make_photos, small_prior, small_training

DOCUMENT = Document(
    "README.md",
    (
        MAKE,
        Change("pip install .", None, "the installation has tests of its own"),
        small_training("--preset cpu-64"),
        small_prior("vqgan train-prior --tokens tokens/ --output prior/"),
        Change("    ...  # batch", "    break  # batch", "the batches have no end"),
    ),
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    make_photos(folder / "photos")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    return Reader(DOCUMENT, folder, {"images": images})


@pytest.mark.parametrize("block", DOCUMENT.blocks, ids=str)
def test_block(block: Block, reader: Reader, typed: Callable[[Reader, Block], None]) -> None:
    typed(reader, block)
