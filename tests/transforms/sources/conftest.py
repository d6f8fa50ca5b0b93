"""Builders of small real inputs, and a reader that takes the way a pipeline takes."""

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from transforms.sources import Entry, Example, Source
from transforms.sources.example_proto import build_example
from transforms.sources.records import frame

TESTDATA = Path(__file__).parents[2] / "testdata"


@pytest.fixture(scope="session")
def photos() -> dict[str, bytes]:
    """The ten photographs by file name."""
    return {path.name: path.read_bytes() for path in sorted((TESTDATA / "photos").glob("*.jpg"))}


@pytest.fixture(scope="session")
def tfds_folder() -> Path:
    """The tiny prepared data set."""
    return TESTDATA / "tfds"


def _results(source: Source, entries: list[Entry]) -> list[Example | Exception]:
    """What the loaders give or raise. All are called after the reading, which may close nothing early."""
    results: list[Example | Exception] = []
    reading = source.read(entries)
    loaders = [next(reading) for _ in entries]
    for loader in loaders:
        try:
            results.append(loader())
        except Exception as error:  # noqa: BLE001 - whatever it is, a test looks at it
            results.append(error)
    assert next(reading, None) is None
    return results


@pytest.fixture(scope="session")
def read_all() -> Callable[[Source], dict[str, Example | Exception]]:
    """Results by key of every entry without an error, through a pickled source as on a worker."""

    def read(source: Source) -> dict[str, Example | Exception]:
        entries = [entry for entry in source.list() if entry.error is None]
        assert len({entry.key for entry in entries}) == len(entries)
        worker: Source = pickle.loads(pickle.dumps(source))
        results = _results(worker, entries)
        return {entry.key: result for entry, result in zip(entries, results, strict=True)}

    return read


@pytest.fixture(scope="session")
def results_of() -> Callable[[Source, list[Entry]], list[Example | Exception]]:
    """Results of some entries, in their order."""
    return _results


@pytest.fixture(scope="session")
def tar_bytes() -> Callable[..., bytes]:
    """``tar_bytes(members, mode)``: an archive of (name, contents), as ``tarfile`` writes it."""

    def build(members: list[tuple[str, bytes]], mode: str = "w") -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as archive:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return buffer.getvalue()

    return build


@pytest.fixture(scope="session")
def tfrecord_bytes() -> Callable[[list[dict[str, list]]], bytes]:
    """A TFRecord file of Examples with these features."""
    return lambda examples: b"".join(frame(build_example(features)) for features in examples)
