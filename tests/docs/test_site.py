"""The site: built without a warning, offline, with an anchor for every public name; searches find."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import lunr
import pytest
import yaml

import pipelines
import vqgan
from pipelines.cli import build_parser
from tests.docs.reading import ROOT

BOOSTS = {"title": 1000, "text": 1, "tags": 1_000_000}
"""Of fields, as the theme's search has them."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


class Anchors(HTMLParser):
    """Collects what a page loads or leads to, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found["id"]} if "id" in found else set()
        if tag in ("script", "img", "source", "iframe") and "src" in found:
            self.loaded.append(found["src"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loaded.append(found["href"])
        elif tag == "a" and "href" in found:
            self.links.append(found["href"])


def test_pages_load_nothing_from_elsewhere_and_no_link_is_dead(site: Path) -> None:
    pages = {path: Anchors(path.read_text()) for path in site.rglob("*.html")}
    assert len(pages) > 20
    for path, page in pages.items():
        assert not [address for address in page.loaded if "//" in address], path
        for link in page.links:
            target, _, anchor = link.partition("#")
            if "//" in target or path.name == "404.html":
                continue
            found = (path.parent / target).resolve() if target else path
            assert found.is_file(), f"{path.name}: {link}"
            if anchor and found.suffix == ".html" and anchor != "__skip":
                assert anchor in pages[found].anchors, f"{path.name}: {link}"


def test_every_public_name_has_its_anchor(site: Path) -> None:
    names = [f"{module.__name__}.{name}" for module in (vqgan, pipelines) for name in module.__all__]
    anchors = set.union(*(Anchors(path.read_text()).anchors for path in site.glob("reference/*.html")))
    assert len(names) > 10
    assert [name for name in names if "__" not in name and name not in anchors] == []
    # What a table of contents shows is what there is: docstrings were read, not only names.
    assert "Draws a token data set and its images from a prior" in (site / "reference/runs.html").read_text()


def test_every_command_has_its_help(site: Path) -> None:
    text = (site / "commands.html").read_text()
    (commands,) = (action.choices for action in build_parser()._actions if action.dest == "command")
    assert commands is not None
    assert [name for name in commands if f"vqgan {name}" not in text] == []


def test_no_sphinx_and_no_raw_doctest_is_left(site: Path) -> None:
    for path in site.glob("reference/*.html"):
        text = path.read_text()
        assert not re.search(r":(?:class|func|meth|data):", text), path
        assert "<blockquote>" not in text, path


def test_all_documents_are_in_the_navigation() -> None:
    text = re.sub(r"!!python\S+", "", (ROOT / "mkdocs.yml").read_text())
    listed = re.findall(r"[\w/-]+\.md", json.dumps(yaml.safe_load(text)["nav"]))
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    made = {"index.md", "contributing.md", "changes.md", "small.md", "tiny.md", "commands.md"}
    assert sorted(listed) == sorted(written | made)


SEARCHES = {
    "fingerprint": "data-format.html",
    "resume": "quickstart.html",
    "Dataflow": "clusters.html",
    "crop": "quickstart.html",
    "guidance": "prior.html",
    "torch": "tokens-into-torch.html",
}


@pytest.fixture(scope="module")
def index(site: Path) -> lunr.index.Index:
    """The site's index, with the theme's boosts of fields and of pages."""
    documents = json.loads((site / "search/search_index.json").read_text())["docs"]
    fields = [{"field_name": name, "boost": boost} for name, boost in BOOSTS.items()]
    for document in documents:
        document["tags"] = " ".join(document.get("tags", []))
        for name in ("title", "text"):
            document[name] = re.sub(r"<[^>]+>", " ", document[name])
    return lunr.lunr(
        ref="location",
        fields=fields,
        documents=[(document, {"boost": document.get("boost", 1)}) for document in documents],
    )


@pytest.mark.parametrize(("word", "page"), SEARCHES.items())
def test_a_search_finds_the_right_page_first(word: str, page: str, index: lunr.index.Index) -> None:
    found = index.search(word)
    assert found, word
    assert found[0]["ref"].partition("#")[0] == page, [hit["ref"] for hit in found[:5]]
