"""docs/data-format.md, as its reader types it."""

import pytest

from tests.docs.blocks import Block
from tests.docs.conftest import Typed
from tests.docs.reading import Change, Document, Reader, missing_names
from tests.docs.standins import make_photos, tokenize

DOCUMENT = Document(
    "docs/data-format.md",
    (
        Change(
            "vqgan inspect SHARD",
            "vqgan inspect tokens/data/tokens-00000-of-00001.parquet",
            "a name for any shard",
        ),
    ),
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    tokenize(make_photos(folder / "photos"), folder / "tokens")
    return Reader(DOCUMENT, folder)


@pytest.mark.parametrize("block", DOCUMENT.blocks, ids=str)
def test_block(block: Block, reader: Reader, typed: Typed) -> None:
    typed(reader, block)


def test_the_tree_shows_what_is_written(reader: Reader) -> None:
    (tree,) = (block for block in DOCUMENT.blocks if block.kind == "tree")
    assert missing_names(tree, [reader.folder / "tokens"]) == []


def test_the_first_shard_is_decoded(reader: Reader) -> None:
    """Runs after the blocks."""
    assert reader.names["images"].shape == (20, 32, 32, 3)
