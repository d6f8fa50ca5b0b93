"""Addresses on the Hub, and which of its errors say that something is not there."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from vqgan import downloads as vqgan_hub
from vqgan.data.tokens import open_tokens
from vqgan.downloads import is_missing, is_unreachable
from vqgan.importers.source import fetch_checkpoint
from vqgan.manifest import resolve_dataset

Refused = Callable[[str], AbstractContextManager[None]]
ADDRESS = "hf://datasets/owner/name"


class EntryNotFoundError(Exception):
    """Bears the name of the library's, as the others do."""


class RemoteEntryNotFoundError(EntryNotFoundError, OSError):
    pass


class LocalEntryNotFoundError(EntryNotFoundError, FileNotFoundError):
    pass


class OfflineModeIsEnabled(ConnectionError):  # noqa: N818
    pass


class ConnectError(Exception):
    pass


class RepositoryNotFoundError(OSError):
    pass


def cause(error: Exception, reason: Exception) -> Exception:
    error.__cause__ = reason
    return error


OFFLINE = cause(LocalEntryNotFoundError("not in the cache"), OfflineModeIsEnabled("offline"))
UNREACHED = cause(LocalEntryNotFoundError("not in the cache"), ConnectError("refused"))


class Library:
    """Gives the files of a folder, or raises what a file's name is mapped to."""

    def __init__(self, folder: Path, errors: dict[str, Exception]) -> None:
        self.folder = folder
        self.errors = errors
        self.asked: list[str] = []

    def hf_hub_download(self, repo: str, name: str, **where: Any) -> str:
        self.asked.append(name)
        if name in self.errors:
            raise self.errors[name]
        if not (self.folder / name).is_file():
            raise RemoteEntryNotFoundError(f"404: {name}")
        return str(self.folder / name)

    def snapshot_download(self, repo: str, **options: Any) -> str:
        self.asked.append("snapshot")
        if "snapshot" in self.errors:
            raise self.errors["snapshot"]
        return str(self.folder)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """The library with one checkpoint in it."""
    made = Library(tmp_path, {})
    (tmp_path / "model.ckpt").write_bytes(b"weights")
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    for cached in (vqgan_hub.fetch_folder, fetch_checkpoint):
        cached.cache_clear()
    yield made
    for cached in (vqgan_hub.fetch_folder, fetch_checkpoint):
        cached.cache_clear()


def test_the_librarys_own_errors() -> None:
    errors = pytest.importorskip("huggingface_hub.errors")
    assert is_missing(errors.LocalEntryNotFoundError("no"))
    assert issubclass(errors.RemoteEntryNotFoundError, errors.EntryNotFoundError)
    assert not is_missing(errors.OfflineModeIsEnabled("offline"))
    assert not is_unreachable(errors.LocalEntryNotFoundError("no"))
    assert not is_unreachable(
        cause(errors.LocalEntryNotFoundError("no"), errors.OfflineModeIsEnabled("offline"))
    )
    assert is_unreachable(cause(errors.LocalEntryNotFoundError("no"), ConnectError("refused")))


@pytest.mark.parametrize(
    "error", [RemoteEntryNotFoundError("404"), OFFLINE, LocalEntryNotFoundError("local only")]
)
def test_a_checkpoint_without_a_configuration_beside_it(library: Library, error: Exception) -> None:
    library.errors = dict.fromkeys(("config.json", "config.yaml", "model.yaml"), error)
    assert fetch_checkpoint("hf://owner/name/model.ckpt") == library.folder / "model.ckpt"
    assert library.asked == ["model.ckpt", "config.json", "config.yaml", "model.yaml"]


@pytest.mark.parametrize(
    "error", [UNREACHED, PermissionError("cache\nnot writable"), RepositoryNotFoundError("gone")]
)
@pytest.mark.parametrize("name", ["config.json", "model.yaml"])
def test_a_configuration_that_may_be_there_is_not_passed_over(
    library: Library, error: Exception, name: str, refused: Refused
) -> None:
    library.errors = {name: error}
    with refused(rf"^hf://owner/name/model.ckpt: unavailable \({type(error).__name__}: "):
        fetch_checkpoint("hf://owner/name/model.ckpt")


def test_what_is_in_the_cache_serves_where_the_hub_cannot_be_reached(
    library: Library, refused: Refused
) -> None:
    library.errors = {"codec.json": UNREACHED}
    assert fetch_checkpoint("hf://owner/name") == library.folder
    library.errors = {"codec.json": PermissionError("no")}
    fetch_checkpoint.cache_clear()
    with refused("unavailable .PermissionError: no"):
        fetch_checkpoint("hf://owner/name")


def test_a_data_set_is_no_model(library: Library, refused: Refused) -> None:
    with refused(f"^{ADDRESS}: is a data set, no model"):
        fetch_checkpoint(ADDRESS)
    assert library.asked == []


@pytest.mark.parametrize("path", ["tokens/", "s3://bucket/tokens", "hf://owner/name", "/a/hf://datasets/b"])
def test_other_places_stay_as_they_are(library: Library, path: str) -> None:
    assert resolve_dataset(path) == path
    assert library.asked == []


@pytest.mark.parametrize(
    "rest", ["", "name", "owner/name/data/a.parquet", "owner/name@", "owner/name?a=b", "../name/x"]
)
def test_malformed_addresses(library: Library, rest: str, refused: Refused) -> None:
    with refused("write it as hf://datasets/owner/name or with @revision"):
        resolve_dataset(f"hf://datasets/{rest}")
    assert library.asked == []


def test_another_data_set_is_not_downloaded(library: Library, refused: Refused) -> None:
    with refused(
        f"^{ADDRESS}: there is no finished token data set .no manifest.json.; check name and revision"
    ):
        open_tokens(ADDRESS)
    assert library.asked == ["manifest.json"]


@pytest.mark.parametrize("name", ["manifest.json", "snapshot"])
@pytest.mark.parametrize("error", [UNREACHED, RepositoryNotFoundError("401"), OSError("full\ndisk")])
def test_what_cannot_be_had_is_one_line(
    library: Library, name: str, error: Exception, refused: Refused
) -> None:
    (library.folder / "manifest.json").write_text("{}")
    library.errors = {name: error}
    with refused(f"^{ADDRESS}: unavailable .{type(error).__name__}: .*; check name, revision and network"):
        open_tokens(ADDRESS)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    vqgan_hub.fetch_folder.cache_clear()
    with refused(rf"^{ADDRESS} needs huggingface_hub .*pip install huggingface-hub"):
        open_tokens(ADDRESS)


def test_reading_tokens_loads_neither_the_library_nor_importers() -> None:
    code = (
        "import sys, vqgan.data.token_batches, vqgan.data.tokens;"
        "unwanted = ('huggingface_hub', 'vqgan.importers', 'jax', 'pandas');"
        "print(sorted(name for name in sys.modules if name.startswith(unwanted)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]", done.stderr
