"""What every document's test has: no network, and a Hub of its own."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import Block
from tests.docs.reading import PROPERTY, Reader
from tests.docs.standins import Hub

Typed = Callable[[Reader, Block], None]


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Weights of other networks cannot be had, wherever a machine keeps them; the Hub is a folder."""
    folder = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQGAN_CACHE", str(folder / "cache"))
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_CONFIG_FILE", "/dev/null")
        patch.delenv("PIP_FIND_LINKS", raising=False)
        patch.setitem(sys.modules, "huggingface_hub", Hub(folder / "hub"))
        yield


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder."""
    return tmp_path_factory.mktemp("reader")


@pytest.fixture
def typed(record_property: Callable[[str, object], None]) -> Typed:
    """Has a block run, and notes how for the summary at the end."""

    def typed(reader: Reader, block: Block) -> None:
        record_property(PROPERTY, f"{block}: {reader.read(block)}")

    return typed
