"""docs/vectors.md, as its reader types it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.docs.blocks import Block
from tests.docs.conftest import Typed
from tests.docs.reading import Change, Document, Reader
from tests.docs.standins import PHOTOS

DOCUMENT = Document(
    "docs/vectors.md",
    (
        Change("(128, 128)", "(32, 32)", "takes long"),
        Change("--image-size 128", "--image-size 32", "takes long"),
    ),
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    (folder / "photos").mkdir()
    for name, path in zip("ab", PHOTOS, strict=False):
        with Image.open(path) as image:
            image.resize((40, 40)).save(Path(folder, "photos", f"{name}.jpg"))
    return Reader(DOCUMENT, folder)


@pytest.mark.parametrize("block", DOCUMENT.blocks, ids=str)
def test_block(block: Block, reader: Reader, typed: Typed) -> None:
    typed(reader, block)


def test_what_it_says_holds(reader: Reader) -> None:
    """Of what the blocks have left behind."""
    names = reader.names
    np.testing.assert_array_equal(names["tokens"].take([0, 1]).tokens, names["batch"].tokens)
    assert names["stored"].shape == (2, 4, 4, 8)
    assert names["agreement"] > 0.9
    assert names["value"] < names["loss"](names["jnp"].eye(3))
