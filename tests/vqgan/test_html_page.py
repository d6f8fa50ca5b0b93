"""Pieces of pages: escaped, and images within their bounds."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vqgan import html_page

HOSTILE = "<script>\"'&"
ESCAPED = "&lt;script&gt;&quot;&#x27;&amp;"


def image(uri: str) -> tuple[str, Image.Image]:
    kind, _, data = uri.partition(";base64,")
    return kind, Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def test_texts_are_escaped() -> None:
    made = html_page.document(
        HOSTILE,
        HOSTILE,
        [
            html_page.section(HOSTILE, "<p>body</p>", "kind"),
            html_page.tiles([(HOSTILE, HOSTILE)]),
            html_page.table((HOSTILE, HOSTILE), [(HOSTILE, HOSTILE)]),
            html_page.details({HOSTILE: [1]}),
        ],
    )
    assert "<script>" not in made
    assert made.count(ESCAPED) == 2 + 1 + 1 + 2 + 4 + 1
    assert "<div class='kind'><p>body</p></div>" in made


def test_both_themes_have_every_colour() -> None:
    light, dark = html_page.STYLE.split("@media(prefers-color-scheme:dark)")
    names = {part.split(":")[0] for part in light.split("{")[1].split("}")[0].replace("\n", "").split(";")}
    dark_names = {
        part.split(":")[0] for part in dark.split("{")[2].split("}")[0].replace("\n", "").split(";")
    }
    assert names == dark_names
    assert len(names) == 8


def test_png_keeps_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    kind, opened = image(html_page.data_uri(pixels))
    assert kind == "data:image/png"
    np.testing.assert_array_equal(np.asarray(opened), pixels)
    assert image(html_page.data_uri(pixels, 10_000))[0] == "data:image/png"


@pytest.mark.parametrize(("most", "size"), [(40_000, 128), (4_000, None), (1, None)])
def test_a_large_image_becomes_a_small_jpeg(most: int, size: int | None) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    uri = html_page.data_uri(pixels, most)
    kind, opened = image(uri)
    assert kind == "data:image/jpeg"
    assert opened.width == opened.height
    if size is not None:
        assert opened.size == (size, size)
    if most > 1:
        assert len(base64.b64decode(uri.partition(",")[2])) <= most
    else:
        assert opened.width < 64


def test_figures_enlarge_and_links_lead_to_what_they_name() -> None:
    made = html_page.figure([(HOSTILE, "data:a"), ("b", "data:b")], HOSTILE, HOSTILE)
    assert "<script>" not in made
    # The label holds box and images, so that a click on an image turns the box, which enlarges all of them.
    label = made[made.index("<label") : made.index("</label>")]
    assert "<input type=checkbox" in label
    assert label.count("<img ") == 2
    assert ".zoom input:checked+span{position:fixed" in html_page.STYLE
    links = html_page.links([("a/report.html", HOSTILE)])
    assert "href='a/report.html'" in links
    assert "<script>" not in links


def test_a_number_has_a_word_on_what_is_good() -> None:
    made = html_page.tiles([html_page.Tile("PSNR", "30 dB", "higher is better"), ("steps", "5")])
    assert "<b>30 dB</b><span>PSNR</span><small>higher is better</small>" in made
    assert made.count("<small>") == 1
