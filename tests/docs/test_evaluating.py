"""docs/evaluating.md, as its reader types it."""

import re

import pytest

from tests.docs.blocks import Block
from tests.docs.conftest import Typed
from tests.docs.reading import ROOT, Document, Reader
from tests.docs.standins import make_codec, make_photos

DOCUMENT = Document("docs/evaluating.md")
NUMBER = r"\d+(?:\.\d+)?"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    make_photos(folder / "photos")
    make_codec(folder / "my-codec")
    (folder / "tests").symlink_to(ROOT / "tests")
    return Reader(DOCUMENT, folder)


@pytest.mark.parametrize("block", DOCUMENT.blocks, ids=str)
def test_block(block: Block, reader: Reader, typed: Typed) -> None:
    typed(reader, block)


def test_figures_are_those_that_are_printed(reader: Reader) -> None:
    """The first block prints the second, but for figures whose weights are fetched. Runs after the blocks."""
    shown, command = (next(b for b in DOCUMENT.blocks if b.kind == kind) for kind in ("output", "shell"))
    printed = [line for line in reader.printed[command].splitlines() if _figures(line)]
    said = {line.split()[0]: line for line in shown.text.splitlines() if line.strip()}
    assert {"psnr", "ssim", "l1", "codes_used", "10"} <= {line.split()[0] for line in printed}
    for line in printed:
        other = said[line.split()[0]]
        assert re.sub(NUMBER, "#", line).split() == re.sub(NUMBER, "#", other).split()
        assert _figures(line) == pytest.approx(_figures(other), rel=0.01)


def _figures(line: str) -> list[float]:
    """Numbers of a line of figures or counts; none of another line."""
    return (
        [] if "skipped" in line or line.startswith("note") else [float(n) for n in re.findall(NUMBER, line)]
    )
