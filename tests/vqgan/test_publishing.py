"""Publishing files: whole or not at all, synced, and what a failed write says."""

import errno
import os
import re
import shutil
import stat
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pyarrow import fs

from vqgan import filesystems, folders, publishing
from vqgan.errors import UserError

DAY = 86_400.0

BOTH = pytest.mark.parametrize("scheme", ["", "file://"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@BOTH
def test_publish(tmp_path: Path, scheme: str) -> None:
    path = f"{scheme}{tmp_path}/a.bin"
    with publishing.publish(path) as stream:
        stream.write(b"one")
        assert not (tmp_path / "a.bin").exists()
    assert (tmp_path / "a.bin").read_bytes() == b"one"
    publishing.write_bytes(path, b"two")
    assert filesystems.read_bytes(path) == b"two"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), SystemExit(1), GeneratorExit()])
def test_nothing_appears_when_the_block_raises(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a").write_bytes(b"before")

    def fail() -> None:
        with publishing.publish(str(tmp_path / "a")) as stream:
            stream.write(b"after")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert (tmp_path / "a").read_bytes() == b"before"
    assert names(tmp_path) == ["a"]


def test_user_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^mine$"), publishing.publish(str(tmp_path / "a")):
        raise UserError("mine")


def test_a_lost_temporary_is_an_error(tmp_path: Path) -> None:
    def lose() -> None:
        with publishing.publish(str(tmp_path / "a")):
            publishing.delete_temporaries(str(tmp_path))

    with pytest.raises(UserError, match="cannot be written"):
        lose()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "no space left.*finished shards are kept"),
        (errno.EDQUOT, "no space left"),
        (errno.EFBIG, "no space left"),
        (errno.EACCES, "no permission"),
        (errno.EPERM, "no permission"),
        (errno.EROFS, "no permission"),
        (errno.EIO, "cannot be written.*Input/output"),
    ],
)
def test_what_a_failed_write_says(tmp_path: Path, number: int, says: str) -> None:
    def write() -> None:
        with publishing.publish(str(tmp_path / "a")):
            raise OSError(number, os.strerror(number))

    with pytest.raises(UserError, match=says) as caught:
        write()
    assert str(caught.value).startswith(str(tmp_path / "a"))
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    says = "out: something above it is a file and no folder"
    with pytest.raises(UserError, match=f"{says}; choose another output$"):
        publishing.make_folder(str(tmp_path / "a" / "b" / "out"))
    with (
        pytest.raises(UserError, match=f"{says}; name another place$"),
        folders.new_folder(tmp_path / "a" / "out"),
    ):
        pass


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        publishing.write_bytes(str(tmp_path / "missing" / "a"), b"")


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(UserError, match="no permission"):
            publishing.write_bytes(str(tmp_path / "a"), b"")
        with pytest.raises(UserError, match="no permission"):
            publishing.make_folder(str(tmp_path / "b"))
    finally:
        tmp_path.chmod(0o700)


def test_places_that_nobody_can_write_to() -> None:
    with pytest.raises(UserError, match="/proc/none: "):
        publishing.make_folder("/proc/none")
    with pytest.raises(UserError, match="/proc/none: "):
        publishing.write_bytes("/proc/none", b"")


def test_local_files_reach_the_disk_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    sync = os.fsync

    def watched(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            synced.append(os.fstat(descriptor).st_size)
            assert not (tmp_path / "a").exists()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    publishing.write_bytes(str(tmp_path / "a"), b"four")
    assert synced == [4]


class Recording(fs.LocalFileSystem):  # type: ignore[misc]
    """A local disk that notes what it is asked for, and in which order."""

    asked: ClassVar[list[str]] = []

    def move(self, source: bytes, target: bytes) -> None:
        super().move(source, target)
        self.asked.append(f"rename {os.path.basename(os.fsdecode(target))}")

    def delete_file(self, path: str) -> None:
        super().delete_file(path)
        self.asked.append(f"delete {os.path.basename(path)}")

    def create_dir(self, path: str, *, recursive: bool = True) -> None:
        super().create_dir(path, recursive=recursive)
        self.asked.append(f"create {os.path.basename(path)}")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the disk is asked for: ``sync a``, ``sync folder/``, ``rename a`` (to that name), ``remove b``."""
    done: list[str] = []
    resolve, sync, rename, rmtree = filesystems.resolve, os.fsync, os.rename, shutil.rmtree

    def name_of(path: Any) -> str:
        return re.sub(r"^\.(.*?)\.[0-9a-f]{32}\.(\w+)$", r"\1.\2", os.path.basename(os.fspath(path)))

    def synced(descriptor: int) -> None:
        sync(descriptor)
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        done.append(f"sync {name_of(os.readlink(f'/proc/self/fd/{descriptor}'))}{'/' if folder else ''}")

    def renamed(source: Any, target: Any) -> None:
        rename(source, target)
        done.append(f"rename {name_of(target)}")

    def removed(path: Any, ignore_errors: bool = False) -> None:
        if os.path.exists(path):
            done.append(f"remove {name_of(path)}")
        rmtree(path, ignore_errors)

    monkeypatch.setattr(Recording, "asked", done)
    monkeypatch.setattr(filesystems, "resolve", lambda path: (Recording(), resolve(path)[1]))
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(shutil, "rmtree", removed)
    return done


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="names of descriptors are had from /proc")


@LINUX
def test_contents_then_the_name_then_the_folder(tmp_path: Path, asked: list[str]) -> None:
    """What is published later is never on the disk without what was published before."""
    root = str(tmp_path / "set")
    publishing.make_folder(f"{root}/data/deep")
    for name in ("data/deep/a", "manifest.json"):
        publishing.write_bytes(f"{root}/{name}", b"x")
    publishing.delete(f"{root}/manifest.json")
    publishing.delete(f"{root}/manifest.json")
    above = tmp_path.name
    assert asked == [
        *("create deep", "sync data/", "sync set/", f"sync {above}/"),
        *("sync a.tmp", "rename a", "sync deep/"),
        *("sync manifest.json.tmp", "rename manifest.json", "sync set/"),
        *("delete manifest.json", "sync set/"),
    ]


@LINUX
def test_many_files_share_one_sync_of_their_folder(tmp_path: Path, asked: list[str]) -> None:
    for name in "ab":
        publishing.write_bytes(f"{tmp_path}/{name}", b"x", one_of_many=True)
    publishing.sync_folder(tmp_path)
    assert asked == ["sync a.tmp", "rename a", "sync b.tmp", "rename b", f"sync {tmp_path.name}/"]


@LINUX
def test_an_old_folder_goes_when_the_new_one_is_on_the_disk(tmp_path: Path, asked: list[str]) -> None:
    for name in ("new", "codec"):
        (tmp_path / name / "part").mkdir(parents=True)
        (tmp_path / name / "part" / "array").write_bytes(name.encode())
    folders.replace_folder(tmp_path / "new", tmp_path / "codec")
    assert (tmp_path / "codec" / "part" / "array").read_bytes() == b"new"
    assert asked == [
        *("sync array", "sync part/", "sync new/"),
        *("rename codec.old", "rename codec", f"sync {tmp_path.name}/", "remove codec.old"),
    ]


def test_a_folder_that_cannot_be_synced_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", sync)
    publishing.write_bytes(str(tmp_path / "a"), b"x")
    assert names(tmp_path) == ["a"]


def test_a_disk_that_fails_to_sync_a_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(UserError, match=r"a: cannot be written .*Input/output error"):
        publishing.write_bytes(str(tmp_path / "a"), b"x")
    assert not list(tmp_path.glob(".*"))


def test_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    path = tmp_path / "file"
    publishing.write_atomically(path, b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with refused("file: cannot be written .No space left on device.; tidy up"):
        publishing.write_atomically(path, b"after", "tidy up")
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


def test_deleting_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        publishing.delete(str(tmp_path / "a"))


def test_only_temporaries_are_deleted(tmp_path: Path) -> None:
    for name in (".tokens.parquet.0123.tmp", ".hidden", "visible.tmp", "tokens.parquet"):
        (tmp_path / name).touch()
    publishing.delete_temporaries(str(tmp_path))
    assert names(tmp_path) == [".hidden", "tokens.parquet", "visible.tmp"]


@pytest.mark.parametrize("store_is_behind", [0, 10 * DAY])
def test_temporaries_are_as_old_as_the_store_says(tmp_path: Path, store_is_behind: float) -> None:
    for name, age in ((".old.tmp", 2 * DAY), (".new.tmp", 60.0), ("shard", 0.0)):
        (tmp_path / name).touch()
        at = time.time() - store_is_behind - age
        os.utime(tmp_path / name, (at, at))
    publishing.delete_temporaries(str(tmp_path), DAY)
    assert names(tmp_path) == [".new.tmp", "shard"]


def test_temporaries_of_a_store_that_is_ahead_are_kept(tmp_path: Path) -> None:
    (tmp_path / ".new.tmp").touch()
    os.utime(tmp_path / ".new.tmp", (time.time() + 10 * DAY,) * 2)
    publishing.delete_temporaries(str(tmp_path), DAY)
    assert names(tmp_path) == [".new.tmp"]


@pytest.mark.parametrize("name", ["~", "~user", "a:b", os.fsdecode(b"\xff")])
def test_a_local_file_is_what_its_name_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    publishing.write_atomically(Path(name), b"data")
    assert os.listdir(tmp_path) == [name]
