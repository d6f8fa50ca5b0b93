"""One launcher at a time: who comes second is told, nothing is lost, and nothing stays behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Refused
from transforms.sharded.ownership import LOCK_FILE, owning

ROOT = Path(__file__).parents[3]
HOLD = """
import sys, time
from transforms.sharded.ownership import owning
with owning(sys.argv[1]):
    print("owned", flush=True)
    time.sleep(60)
"""


def test_a_second_owner_is_refused(tmp_path: Path, refused: Refused) -> None:
    with owning(str(tmp_path)):
        told = rf"another run owns this output \(process {os.getpid()} on .*\); wait for it"
        with refused(told), owning(str(tmp_path)):
            pass
        assert (tmp_path / LOCK_FILE).exists()
    assert list(tmp_path.iterdir()) == []
    with owning(str(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_error_gives_the_output_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), owning(str(tmp_path)):
        raise ZeroDivisionError
    with owning(str(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_killed_owner_leaves_no_lock(tmp_path: Path, refused: Refused) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "owned\n"
        with refused(f"process {owner.pid} on"), owning(str(tmp_path)):
            pass
        owner.send_signal(signal.SIGKILL)
    with owning(str(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_has_no_owner(tmp_path: Path) -> None:
    with owning(str(tmp_path / "gone")):
        assert list(tmp_path.iterdir()) == []
