"""Programs on disk: shared, damaged, full, read-only; and the same tokens with them as without."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax._src import compilation_cache as place

from vqgan import compilation_cache
from vqgan.codec import Codec
from vqgan.compilation_cache import LEFTOVER_SECONDS, ProgramCache, enable_compilation_cache, machine_name
from vqgan.extras import cache_root
from vqgan.publishing import temporary_name

MACHINE = "0" * 16


@pytest.fixture
def cache(tmp_path: Path) -> ProgramCache:
    return ProgramCache(tmp_path / "compiled", MACHINE)


def entries(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_a_program_comes_back(cache: ProgramCache, tmp_path: Path) -> None:
    cache.put("jit_encode-1", b"program")
    assert cache.get("jit_encode-1") == b"program"
    assert cache.get("jit_encode-2") is None
    assert ProgramCache(tmp_path / "compiled", "1" * 16).get("jit_encode-1") is None, "another machine's"
    cache.put("jit_encode-1", b"another")
    assert cache.get("jit_encode-1") == b"another"
    cache.put(f"jit_{'long' * 100}<lambda>/-3", b"program")
    assert cache.get(f"jit_{'long' * 100}<lambda>/-3") == b"program"


@given(value=st.binary(max_size=200), data=st.data())
def test_a_damaged_entry_is_removed_and_made_anew(
    tmp_path_factory: pytest.TempPathFactory, value: bytes, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("compiled")
    cache = ProgramCache(root, MACHINE)
    cache.put("key", value)
    (path,) = entries(root)
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
    path.write_bytes(data.draw(st.sampled_from([whole[:place], flipped, whole + b"\0"])))
    assert cache.get("key") is None
    assert entries(root) == []
    cache.put("key", value)
    assert cache.get("key") == value


def test_an_entry_under_another_name_is_not_taken(cache: ProgramCache, tmp_path: Path) -> None:
    cache.put("one", b"program")
    (one,) = entries(tmp_path)
    cache.put("two", b"other")
    (two,) = set(entries(tmp_path)) - {one}
    one.replace(two)
    assert cache.get("two") is None


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = ProgramCache(tmp_path / "file", MACHINE)
    cache.put("key", b"program")
    assert cache.get("key") is None
    assert (tmp_path / "file").read_text() == "in the way"


def fail(*_: Any, **__: Any) -> Any:
    raise OSError(28, "No space left on device")


def write_half(path: Path, data: bytes) -> int:
    with path.open("wb") as file:
        file.write(data[: len(data) // 2])
    return int(fail())


@pytest.mark.parametrize(
    ("where", "name", "failing"), [(Path, "write_bytes", write_half), (Path, "replace", fail)]
)
def test_a_disk_that_is_full(
    cache: ProgramCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, failing: Any
) -> None:
    cache.put("there", b"program")
    with monkeypatch.context() as patch:
        patch.setattr(where, name, failing)
        cache.put("new", b"program")
        cache.put("there", b"another")
    assert cache.get("there") == b"program"
    assert cache.get("new") is None
    assert len(entries(tmp_path)) == 1, "something was left"


def test_a_folder_that_can_only_be_read(
    cache: ProgramCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.put("there", b"program")
    cache.put("damaged", b"program")
    (damaged,) = {path for path in entries(tmp_path) if cache._entry("damaged") == path}
    damaged.write_bytes(b"torn")
    monkeypatch.setattr(os, "utime", fail)
    monkeypatch.setattr(Path, "unlink", fail)
    monkeypatch.setattr(Path, "write_bytes", fail)
    cache.put("new", b"program")
    assert cache.get("there") == b"program"
    assert cache.get("damaged") is None
    assert cache.get("new") is None


@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702])
def test_a_folder_that_others_can_write_to_is_not_used(
    cache: ProgramCache, tmp_path: Path, mode: int
) -> None:
    """Its programs would be run unseen."""
    cache.put("key", b"program")
    folder = tmp_path / "compiled" / MACHINE
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(mode)
    assert cache.get("key") is None
    cache.put("other", b"program")
    assert len(entries(tmp_path)) == 1


def test_what_was_used_longest_ago_is_removed(tmp_path: Path) -> None:
    cache = ProgramCache(tmp_path, MACHINE, most_bytes=10_000)
    (tmp_path / MACHINE).mkdir(mode=0o700)
    mine = tmp_path / MACHINE / "notes.txt"
    mine.write_bytes(bytes(20_000))  # no entry, so neither counted nor removed
    for number in range(30):
        cache.put(f"key {number}", bytes(900))
        if number:
            assert cache.get("key 0") is not None, number
        for age, path in enumerate(sorted(entries(tmp_path), key=lambda path: -path.stat().st_mtime_ns)):
            os.utime(path, (1e9 - age, 1e9 - age))  # clocks of file systems are coarse
        assert sum(path.stat().st_size for path in entries(tmp_path) if path != mine) <= 10_000
    assert cache.get("key 29") is not None
    assert cache.get("key 1") is None
    assert mine.exists()
    cache.put("too large", bytes(10_001))
    assert cache.get("too large") is None
    assert cache.get("key 29") is not None, "nothing makes room for what does not fit at all"


def test_other_machines_entries_count(tmp_path: Path) -> None:
    former = ProgramCache(tmp_path, "1" * 16, most_bytes=10_000)
    former.put("key", bytes(8000))
    cache = ProgramCache(tmp_path, MACHINE, most_bytes=10_000)
    cache.put("key", bytes(8000))
    assert (cache.get("key"), former.get("key")) == (bytes(8000), None)


KILLED = """
import sys
from pathlib import Path
from vqgan.compilation_cache import ProgramCache
cache = ProgramCache(Path(sys.argv[1]), sys.argv[2])
for number in range(1_000_000):
    cache.put(f"key {number % 8}", bytes([number % 251]) * 300_000)
"""


def test_a_writer_that_is_killed(cache: ProgramCache, tmp_path: Path) -> None:
    """Two processes write the same entries; each is killed at an arbitrary instant."""
    root = tmp_path / "compiled"
    command = [sys.executable, "-c", KILLED, str(root), MACHINE]
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(subprocess.Popen(command)) for _ in range(2)]
        try:
            while sum(cache.get(f"key {number}") is not None for number in range(8)) < 8:
                assert all(writer.poll() is None for writer in writers)
                time.sleep(0.01)
        finally:
            for writer in writers:
                writer.send_signal(signal.SIGKILL)
    for number in range(8):
        value = cache.get(f"key {number}")
        assert value is not None
        assert value == value[:1] * 300_000
    left = root / MACHINE / temporary_name("0" * 64)
    left.write_bytes(b"torn")
    cache.put("key", b"program")
    assert left.exists(), "it may be another process that is at work"
    os.utime(left, (0, time.time() - 2 * LEFTOVER_SECONDS))
    cache.put("key", b"program")
    assert not left.exists()


# In JAX


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A process that has neither compiled anything nor a cache; gives the folder that it would use."""
    monkeypatch.setenv("VQGAN_CACHE", str(tmp_path))
    monkeypatch.delenv(compilation_cache.SWITCH)
    monkeypatch.setattr(place, "_cache", None)
    monkeypatch.setattr(place, "_cache_initialized", False)
    monkeypatch.setattr(compilation_cache, "LEAST_COMPILE_SECONDS", 0.0)
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    yield tmp_path / "compiled"
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def encode(path: Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encodes and decodes with a codec of its own, which compiles or takes what is kept."""
    codec = Codec.load(path, batch_size=4)
    tokens = codec.encode(images)
    return tokens, codec.decode(tokens)


def test_the_same_tokens_and_images(
    fresh: Path, toy_path: Path, toy_codec: Codec, toy_images: np.ndarray
) -> None:
    tokens = toy_codec.encode(toy_images)
    pixels = toy_codec.decode(tokens)
    assert not fresh.exists(), "nobody has asked for it"
    assert enable_compilation_cache()
    assert enable_compilation_cache(), "once more does no harm"
    made = encode(toy_path, toy_images)
    kept = {path: path.stat().st_ino for path in entries(fresh)}
    assert len(kept) >= 2
    assert {path.parent.name for path in kept} == {machine_name()}
    again = encode(toy_path, toy_images)
    assert {path: path.stat().st_ino for path in entries(fresh)} == kept, "something was compiled anew"
    for found in (made, again):
        np.testing.assert_array_equal(found[0], tokens)
        np.testing.assert_array_equal(found[1], pixels)


def test_programs_that_this_release_cannot_read(fresh: Path) -> None:
    """The sum is right, and yet XLA refuses them: compiled anew, without a word, and replaced."""
    assert enable_compilation_cache()

    def double() -> Any:
        return jax.jit(lambda x: x * 2)(np.float32(3))  # a function of its own, so compiled each time

    assert double() == 6
    asked: list[str] = []
    cache: Any = place._cache
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgramCache, "get", lambda self, key: asked.append(key))
        double()
    assert asked
    for key in asked:
        cache.put(key, b"no program")
    assert double() == 6
    assert all(cache.get(key) != b"no program" for key in asked)


def test_when_it_stays_off(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compilation_cache.SWITCH, "0")
    assert not enable_compilation_cache()
    monkeypatch.delenv(compilation_cache.SWITCH)
    with monkeypatch.context() as patch:  # the user's own
        patch.setattr(place, "_cache", object())
        assert not enable_compilation_cache()
    with monkeypatch.context() as patch:  # another release of JAX
        patch.delattr(place, "_cache_initialized")
        assert not enable_compilation_cache()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "jax._src.compilation_cache", None)
        patch.delattr("jax._src.compilation_cache")
        assert not enable_compilation_cache()
    jax.config.update("jax_compilation_cache_dir", str(fresh / "own"))
    try:
        assert not enable_compilation_cache()
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
    assert place._cache is None
    assert not fresh.exists()


def test_where_it_lies(fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(compilation_cache.SWITCH, str(tmp_path / "elsewhere"))
    assert compilation_cache._chosen_root() == tmp_path / "elsewhere"
    monkeypatch.setenv(compilation_cache.SWITCH, "1")
    assert compilation_cache._chosen_root() == fresh
    monkeypatch.delenv("VQGAN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "vqgan-pipelines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "vqgan-pipelines"


def test_machines_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine_name()
    assert here == machine_name()
    assert len(here) == 16
    with monkeypatch.context() as patch:
        patch.setattr(compilation_cache, "describe_processor", lambda: "one without AVX")
        assert machine_name() != here
    monkeypatch.setattr(compilation_cache, "version", lambda package: "0.0.1")
    assert machine_name() != here
