"""One command that is killed over and over, at random moments, and at last is let be."""

import shutil
import signal
from pathlib import Path

import pytest

from tests.faulty import KILLS, contents, leftovers

from .conftest import Processes, Source, tokenize_command

LIVES = 32
COPIES = 7
"""Of each image, so that no life gets to the end."""


@pytest.fixture(scope="module")
def many(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """112 images, each of which is a slice, and seven of which are none."""
    folder = tmp_path_factory.mktemp("many")
    for path in source.images.iterdir():
        for copy in range(COPIES):
            shutil.copyfile(path, folder / f"{copy}-{path.name}")
    return Source(folder, source.codec)


def test_many_lives(processes: Processes, many: Source, tmp_path: Path) -> None:
    def command(output: str) -> list[str]:
        return tokenize_command(many, tmp_path / output, ("--slice-size", "1", "--quiet"))

    processes.finish(processes.start(*command("reference")))
    lives = ("-m", "tests.clusters.lives", LIVES, 7, *command("out")[2:])
    ends = [int(line) for line in processes.finish(processes.start(*lives)).split() if line[-1].isdigit()]
    KILLS["launchers"] += ends.count(-signal.SIGKILL)
    assert ends == [-signal.SIGKILL] * LIVES
    assert len(list((tmp_path / "out").glob("data/tokens-*"))) >= LIVES / 4
    assert not (tmp_path / "out" / "manifest.json").exists()
    processes.finish(processes.start(*command("out")))
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")
    assert leftovers(tmp_path / "out") == []
