"""What ``vqgan browse`` shows: the rows, codes and rejects that are there, escaped, whatever is damaged."""

import html
import json
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
from PIL import Image

from pipelines import cli
from pipelines.browsing import token_browser
from pipelines.browsing.browse_images import MadeTogether, patch_of, token_colors
from pipelines.browsing.browse_pages import BrowsedSite
from pipelines.browsing.browse_server import Answer, answer_to, open_site
from pipelines.browsing.token_browser import Query, TokenBrowser
from tests.conftest import Refused
from tests.pipelines.conftest import Vqgan
from tests.pipelines.test_sample_prior import save_random_prior
from transforms.sources import SourceConfig
from vqgan.codec import Codec
from vqgan.errors import UserError
from vqgan.shards import Shard

FOLDER = "<script>alert(1)<"
KEY = f"{FOLDER}/script>'\"&.jpg"
"""A key that is markup, in a class whose name is."""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, photos: Path, codec_path: str) -> Path:
    """Folder with ``in`` and its ``tokens``: three crops each of four images, one reject, two classes."""
    root = tmp_path_factory.mktemp("hostile")
    for name, path in zip(
        (KEY, "plain/a.jpg", "plain/b.jpg", "plain/c.jpg"), sorted(photos.iterdir()), strict=False
    ):
        (root / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / "in" / name)
    (root / "in" / FOLDER / "<b>.jpg").write_bytes(b"no image")
    where = ["--input", root / "in", "--output", root / "tokens", "--codec", codec_path, "--folder-labels"]
    views = ["--views", "random-crops", "--random-crops", 3]
    flags = ["--slice-size", 2, "--batch-size", 4, "--no-report", "--quiet"]
    assert cli.main([str(argument) for argument in ("tokenize", *where, *views, *flags)]) == 0
    return root


@pytest.fixture(scope="module")
def site(hostile: Path) -> BrowsedSite:
    return open_site(str(hostile / "tokens"), SourceConfig(str(hostile / "in"), folder_labels=True), None)


def stored(folder: Path) -> list[dict[str, Any]]:
    """All rows, as another reader finds them."""
    rows: list[dict[str, Any]] = (
        ds.dataset(sorted((folder / "data").glob("*.parquet"))).to_table().to_pylist()
    )
    return rows


def text_of(answer: Answer, status: int = 200) -> str:
    assert answer.status == status
    assert answer.type.startswith("text/html")
    return answer.body.decode()


def shown_rows(page: str) -> list[int]:
    return [int(number) for number in re.findall(r"class=strip href='/row/(\d+)'", page)]


def link(page: str, text: str) -> str | None:
    found = re.search(rf"href='([^']*)'>{text}</a>", page)
    return None if found is None else html.unescape(found[1])


def test_pages_cover_every_row_once(finished: Path) -> None:
    browser = TokenBrowser(str(finished / "out"))
    rows, start = [], 0
    while True:
        found = browser.find(Query(), start, 7)
        assert not found.problems
        rows += found.items
        if found.after is None:
            break
        assert found.after == start + 7
        start = found.after
    expected = stored(finished / "out")
    assert [row.number for row in rows] == list(range(len(expected)))
    for row, other in zip(rows, expected, strict=True):
        assert (row.key, row.view, list(row.crop)) == (other["key"], other["view"], other["crop"])
        assert (row.mirrored, row.width, row.height) == (other["mirrored"], other["width"], other["height"])
        np.testing.assert_array_equal(row.tokens.reshape(-1), other["tokens"])
        assert browser.row(row.number).key == row.key


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        (Query("SCRIPT>'\"&"), lambda row: row["key"] == KEY),
        (Query("a.jpg"), lambda row: row["key"] == "plain/a.jpg"),
        (Query(label=1), lambda row: row["label"] == 1),
        (Query("b.jpg", 1), lambda row: row["key"] == "plain/b.jpg"),
        (Query("b.jpg", 0), lambda row: False),
        (Query(".*"), lambda row: False),
    ],
)
def test_rows_are_found(
    hostile: Path, site: BrowsedSite, query: Query, wanted: Callable[[dict[str, Any]], bool]
) -> None:
    expected = [number for number, row in enumerate(stored(hostile / "tokens")) if wanted(row)]
    found = site.browser.find(query, 0, 100)
    assert [row.number for row in found.items] == expected
    assert found.after is None
    # The same, looking at few rows at a time, and stopping at each that is found.
    numbers: list[int] = []
    start: int | None = 0
    while start is not None:
        part = site.browser.find(query, start, 1, most=1)
        numbers += [row.number for row in part.items]
        start = part.after
    assert numbers == expected


def test_a_row_far_on_costs_its_row_group(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = TokenBrowser(str(finished / "out"))
    read: list[str] = []
    whole = Shard.row_group
    monkeypatch.setattr(
        Shard, "row_group", lambda self, *where: (read.append(self.name), whole(self, *where))[1]
    )
    found = browser.find(Query(), 30, 3)
    assert [row.number for row in found.items] == [30, 31, 32]
    assert len(read) == 1


def test_originals_are_what_the_tokens_were_made_of(site: BrowsedSite, codec_path: str) -> None:
    """Crops, mirrored or not, encoded again."""
    assert site.originals is not None
    rows = site.browser.find(Query(), 0, 100).items
    assert {row.mirrored for row in rows} == {False, True}
    pixels = np.stack([site.originals.of_row(row.number).pixels for row in rows])
    again = Codec.load(codec_path, batch_size=4).encode(pixels)
    assert np.mean(again == np.stack([row.tokens for row in rows])) > 0.99
    whole = site.originals.of_row(0).whole
    assert whole.shape[:2] == (rows[0].height, rows[0].width)


def test_reconstructions_are_the_codecs(site: BrowsedSite, codec_path: str) -> None:
    assert site.reconstructions is not None
    row = site.browser.row(5)
    expected = Codec.load(codec_path, batch_size=4).decode(row.tokens[None])[0]
    assert np.abs(site.reconstructions.of_row(5).astype(int) - expected).max() <= 1


def test_every_image_of_every_page_is_one(site: BrowsedSite) -> None:
    code = f"/code/{site.browser.histogram.argmax()}"
    for page in ("/", "/row/0", "/row/11", "/codes", code, "/codes?order=number", "/favicon.ico"):
        answer = answer_to(site, page)
        addresses = [page] if answer.type == "image/png" else re.findall(r"src='([^']*)'", text_of(answer))
        assert addresses
        for address in addresses:
            image = answer_to(site, address)
            assert (image.status, image.type.split("/")[0]) == (200, "image"), address


def test_texts_are_escaped(site: BrowsedSite) -> None:
    number = next(row.number for row in site.browser.find(Query(KEY), 0, 1).items)
    pages = {page: text_of(answer_to(site, page)) for page in ("/", f"/row/{number}", "/rejects", "/codes")}
    pages |= {
        page: text_of(answer_to(site, page)) for page in ("/?key=<b>'\"&label=<i>'\"", "/rejects?key='<b>")
    }
    for page in pages.values():
        assert not re.search(r"<(script|b>|i>'|b>\.jpg)", re.sub(r"<b>[\w ]*(&lt;[^<]*)?</b>", "", page))
    assert html.escape(KEY) in pages[f"/row/{number}"]
    assert html.escape(f"0 {FOLDER}") in pages["/"]
    assert html.escape(f"{FOLDER}/<b>.jpg") in pages["/rejects"]


def test_paging_and_searching_by_links(finished: Path) -> None:
    site = open_site(str(finished / "out"), None, None)
    first = text_of(answer_to(site, "/"))
    assert shown_rows(first) == list(range(24))
    assert "Start it with --input" in first
    assert link(first, "previous") is None
    second = text_of(answer_to(site, str(link(first, "next"))))
    assert shown_rows(second) == list(range(24, 40))
    assert link(second, "next") is None
    assert shown_rows(text_of(answer_to(site, str(link(second, "previous"))))) == list(range(24))
    assert shown_rows(text_of(answer_to(site, "/?from=39"))) == [39]
    for beyond in ("40", "999999999999999", "-1", "x", "9" * 40):
        answer_to(site, f"/?from={beyond}")
        text_of(answer_to(site, f"/row/{beyond}"), 404)
    assert "there is no class" in text_of(answer_to(site, "/?label=cat"))
    row = site.browser.row(17)
    found = text_of(answer_to(site, str(link(text_of(answer_to(site, "/row/17")), "all views of this key"))))
    assert shown_rows(found) == [17]
    assert row.key in found


def test_classes_by_name_and_number(site: BrowsedSite) -> None:
    by_name = shown_rows(text_of(answer_to(site, "/?label=plain")))
    assert by_name == shown_rows(text_of(answer_to(site, "/?label=1")))
    assert len(by_name) == 9
    assert len(shown_rows(text_of(answer_to(site, "/?label=%3Cscript%3Ealert(1)%3C")))) == 3


def test_codes_are_shown_where_they_occur(site: BrowsedSite) -> None:
    histogram = site.browser.histogram
    code = int(histogram.argmax())
    page = text_of(answer_to(site, f"/code/{code}"))
    patches = re.findall(r"/image/patch/original/(\d+)/(\d+)'", page)
    assert patches
    for row, cell in patches:
        assert site.browser.row(int(row)).tokens.reshape(-1)[int(cell)] == code
    assert len(patches) == sum((site.browser.row(n).tokens == code).any() for n in range(12))
    assert f"{histogram[code]:,} of {histogram.sum():,} tokens" in page
    ordered = re.findall(r"class=code href='/code/(\d+)'", text_of(answer_to(site, "/codes")))
    counts = histogram[[int(each) for each in ordered]]
    assert len(ordered) == 64
    assert (np.diff(counts) <= 0).all()
    text_of(answer_to(site, f"/code/{len(histogram)}"), 404)


def test_rejects_have_their_reasons(finished: Path) -> None:
    site = open_site(str(finished / "out"), None, None)
    page = text_of(answer_to(site, "/rejects"))
    assert "<td>broken.jpg</td><td>decode: UnidentifiedImageError</td>" in page
    assert "broken.jpg" in text_of(answer_to(site, "/rejects?reason=decode:+UnidentifiedImageError&key=BROK"))
    for nothing in ("/rejects?reason=read:+EmptyFile", "/rejects?key=other", "/rejects?from=1"):
        assert "broken.jpg" not in text_of(answer_to(site, nothing))


def test_a_damaged_shard_costs_its_own_rows(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = sorted((copied / "data").iterdir())[:2]
    rows = [shard["rows"] for shard in json.loads((copied / "manifest.json").read_text())["shards"]]
    damaged = bytearray(second.read_bytes())
    damaged[: len(damaged) // 2] = bytes(len(damaged) // 2)
    second.write_bytes(damaged)
    first.unlink()
    site = open_site(str(copied), None, None)
    for page in ("/", "/?key=jpg", "/codes", "/code/1"):
        text = text_of(answer_to(site, page))
        notes = re.findall(r"<p class=note>(.*?)</p>", text)
        assert sum(first.name in note for note in notes) == 1
        assert sum(second.name in note for note in notes) == 1
        assert "Traceback" not in text
    assert shown_rows(text_of(answer_to(site, "/"))) == list(range(rows[0] + rows[1], 40))
    for number, name in ((0, first.name), (rows[0], second.name)):
        for page in (f"/row/{number}", f"/image/reconstruction/{number}", f"/image/tokens/{number}"):
            assert name in text_of(answer_to(site, page), 500)
    assert capsys.readouterr().err == ""


def test_a_data_set_whose_shards_are_gone(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search stops after some files; it may go on."""
    monkeypatch.setattr(token_browser, "MOST_PROBLEMS", 2)
    shutil.rmtree(copied / "data")
    site = open_site(str(copied), None, None)
    found = site.browser.find(Query("x"), 0, 10)
    assert len(found.problems) == 2
    assert found.after is not None
    rest = site.browser.find(Query("x"), found.after, 10)
    assert len(rest.problems) == len(site.browser.manifest["shards"]) - 2


def test_other_images_than_those_of_the_tokens(finished: Path, few: Path, codec_path: str) -> None:
    """Each of them is told; nothing else suffers."""
    changed = sorted(few.iterdir())[0]
    Image.new("RGB", (64, 64)).save(changed)
    site = open_site(str(finished / "out"), SourceConfig(str(few)), None)
    rows = site.browser.find(Query(), 0, 100).items
    there = {path.name for path in few.iterdir()}
    for row in rows:
        page = text_of(answer_to(site, f"/row/{row.number}"))
        image = answer_to(site, f"/image/original/{row.number}")
        if row.key == changed.name:
            assert "64x64 pixels, but its row was made of" in page
            assert image.status == 500
        elif row.key in there:
            assert "class=note" not in page
            assert image.status == 200
        else:
            assert "no original" in page
            assert image.status == 500
        assert f"/image/whole/{row.number}" not in page or image.status == 200


def test_samples_have_no_originals(
    vqgan: Vqgan, tmp_path: Path, codec_path: str, finished: Path, refused: Refused
) -> None:
    prior, samples = save_random_prior(tmp_path / "prior", codec_path), str(tmp_path / "samples")
    flags = ["--count", 4, "--batch-size", 4, "--no-images", "--quiet"]
    assert vqgan("sample", "--prior", prior, "--output", samples, *flags).code == 0
    with refused("not made of images; leave out --input"):
        open_site(samples, SourceConfig(str(finished / "in")), None)
    site = open_site(samples, None, None)
    page = text_of(answer_to(site, "/"))
    assert shown_rows(page) == [0, 1, 2, 3]
    assert "Each: reconstruction, tokens." in page
    assert "class=note" not in page
    assert "/rejects" not in page
    assert answer_to(site, "/image/original/0").status == 404
    assert answer_to(site, "/image/reconstruction/0").type == "image/png"
    assert site.browser.row(2).key in text_of(answer_to(site, "/row/2"))


def test_codecs(finished: Path, copied: Path, other_codec: str, refused: Refused) -> None:
    with refused("not by .*other"):
        open_site(str(finished / "out"), None, other_codec)
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["codec"]["name"] = str(copied / "gone")
    (copied / "manifest.json").write_text(json.dumps(manifest))
    site = open_site(str(copied), None, None)
    page = text_of(answer_to(site, "/"))
    assert "No reconstructions" in page
    assert "/image/reconstruction" not in page
    assert "/image/patch" not in text_of(answer_to(site, "/codes"))
    assert answer_to(site, "/code/1").status == 200
    assert answer_to(site, "/image/reconstruction/0").status == 404


def test_what_is_no_token_data_set(tmp_path: Path, finished: Path, refused: Refused) -> None:
    with refused("nothing there"):
        TokenBrowser(str(tmp_path / "none"))
    with refused("not a finished data set"):
        TokenBrowser(str(finished / "in"))


@pytest.mark.parametrize(
    "target",
    ["/nope", "//evil/", "/../../etc/passwd", "/image/original/..%2f1", "/row/1/", "/row/", "http://evil/",
     "*", "", "/image/patch/original/0/256", "/image/patch/tokens/0/0", "/row/٣", "/data/x.parquet"],
)  # fmt: skip
def test_there_is_nothing_else(site: BrowsedSite, target: str) -> None:
    text_of(answer_to(site, target), 404)


def test_too_many_fields_are_none(site: BrowsedSite) -> None:
    assert len(shown_rows(text_of(answer_to(site, "/?" + "&".join(["key=nothing"] * 50))))) == 12


def test_a_mistake_of_ours_is_told_on_the_terminal(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("<oops>")

    monkeypatch.setattr(TokenBrowser, "find", fail)
    page = text_of(answer_to(open_site(str(finished / "out"), None, None), "/"), 500)
    assert "mistake of vqgan" in page
    assert "oops" not in page
    assert "ZeroDivisionError: <oops>" in capsys.readouterr().err


class Maker:
    """Squares numbers; fails for odd ones; the first call waits for ``go``."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self, numbers: list[int]) -> dict[int, int | UserError]:
        self.calls.append(numbers)
        self.began.set()
        assert self.go.wait(60)
        return {number: UserError(f"odd {number}") if number % 2 else number**2 for number in numbers}


def test_what_waits_is_made_together() -> None:
    make = Maker()
    made = MadeTogether(make, 3, 100)
    results: dict[int, object] = {}

    def ask(number: int) -> None:
        try:
            results[number] = made(number)
        except UserError as error:
            results[number] = str(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in (0, 1, 2, 3, 4, 5, 6)]
    threads[0].start()
    assert make.began.wait(60)
    for thread in threads[1:]:
        thread.start()
    while sum(made._asked.values()) < 7:
        threading.Event().wait(0.01)
    make.go.set()
    for thread in threads:
        thread.join(60)
    assert results == {0: 0, 1: "odd 1", 2: 4, 3: "odd 3", 4: 16, 5: "odd 5", 6: 36}
    assert make.calls[0] == [0]
    assert len(make.calls[1]) == 3
    assert all(len(call) <= 3 for call in make.calls)
    made_even = [number for call in make.calls for number in call if number % 2 == 0]
    assert sorted(made_even) == [0, 2, 4, 6]  # each once
    assert not +made._asked


def test_the_latest_results_are_kept() -> None:
    make = Maker()
    make.go.set()
    made = MadeTogether(make, 1, 2)
    for number in (0, 2, 0, 4, 0, 2):
        assert made(number) == number**2
    assert make.calls == [[0], [2], [4], [2]]


def test_patches_and_colours() -> None:
    pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    np.testing.assert_array_equal(patch_of(pixels, (3, 2), 3), pixels[2:4, 4:8])
    colors = token_colors(np.arange(64).reshape(8, 8))
    assert colors.shape == (8, 8, 3)
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) == 64
    large = token_colors(np.array([[2**31 - 1, 0]]))
    assert large.dtype == np.uint8
