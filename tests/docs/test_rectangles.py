"""docs/rectangles.md, as its reader types it."""

from pathlib import Path

import pytest
from PIL import Image

from tests.docs.blocks import Block
from tests.docs.conftest import Typed
from tests.docs.reading import Change, Document, Reader
from tests.docs.standins import PHOTOS, small_prior
from transforms.tokenizing.buckets import describe_buckets

SHORT = "takes long"
DOCUMENT = Document(
    "docs/rectangles.md",
    (
        Change("--image-size 256x384", "--image-size 32x48", SHORT),
        Change("--keep-rows 16", "--keep-rows 2", "the grid is smaller"),
        Change("--grid 48x64", "--grid 6x8", "the grid is smaller"),
        Change("(32, 48)", "(4, 6)", "the grid is smaller"),
        Change("--buckets 256x256,256x384,384x256", "--buckets 32x32,32x48,48x32", SHORT),
        Change("buckets/256x384", "buckets/32x48", SHORT),
        Change("buckets/384x256", "buckets/48x32", SHORT),
        small_prior("train-prior"),
    ),
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    (folder / "photos").mkdir()
    for number, size in enumerate([(60, 40), (40, 60), (50, 50)] * 8):
        with Image.open(PHOTOS[number % len(PHOTOS)]) as image:
            image.resize(size).save(folder / "photos" / f"{number}.jpg")
    return Reader(DOCUMENT, folder)


@pytest.mark.parametrize("block", DOCUMENT.blocks, ids=str)
def test_block(block: Block, reader: Reader, typed: Typed) -> None:
    typed(reader, block)


def test_what_it_says_holds(reader: Reader) -> None:
    """Of what the blocks have left behind."""
    assert reader.names["images"].shape == (2, 32, 48, 3)
    found = describe_buckets(str(Path(reader.folder, "buckets")))
    assert {name: counts["images"] for name, counts in found["data_sets"].items()} == {
        "32x32": 8,
        "32x48": 8,
        "48x32": 8,
    }
    first = next(Path(reader.folder, "landscapes", "images").glob("*.png"))
    with Image.open(first) as image:
        assert image.size == (48, 32)
