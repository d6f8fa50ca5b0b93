"""CONTRIBUTING.md and documents with nothing but marked blocks; that no document is left out; the parser."""

import re
from pathlib import Path

import pytest

from tests.docs.blocks import Block, commands, parse
from tests.docs.conftest import Typed
from tests.docs.reading import ROOT, Change, Document, Reader, shell_words
from tests.docs.standins import MAKE

DOCUMENTS = (
    Document("CONTRIBUTING.md", (MAKE,)),
    *map(
        Document,
        ("docs/design.md", "docs/clusters.md", "docs/engines.md", "docs/speed.md", "docs/gallery.md"),
    ),
)
BLOCKS = [(document, block) for document in DOCUMENTS for block in document.blocks]


@pytest.mark.parametrize(("document", "block"), BLOCKS, ids=[str(block) for _, block in BLOCKS])
def test_block(document: Document, block: Block, tmp_path: Path, typed: Typed) -> None:
    typed(Reader(document, tmp_path), block)


def test_every_document_has_a_test() -> None:
    names = {"README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))}
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [name for name in sorted(names) if f'"{name}"' not in tests] == []


LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[\w-]+)?\)")
SCRIPT = re.compile(r"`((?:benchmarks|examples|tests|vqgan|transforms|pipelines|docs)/[\w/.-]+\.\w+)")


def test_nothing_is_left_to_be_filled_in() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("vqgan/pretrained/*/*.md")]
    left = re.compile(r"@@\w+@@|\b(TODO|FIXME|XXX)\b|^## .*\n+(?=## )", re.MULTILINE)
    assert len(pages) > 20
    assert {
        page.name: left.findall(page.read_text()) for page in pages if left.search(page.read_text())
    } == {}


def test_what_is_linked_or_named_is_there() -> None:
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text()
        links = [path.parent / link for link in LINK.findall(text)]
        scripts = [ROOT / script for script in SCRIPT.findall(text)]
        assert [str(target) for target in (*links, *scripts) if not target.exists()] == []


def test_lines_that_brought_a_part_still_stand() -> None:
    """CONTRIBUTING.md shows how to add a part by the lines of a real one."""
    seen, file = 0, ""
    for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines():
        if line.startswith("+++ b/"):
            file = line.removeprefix("+++ b/")
        elif line.startswith("+"):
            assert line[1:] in (ROOT / file).read_text().splitlines(), f"{file}: {line}"
            seen += 1
    assert seen > 20


TEXT = """
Type `vqgan inspect x/` or, after `vqgan train`, `vqgan
tokenize --help`.

- in a list:

  ```bash
  vqgan a \\
      --b 'c d' *.e  # why

  # nothing
  vqgan f
  ```

<!-- not run: needs a cluster -->
~~~
vqgan `inspect y`
~~~
<!-- needs: torch -->
```python
import torch
```

<!-- output -->
```
1
```
```cobol
STOP RUN
```
"""


def test_blocks_are_found_wherever_they_stand() -> None:
    blocks = parse("x.md", TEXT)
    assert [(block.line, block.kind, block.note) for block in blocks] == [
        (2, "inline", ""),
        (2, "inline", ""),
        (7, "shell", ""),
        (16, "not run", "needs a cluster"),
        (20, "python", "torch"),
        (25, "output", ""),
        (28, "unknown", ""),
    ]
    assert blocks[1].text == "vqgan tokenize --help\n"
    assert commands(blocks[2].text) == ["vqgan a --b 'c d' *.e  # why", "vqgan f"]
    assert str(blocks[3]) == "x.md:16"
    with pytest.raises(ValueError, match=r"x\.md:2: this block is never closed"):
        parse("x.md", "\n```\nvqgan a\n")


def test_what_is_neither_run_nor_marked_fails(tmp_path: Path) -> None:
    reader = Reader(Document("docs/design.md"), tmp_path)
    with pytest.raises(AssertionError, match="neither run nor marked"):
        reader.read(Block("x.md", 1, "unknown", "STOP RUN\n"))
    with pytest.raises(AssertionError, match="say why"):
        reader.read(Block("x.md", 1, "not run", "vqgan a\n"))
    with pytest.raises(AssertionError, match="exit code 2"):
        reader.read(Block("x.md", 1, "shell", "vqgan nothing\n"))
    with pytest.raises(AssertionError, match="false"):
        reader.read(Block("x.md", 1, "shell", "false\n"))
    with pytest.raises(NameError):
        reader.read(Block("x.md", 1, "python", "nothing()\n"))
    with pytest.raises(ValueError, match="take the change out"):
        Document("docs/design.md", (Change("nowhere", None, "why"),))


def test_lines_are_taken_apart_by_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.e", "a.e"):
        (tmp_path / name).touch()
    words = shell_words("vqgan a --b 'c d' *.e '*.e' {1..2}.f  # why")
    assert words == ["vqgan", "a", "--b", "c d", "a.e", "b.e", "*.e", "1.f", "2.f"]
