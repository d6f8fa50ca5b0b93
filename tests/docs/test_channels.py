"""docs/channels.md, as its reader types it."""

import numpy as np
import pytest
from PIL import Image

from tests.docs.blocks import Block
from tests.docs.conftest import Typed
from tests.docs.reading import Change, Document, Reader
from tests.docs.standins import PHOTOS, small_training

DOCUMENT = Document(
    "docs/channels.md",
    (
        Change(
            "vqgan train --preset tiny --input rgba/ --output run-rgba/ --set model.channels.count=4",
            None,
            "tests/pipelines/test_channels.py does it",
        ),
        small_training("--preset tiny"),
        Change("--image-size 64", "--image-size 32", "takes long"),
        Change("(2, 64, 64, 6)", "(2, 32, 32, 6)", "takes long"),
    ),
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    (folder / "photos").mkdir()
    for number, path in enumerate(PHOTOS):
        with Image.open(path) as image:
            image.resize((40, 40)).save(folder / "photos" / f"{number}.jpg")
    return Reader(DOCUMENT, folder)


@pytest.mark.parametrize("block", DOCUMENT.blocks, ids=str)
def test_block(block: Block, reader: Reader, typed: Typed) -> None:
    typed(reader, block)


def test_what_it_says_holds(reader: Reader) -> None:
    """Of what the blocks have left behind."""
    decoded = np.load(reader.folder / "decoded" / "images" / "0.npy.npy")
    assert decoded.shape == (32, 32, 6)
    assert decoded.dtype == np.float32
    assert 0 <= decoded.min() <= decoded.max() <= 10000
    with Image.open(reader.folder / "grey-decoded" / "images" / "0.jpg.png") as image:
        assert image.mode == "L"
