"""One line out of what engines make of an error."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.runners.engine_errors import answering, engine_error
from vqgan.errors import UserError

MISSING = """Pipeline job-1 failed in state FAILED: Traceback (most recent call last):
  File "bundle_processor.py", line 1950, in _create_pardo_operation
    dofn_data = pickler.loads(serialized_fn)
ModuleNotFoundError: No module named 'transforms'
"""
LOST = """Pipeline job-1 failed in state FAILED: bundle failed: Traceback (most recent call last):
  File "worker.py", line 3, in process
ZeroDivisionError: division by zero [while running 'MakeSlice-ptransform-9']
vqgan: slice 17 on worker node-3:4711
"""
GRPC = '<_MultiThreadedRendezvous of RPC that terminated with:\n\tdetails = "Socket closed"\n\tdebug = "x"\n>'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (MISSING, "a worker has no package transforms: install vqgan-pipelines in the same version"),
        (LOST, "slice 17 on worker node-3:4711: the engine has failed (ZeroDivisionError: division by"),
        (GRPC, "the engine has failed (Socket closed);"),
        ("Unable to fetch prism", "the engine has failed (RuntimeError: Unable to fetch prism);"),
    ],
)
def test_engines(text: str, line: str) -> None:
    error = engine_error(RuntimeError(text), None)
    assert str(error).startswith(line)
    assert str(error).endswith("; the same command continues, and keeps what is finished")
    assert "\n" not in str(error)


def raised(error: Exception, in_process: bool) -> BaseException:
    """What comes of an error."""
    with pytest.raises(Exception) as caught, answering(in_process):  # noqa: PT011 - any
        raise error
    return caught.value


def test_a_workers_answer_bears_its_place() -> None:
    text = "Traceback\nvqgan.errors.UserError: a.tar: gone [while running 'x']\nvqgan: slice 3 on worker h:1"
    found = raised(RuntimeError(text), in_process=False)
    assert str(found).startswith("slice 3 on worker h:1: a.tar: gone; the same command")
    assert isinstance(found, UserError)
    assert isinstance(found.__cause__, RuntimeError)  # --traceback shows it


def test_notes_are_found() -> None:
    error = UserError("full")
    error.add_note("vqgan: slice 5 on worker h:2")
    assert str(raised(error, in_process=False)).startswith("slice 5 on worker h:2: full; the same command")
    assert str(raised(error, in_process=True)) == "full"


def test_a_mistake_of_ours_in_this_process_passes() -> None:
    error = ZeroDivisionError()
    assert raised(error, in_process=True) is error


LAUNCHER = """
import os, signal
from apache_beam.utils import subprocess_server
from pipelines.runners.beam_runs import ending_with_us

with ending_with_us():
    server = subprocess_server.subprocess.Popen(["sh", "-c", "echo up; exec sleep 100000"])
print(server.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_a_server_ends_with_a_launcher_that_is_killed() -> None:
    """What it prints is at its end only when the server, which may print there too, is gone."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER], cwd=root, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == -signal.SIGKILL
