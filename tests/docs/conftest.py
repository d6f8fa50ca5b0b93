"""What every document's test has: no network, a Hub in memory, and programs that compile fast."""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.docs.blocks import Block
from tests.docs.reading import PROPERTY, Reader
from tests.pipelines.fake_hub import Hub
from vqgan.downloads import fetch_folder

Typed = Callable[[Reader, Block], None]
_FAST = {"jax_disable_most_optimizations": True, "jax_persistent_cache_min_compile_time_secs": 0}


@pytest.fixture(scope="module", autouse=True)
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The Hub in place of its library; weights of other networks cannot be had, wherever they are kept."""
    folder = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQGAN_CACHE", str(folder / "cache"))
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_CONFIG_FILE", "/dev/null")
        patch.delenv("PIP_FIND_LINKS", raising=False)
        _load_datasets(folder, patch)
        made = Hub(folder / "hub")
        patch.setitem(sys.modules, "huggingface_hub", made)
        fetch_folder.cache_clear()
        yield made
        fetch_folder.cache_clear()


def _load_datasets(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Imports ``datasets`` with the true library of the Hub; it keeps what it makes in ``folder``."""
    import datasets

    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")


@pytest.fixture(scope="module", autouse=True)
def _fast() -> Iterator[None]:
    """A reader's many commands compile the same programs; most of them run once, on little data."""
    before = {name: jax.config.values[name] for name in _FAST}
    _configure(_FAST)
    yield
    _configure(before)


def _configure(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        jax.config.update(name, value)


@pytest.fixture
def typed(record_property: Callable[[str, object], None]) -> Typed:
    """Has a block run, and notes how for the summary at the end."""

    def typed(reader: Reader, block: Block) -> None:
        record_property(PROPERTY, f"{block}: {reader.read(block)}")

    return typed
