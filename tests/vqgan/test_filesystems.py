"""Places, local and in stores: what is there, and one line for each that cannot be looked at."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from vqgan import filesystems, publishing
from vqgan.errors import UserError

BOTH = pytest.mark.parametrize("scheme", ["", "file://"])


@BOTH
def test_looking_around(tmp_path: Path, scheme: str) -> None:
    root = f"{scheme}{tmp_path}"
    (tmp_path / "b").write_bytes(b"12")
    (tmp_path / ".a").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "c").touch()
    assert filesystems.list_names(root) == [".a", "b"]
    assert filesystems.list_names(f"{root}/missing") == []
    assert filesystems.exists(f"{root}/folder")
    assert not filesystems.exists(f"{root}/missing")
    assert filesystems.file_info(f"{root}/b").size == 2
    publishing.delete(f"{root}/b")
    publishing.delete(f"{root}/b")
    assert filesystems.list_names(root) == [".a"]


def test_listing_a_folder_that_is_made_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is not there when pyarrow lists it, and is when pyarrow looks why."""

    class Late(fs.LocalFileSystem):  # type: ignore[misc]
        def get_file_info(self, selector: fs.FileSelector) -> Any:
            if not (tmp_path / "new").exists():
                (tmp_path / "new").mkdir()
                raise FileNotFoundError(2, "Cannot list directory")
            return super().get_file_info(selector)

    monkeypatch.setattr(filesystems, "resolve", lambda path: (Late(), path))
    assert filesystems.list_entries(str(tmp_path / "new")) == []


def test_listing_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match="cannot be listed"):
        filesystems.list_names(str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("root", "joined"),
    [
        ("/a", "/a/b"),
        ("/a/", "/a/b"),
        ("/", "/b"),
        ("a", "a/b"),
        ("s3://k", "s3://k/b"),
        ("gs://k/p/", "gs://k/p/b"),
    ],
)
def test_join(root: str, joined: str) -> None:
    assert filesystems.join(root, "b") == joined


def test_resolve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert filesystems.resolve("~/x")[1] == f"{tmp_path}/x"
    filesystem, inner = filesystems.resolve(f"file://{tmp_path}/x%20y")
    assert isinstance(filesystem, fs.LocalFileSystem)
    assert inner == f"{tmp_path}/x y"
    with pytest.raises(UserError, match=r"^what://x: cannot open this location"):
        filesystems.resolve("what://x")


STORE = "scheme=http&endpoint_override=127.0.0.1:9"


@pytest.mark.parametrize(
    "path",
    [
        *("gs://anonymous@bucket", "gs://anonymous@bucket/", "gs://anonymous@bucket/a/b.txt"),
        *("gs://anonymous@bucket/a/", "gs://anonymous@bucket/a%20b/%C3%A4.txt", "gs://anonymous@bucket/a//b"),
        *("s3://id:key@bucket/a%2Fb", "s3://id:key@bucket/=;,@!$'()*+/a.jpg", "s3://id:key@bucket"),
    ],
)
def test_a_store_has_one_client(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are what pyarrow makes of them; the client is shared by all of a bucket, but not with a fork."""
    uri = f"{path}?{STORE}"
    filesystem, inner = filesystems.resolve(uri)
    late = "&allow_delayed_open=true" if path.startswith("s3:") else ""  # no multipart uploads of small files
    expected, path_there = fs.FileSystem.from_uri(uri + late)
    assert filesystem.equals(expected)
    assert inner == path_there
    assert filesystems.resolve(filesystems.join(uri, "more"))[0] is filesystem
    assert filesystems.resolve(uri.replace("bucket", "other"))[0] is not filesystem
    assert pickle.loads(pickle.dumps(filesystem)).equals(filesystem)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert filesystems.resolve(uri)[0] is not filesystem


@pytest.mark.parametrize("path", ["s3://bucket/a b", "gs://bucket/ä", "s3://bucket/%zz", "s3://"])
def test_what_is_no_uri_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="cannot open this location"):
        filesystems.resolve(path)


class Unreachable:
    """A file system behind a broken connection."""

    def __getattr__(self, name: str) -> Any:
        raise OSError("When resolving the host: timeout\nand a second line")


def test_unreachable_location(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "resolve", lambda path: (Unreachable(), path))
    with pytest.raises(UserError, match=r"^s3://b/k: cannot be reached \(When resolving the host: time"):
        filesystems.exists("s3://b/k")
    with pytest.raises(UserError, match=r"s3://b/k: cannot be listed"):
        filesystems.list_names("s3://b/k")
    with pytest.raises(UserError, match=r"s3://b/k: cannot be written"):
        publishing.make_folder("s3://b/k")


def test_sizes_of_some_files(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a").write_bytes(b"123")
    (tmp_path / "empty").touch()
    names = ["below/a", "gone", "below", "empty"]
    assert filesystems.sizes_of(str(tmp_path), names) == [3, None, None, 0]
    assert filesystems.sizes_of(str(tmp_path), []) == []
    assert filesystems.file_sizes(str(tmp_path)) == {"empty": 0}
    assert filesystems.list_entries(str(tmp_path)) == ["below", "empty"]
