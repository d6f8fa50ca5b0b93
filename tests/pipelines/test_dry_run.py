"""A dry run tells what a run would cost and writes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Vqgan = Callable[..., Any]
NAMES = [
    "images",
    "slices",
    "rows",
    "tokens per row",
    "megabytes on disk, at most about",
    "images per second",
    "seconds to expect",
    "images sampled",
    "share of rejects in the sample",
]


def lines(result: Any) -> dict[str, float]:
    assert (result.code, result.err) == (0, "")
    pairs = [line.split(": ") for line in result.out.splitlines()]
    return {name: float(value) for name, value in pairs}


def snapshot(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_estimate(tokenize: Vqgan, few: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    found = lines(tokenize(few, "--dry-run"))
    assert snapshot(tmp_path) == before
    assert list(found) == NAMES
    assert (found["images"], found["slices"], found["rows"], found["tokens per row"]) == (10, 3, 10, 256)
    assert found["images per second"] > 0
    assert found["images sampled"] == 3
    assert found["share of rejects in the sample"] == 0


def test_views_and_rejects(tokenize: Vqgan, few: Path) -> None:
    for path in sorted(few.iterdir())[::2]:
        path.write_bytes(b"no image")
    found = lines(tokenize(few, "--dry-run", "--views", "hflip", "--slice-size", 100, "--batch-size", 20))
    assert found["images sampled"] == 10
    assert found["share of rejects in the sample"] == 0.5
    assert found["rows"] == 10


def test_nothing_but_rejects(tokenize: Vqgan, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(b"no image")
    found = lines(tokenize(tmp_path / "in", "--dry-run"))
    assert (found["rows"], found["share of rejects in the sample"]) == (0, 1)


def test_size_on_disk_is_an_upper_bound(tokenize: Vqgan, photos: Path, tmp_path: Path) -> None:
    found = lines(tokenize(photos, "--dry-run", "--slice-size", 40))
    assert tokenize(photos, "--slice-size", 40).code == 0
    (shard,) = (tmp_path / "out").glob("data/tokens-*")
    assert shard.stat().st_size - 5000 < found["megabytes on disk, at most about"] * 1e6  # beside the footer


@pytest.mark.parametrize("source", ["missing", "empty"])
def test_bad_input(tokenize: Vqgan, tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    result = tokenize(tmp_path / source, "--dry-run")
    assert (result.code, source in result.line) == (2, True)
