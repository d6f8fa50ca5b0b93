"""README.md, as its reader types it."""

import numpy as np
import pytest

from tests.docs.blocks import Block
from tests.docs.conftest import Typed
from tests.docs.reading import Change, Document, Reader
from tests.docs.standins import MAKE, make_photos, small_prior, small_training
from vqgan.codec_checkpoint import read_info

DOCUMENT = Document(
    "README.md",
    (
        MAKE,
        Change("pip install .", None, "the installation has tests of its own"),
        small_training("--preset cpu-64"),
        small_prior("vqgan train-prior --tokens tokens/ --output prior/"),
        Change("vqgan browse", None, "it serves until Ctrl-C, and has tests of its own"),
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
def test_block(block: Block, reader: Reader, typed: Typed) -> None:
    typed(reader, block)


def test_the_pushed_codec_loads_from_the_hub(reader: Reader) -> None:
    """Runs after the blocks."""
    ours = read_info(str(reader.folder / "run"))
    assert read_info("hf://owner/name").fingerprint == ours.fingerprint


def test_all_tools_see_the_same_tokens(reader: Reader) -> None:
    tokens = reader.names["tokens"]
    assert tokens.shape == (20, 256)
    assert reader.names["table"].num_rows == 20
    assert len(np.unique(tokens)) > 100
