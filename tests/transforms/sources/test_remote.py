"""What remote file systems raise ends in one line that names the address."""

import pytest
from pyarrow import fs

from transforms.sources import SourceConfig, locations, open_source
from transforms.sources.locations import plain_errors
from vqgan.errors import UserError


def _refuse(*arguments: object) -> None:
    raise RuntimeError("name not known\nand much more")


def _refusing() -> fs.PyFileSystem:
    """A file system in Python whose calls raise an error of its own."""
    methods = dict.fromkeys(fs.FileSystemHandler.__abstractmethods__, _refuse)
    return fs.PyFileSystem(type("Refusing", (fs.FileSystemHandler,), methods)())


def test_a_store_that_cannot_be_reached(monkeypatch):
    remote = _refusing()
    monkeypatch.setattr(locations, "resolve", lambda path: (remote, path.partition("://")[2]))
    with pytest.raises(UserError) as caught:
        open_source(SourceConfig("hf://datasets/owner/name"))
    assert str(caught.value) == (
        "hf://datasets/owner/name: cannot be reached (RuntimeError: name not known); "
        "check the address, the credentials and the network"
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("When getting x: AWS Error NETWORK_CONNECTION during HeadObject: curlCode: 7", "no connection to"),
        ("AWS Error ACCESS_DENIED during ListObjectsV2 operation: x", "access denied"),
        ("google::cloud::Status(UNAVAILABLE: Retry policy exhausted)", "no connection to"),
        ("AWS Error SLOW_DOWN during x", "slow down"),
        ("something else", "something else"),
    ],
)
def test_reasons_are_those_of_the_store_alone(error, reason):
    with pytest.raises(OSError, match=f"^{reason}") as caught, plain_errors(fs.LocalFileSystem()):
        raise OSError(error)
    assert "curl" not in str(caught.value)


@pytest.mark.parametrize("address", ["https://host/x.tar", "HTTP://host/x", "ftp://host/x"])
def test_nothing_is_fetched_from_the_web(address):
    with pytest.raises(UserError, match=r"nothing is fetched from the web.*img2dataset"):
        locations.locate(address)
