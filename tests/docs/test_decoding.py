"""docs/decoding.md, as its reader types it."""

import pytest

from tests.docs.blocks import Block
from tests.docs.conftest import Typed
from tests.docs.reading import Change, Document, Reader, missing_names
from tests.docs.standins import make_photos, tokenize

DOCUMENT = Document(
    "docs/decoding.md",
    (
        Change(
            "vqgan tokenize --input 'decoded/data/images-*.parquet'",
            "vqgan tokenize --codec tiny --output again --input 'samples-parquet/data/images-*.parquet'",
            "the table names the flags that matter; these are the images made above",
        ),
        Change(
            "vqgan tokenize --input decoded/images",
            "vqgan tokenize --codec tiny --output again-2 --input data/decoded/images",
            "the table names the flags that matter; these are the images made above",
        ),
        Change("vqgan verify decoded", "vqgan verify data/decoded", "the images made above"),
    ),
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    photos = make_photos(folder / "photos")
    tokenize(photos, folder / "data" / "tokens", "--no-report")
    tokenize(photos, folder / "samples", "--no-report")
    return Reader(DOCUMENT, folder)


@pytest.mark.parametrize("block", DOCUMENT.blocks, ids=str)
def test_block(block: Block, reader: Reader, typed: Typed) -> None:
    typed(reader, block)


def test_the_tree_shows_what_is_written(reader: Reader) -> None:
    """Runs after the blocks."""
    (tree,) = (block for block in DOCUMENT.blocks if block.kind == "tree")
    assert missing_names(tree, [reader.folder / "data" / "decoded"]) == []
