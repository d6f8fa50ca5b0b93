"""docs/reading-tokens.md, as its reader types it."""

from typing import Any

import pytest

from tests.docs.blocks import Block
from tests.docs.conftest import Typed
from tests.docs.reading import Change, Document, Reader
from tests.docs.standins import make_photos, tokenize

DOCUMENT = Document(
    "docs/reading-tokens.md",
    (
        Change("vqgan decode --tokens", None, "it names a flag; decoding.md has whole commands"),
        Change(
            "    train(batch.tokens, batch.labels)  #",
            "    train(batch.tokens, batch.labels); break  #",
            "the batches have no end",
        ),
    ),
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    tokenize(make_photos(folder / "photos"), folder / "tokens", "--folder-labels", "--no-report")
    seen: list[Any] = []
    return Reader(
        DOCUMENT, folder, {"train": lambda tokens, labels: seen.append((tokens, labels)), "seen": seen}
    )


@pytest.mark.parametrize("block", DOCUMENT.blocks, ids=str)
def test_block(block: Block, reader: Reader, typed: Typed) -> None:
    typed(reader, block)


def test_what_is_trained_on(reader: Reader) -> None:
    """Runs after the blocks."""
    ((tokens, labels),) = reader.names["seen"]
    assert (tokens.shape, str(tokens.dtype)) == ((256, 16), "int32")
    assert set(labels.tolist()) == set(range(10))


def test_grain_gives_the_same_batches(reader: Reader) -> None:
    """Runs after the blocks."""
    batches, dataset = reader.names["batches"], reader.names["dataset"]
    for number, batch in zip(range(3), dataset, strict=False):
        assert (batch.tokens == batches.batch(number).tokens).all()
