"""The line between faults of the machine and faults of the data."""

import errno
import gzip
import os
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image, UnidentifiedImageError

from tests.conftest import Refused
from vqgan import faults
from vqgan.errors import UserError
from vqgan.faults import GoneError, MachineError, is_machine_fault, machine_error, retrying


class EndpointConnectionError(Exception):
    """As the libraries of remote file systems name it."""


def system(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def from_a_decoder(cause: Exception) -> ValueError:
    error = ValueError("the member cannot be read")
    error.__cause__ = cause
    return error


MACHINE = [
    *map(
        system,
        [
            *(
                errno.EIO,
                errno.ESTALE,
                errno.EMFILE,
                errno.ENFILE,
                errno.ENOMEM,
                errno.EAGAIN,
                errno.ETIMEDOUT,
            ),
            *(errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENODEV, errno.EBUSY, errno.ENOSPC, errno.EREMOTEIO),
        ],
    ),
    *(MemoryError(), MemoryError("out of memory error"), TimeoutError("timed out"), ConnectionError("no")),
    *(pa.ArrowMemoryError("malloc of size 4096 failed"), MachineError("x")),
    OSError("When reading x: AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28"),
    OSError("AWS Error SLOW_DOWN during GetObject"),
    OSError("google::cloud::Status(UNAVAILABLE: Retry policy exhausted)"),
    EndpointConnectionError("no"),
    RuntimeError("can't start new thread"),
    GoneError(errno.ENOENT, "it was there"),
    from_a_decoder(system(errno.EIO)),
]
DATA = [
    *map(
        system,
        [
            *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
            *(errno.ENAMETOOLONG, errno.EINVAL),
        ],
    ),
    *(OSError("image file is truncated"), UnidentifiedImageError("x"), ValueError("cut off"), EOFError()),
    *(
        gzip.BadGzipFile("CRC check failed"),
        Image.DecompressionBombError("x"),
        RuntimeError("bad huffman code"),
    ),
    *(pa.ArrowInvalid("x"), OSError("Couldn't deserialize thrift: TProtocolException: Invalid data")),
    pa.ArrowMemoryError("malloc of size 137438953472 failed"),  # what a damaged page claims
    OSError("When reading x: AWS Error ACCESS_DENIED during GetObject operation: no"),
    OSError("AWS Error NO_SUCH_KEY during GetObject"),
    from_a_decoder(ValueError("wrong checksum")),
]


@pytest.mark.parametrize("error", MACHINE, ids=repr)
def test_of_the_machine(error: Exception) -> None:
    assert is_machine_fault(error)


@pytest.mark.parametrize("error", DATA, ids=repr)
def test_of_the_data(error: Exception) -> None:
    assert not is_machine_fault(error)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), r"out of memory\); free memory, or use fewer threads"),
        (system(errno.EMFILE), r"Too many open files\); raise the limit of open files \(ulimit -n\)"),
        (system(errno.EIO), r"Input/output error\); see to the disk or the network"),
        (GoneError(errno.ENOENT, "x"), r"No such file or directory\); restore it"),
        (from_a_decoder(system(errno.ESTALE)), "Stale file handle"),
        (EndpointConnectionError("no\nand more"), r"EndpointConnectionError: no\)"),
    ],
)
def test_one_line_says_what_where_and_what_to_do(error: Exception, says: str, refused: Refused) -> None:
    with refused(says):
        raise machine_error(error, "'a.jpg' cannot be read")
    text = str(machine_error(error, "'a.jpg' cannot be read"))
    assert text.startswith("'a.jpg' cannot be read (")
    assert text.endswith("then run the same command again, which keeps what is finished")


def failing(times: int, error: Callable[[], Exception]) -> tuple[list[str], Callable[[], str]]:
    calls: list[str] = []

    def action() -> str:
        calls.append("tried")
        if len(calls) <= times:
            raise error()
        return "done"

    return calls, action


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(faults.time, "sleep", pauses.append)
    return pauses


@pytest.mark.parametrize("times", [0, 1, 3])
def test_what_passes_is_done(times: int, slept: list[float]) -> None:
    undone: list[Any] = []
    calls, action = failing(times, lambda: MachineError("no"))
    assert retrying(action, lambda: undone.append(None)) == "done"
    assert len(calls) == times + 1
    assert len(undone) == times
    assert slept == list(faults.PAUSES[:times])
    assert sorted(slept) == slept


def test_what_stays_is_told_as_a_plain_error(slept: list[float]) -> None:
    """By its type runners know it when they send it as text."""
    calls, action = failing(9, lambda: MachineError("no"))
    with pytest.raises(UserError, match=r"^no \(tried 4 times\)$") as caught:
        retrying(action)
    assert type(caught.value) is UserError
    assert len(calls) == 4


@pytest.mark.parametrize("error", [UserError("mine"), ValueError("bug")])
def test_nothing_else_is_tried_again(error: Exception, slept: list[float]) -> None:
    calls, action = failing(1, lambda: error)
    with pytest.raises(type(error)):
        retrying(action)
    assert calls == ["tried"]
    assert slept == []
