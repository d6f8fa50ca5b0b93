"""Model cards: JSON of every release, and a README whose front matter and text no user's words can break."""

import json
import math
import re
from typing import Any

import pytest

from vqgan.codec_checkpoint import read_info
from vqgan.config import ModelConfig
from vqgan.model_card import Metric, ModelCard, escape, front_matter, render_codec_card

HOSTILE = (
    'x"\n---\nlicense: mit\n# Heading\n<script>alert(1)</script> | [a](javascript:b) `c` ```\n'
    "$d$ \x85\u2028\x00é"
)
FULL = ModelCard(
    name="f16",
    data="photographs of streets",
    training_images=1281167,
    validation_images=50000,
    steps=200_000,
    minutes=431.5,
    configuration={"train": {"batch_size": 32}},
    metrics={
        "psnr": Metric(24.31579, 50000, "validation images"),
        "used_codes": Metric(1024.0, 50000, "same"),
    },
    licence="CC-BY-4.0",
    origin={"format": "taming", "sha256": "ab"},
    parents=("tiny",),
)


def yaml_of(text: str) -> dict[str, Any]:
    """The front matter, read by a YAML parser."""
    yaml = pytest.importorskip("yaml")
    head, block, _ = text.split("---\n", 2)
    assert head == ""
    loaded = yaml.safe_load(block)
    assert isinstance(loaded, dict)
    return loaded


def test_round_trip_through_json() -> None:
    card = json.loads(json.dumps(FULL.to_json(), allow_nan=False))
    assert ModelCard.from_json(card) == FULL
    assert card["license"] == "CC-BY-4.0"
    assert card["metrics"]["psnr"] == {
        "value": 24.31579, "samples": 50000, "reference": "validation images",
    }  # fmt: skip
    assert ModelCard().to_json() == {"license": "unspecified"}
    assert ModelCard.from_json({}) == ModelCard()


def test_a_figure_that_is_not_finite() -> None:
    card = ModelCard(metrics={"frechet": Metric(math.inf, 3, "r")})
    data = json.loads(json.dumps(card.to_json(), allow_nan=False))
    assert data["metrics"]["frechet"]["value"] is None
    assert math.isnan(ModelCard.from_json(data).metrics["frechet"].value)
    assert "| frechet | not finite | 3 | r |" in render_codec_card(data, ModelConfig(), "f" * 64)


def test_the_card_of_a_training_run() -> None:
    card = {
        "license": "mit",
        "data": {
            "source": "images/",
            "training_images": 90,
            "validation_source": "more/",
            "held_back_images": 10,
        },
        "steps": 700,
        "minutes": 2.5,
        "training": {"train": {"steps": 900}},
        "metrics": {"psnr": 21.5},
    }
    read = ModelCard.from_json(card)
    assert (read.data, read.training_images, read.steps, read.licence) == ("images/", 90, 700, "mit")
    assert read.metrics == {"psnr": Metric(21.5, 10, "validation images of more/")}


def test_an_older_card() -> None:
    """``tiny-v1`` was trained before cards had their present form."""
    info = read_info("tiny-v1")
    card = ModelCard.from_json(info.card)
    assert card.steps == 6000
    assert card.training_images == 249
    assert card.metrics["used_codes"] == Metric(982.0, 32, "validation images")
    text = render_codec_card(info.card, info.config, info.fingerprint)
    assert yaml_of(text)["license"] == "apache-2.0"
    assert "# tiny-v1\n" in text
    assert "| psnr | 23.6672 | 32 | validation images |" in text
    assert "- **Images**: 249 training images, 32 for validation" in text


def test_an_imported_codec_has_an_origin_only() -> None:
    origin = {"format": "taming", "file": "last.ckpt", "training_step": 5, "unused_parts": ["loss"]}
    text = render_codec_card({"origin": origin}, ModelConfig(), "ab" * 32)
    assert yaml_of(text)["license"] == "unknown"
    assert "metrics" not in yaml_of(text)
    assert "# VQGAN codec abababababab\n" in text
    assert "| training\\_step | 5 |" in text
    assert '| unused\\_parts | \\["loss"\\] |' in text
    assert "## Training" not in text
    assert "## Metrics" not in text


def test_a_full_card() -> None:
    text = render_codec_card(FULL.to_json(), ModelConfig(), "ab" * 32)
    assert yaml_of(text) == {
        "license": "cc-by-4.0",
        "library_name": "vqgan-pipelines",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["vqgan", "image-tokenizer", "vector-quantization", "jax"],
        "metrics": ["psnr", "used_codes"],
    }
    for expected in (
        "16 × 16 pixels a token, 1,024 codes of 256 dimensions",
        "- **Data**: photographs of streets",
        "- **Steps**: 200,000",
        "- **Started from**: tiny",
        "| psnr | 24.3158 | 50,000 | validation images |",
        "| used\\_codes | 1,024.0 | 50,000 | same |",
        "## Licence\n\nWeights: CC-BY-4.0",
        f"Fingerprint: `{'ab' * 32}`",
    ):
        assert expected in text
    block = re.search("```json\n(.*?)\n```", text, re.DOTALL)
    assert block is not None
    assert json.loads(block[1])["training"] == {"train": {"batch_size": 32}}
    assert json.loads(block[1])["model"]["codebook_size"] == 1024


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("unspecified", {"license": "unknown"}),
        ("MIT", {"license": "mit"}),
        ("My own: see #3", {"license": "other", "license_name": "my-own-see-3"}),
        ("no", {"license": "other", "license_name": "no"}),
        ("…", {"license": "unknown"}),
        (
            HOSTILE,
            {
                "license": "other",
                "license_name": "x-license-mit-heading-script-alert-1-script-a-javascript-b-c-d",
            },
        ),
    ],
)
def test_licences(licence: str, expected: dict[str, str]) -> None:
    found = yaml_of(front_matter({"license": licence}))
    assert {name: value for name, value in found.items() if name.startswith("license")} == expected


def test_no_words_break_out() -> None:
    card = {
        "name": HOSTILE,
        "data": {"what": HOSTILE},
        "metrics": {HOSTILE: {"value": 1.5, "samples": 2, "reference": HOSTILE}, "y: z": 1.0},
        "license": HOSTILE,
        "training": {HOSTILE: HOSTILE},
        "origin": {HOSTILE: HOSTILE},
        "parents": [HOSTILE],
    }
    text = render_codec_card(card, ModelConfig(), "ab" * 32)
    assert yaml_of(text)["license"] == "other"
    body = text.split("---\n", 2)[2]
    outside = re.sub("^```.*?^```", "", body, flags=re.DOTALL | re.MULTILINE)
    assert body.count("\n```") == 4  # begin and end of two blocks
    assert "<" not in outside
    assert [line for line in outside.splitlines() if line.startswith("---")] == []
    assert [line for line in outside.splitlines() if line.startswith("# ")][1:] == []
    headings = [line for line in outside.splitlines() if line.startswith("## ")]
    assert headings == ["## Training", "## Metrics", "## Origin", "## Licence", "## Configuration"]
    assert re.findall(r"(?<!\\)[\[\]$]", outside) == []
    for row in (line for line in outside.splitlines() if line.startswith("| ") and "alert" in line):
        assert len(re.findall(r"(?<!\\)\|", row)) in (3, 5)
    text.encode()


def test_escape() -> None:
    assert escape("a*b_c [d] <e> & `f` \\g | #h\n\ti") == (
        "a\\*b\\_c \\[d\\] &lt;e&gt; &amp; \\`f\\` \\\\g \\| \\#h i"
    )
    assert escape("\ud800\u202e\x00") == ""


@pytest.mark.parametrize(
    "card",
    [
        {"data": "a text", "metrics": [1], "steps": "many", "parents": 5, "license": 3, "origin": "o"},
        {"data": {"training_images": -0.5}, "metrics": {"psnr": {"value": "high"}, "x": True}},
        {"training": [], "held_back": {"psnr": None}, "minutes": math.inf, "steps": math.nan},
    ],
)
def test_cards_of_any_form_can_be_rendered(card: dict[str, Any]) -> None:
    read = ModelCard.from_json(card)
    assert (read.metrics, read.steps, read.parents) == ({}, 0, ())
    assert yaml_of(render_codec_card(card, ModelConfig(), "ab" * 32))["license"] == "unknown"
