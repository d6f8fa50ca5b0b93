"""Cards of token data sets: front matter that the Hub's tools read, and words that no user's can break."""

import json
import re
from typing import Any

import pytest

from vqgan.dataset_card import render_dataset_card, size_category

HOSTILE = (
    'x"\n---\nlicense: mit\n# Heading\n<script>alert(1)</script> | [a](javascript:b) `c` ```\n'
    "$d$ \x85\u2028\x00é"
)
CONFIG = {
    "config_name": "default",
    "data_files": [{"split": "train", "path": "data/*.parquet"}],
    "default": True,
}
REJECTS = {"config_name": "rejects", "data_files": [{"split": "train", "path": "rejects/*.parquet"}]}


def a_manifest(**changes: Any) -> dict[str, Any]:
    """What ``vqgan tokenize`` makes, as far as a card looks at it."""
    geometry = {
        "image_size": 256,
        "resize": "center-crop",
        "filter": "lanczos",
        "views": "hflip",
        "random_crops": 4,
    }
    manifest = {
        "version": 2,
        "plan_hash": "cd" * 32,
        "identity": {"preprocessing": {"decode": {"jpeg_draft": True}, "geometry": geometry},
                     "source": {"kind": "folder", "class_names": []}},
        "codec": {"name": "tiny", "fingerprint": "ab" * 32, "config": {}, "card": {"license": "apache-2.0"}},
        "grid": [32, 24],
        "counts": {"planned": 1300, "images": 1234, "rejects": 66, "rows": 2468, "tokens": 1895424},
        "shards": [{"name": "data/tokens-00000-of-00001.parquet", "rows": 2468, "bytes": 5, "sha256": ""}],
        "rejects": [{"name": "rejects/rejects-00000-of-00001.parquet", "rows": 66, "bytes": 5, "sha256": ""}],
        "codebook": {"size": 1024, "used": 1000},
    }  # fmt: skip
    return manifest | changes


def yaml_of(text: str) -> dict[str, Any]:
    """The front matter, read by a YAML parser."""
    yaml = pytest.importorskip("yaml")
    head, block, _ = text.split("---\n", 2)
    assert head == ""
    loaded = yaml.safe_load(block)
    assert isinstance(loaded, dict)
    return loaded


def test_the_card_of_tokenized_images() -> None:
    text = render_dataset_card(a_manifest())
    assert yaml_of(text) == {
        "license": "unknown",
        "tags": ["vqgan", "vqgan-pipelines", "image-tokens", "vector-quantization"],
        "task_categories": ["unconditional-image-generation"],
        "size_categories": ["1K<n<10K"],
        "configs": [CONFIG, REJECTS],
    }
    for expected in (
        "# 1,234 images as VQGAN tokens\n",
        "- **Rows**: 2,468 (`data/`)",
        "- **Rejects**: 66, with the reason (`rejects/`)",
        "- **Grid**: 32 × 24",
        "- **Codebook**: 1,024 codes, 1,000 of them used",
        f"- **Codec**: tiny, fingerprint `{'ab' * 32}`",
        "256 × 256 pixels: the largest centred square, with an antialiased Lanczos filter; two rows",
        "- of the images: not recorded\n- of the codec: apache-2.0\n",
        'load_dataset("path/to/this/folder", split="train")',
        'open_tokens("path/to/this/folder")',
        "vqgan decode --tokens ",
    ):
        assert expected in text
    assert "## Sampling" not in text
    assert render_dataset_card(json.loads(json.dumps(a_manifest()))) == text


def test_without_rejects() -> None:
    counts = a_manifest()["counts"] | {"rejects": 0}
    text = render_dataset_card(a_manifest(rejects=[], counts=counts))
    assert yaml_of(text)["configs"] == [CONFIG]
    assert "- **Rejects**: none\n" in text
    assert "rejects/" not in text


def test_sampled_tokens() -> None:
    sampling = {"prior": {"fingerprint": "ef" * 32}, "settings": {"top_p": 0.95}, "first_seed": 0}
    identity = {"preprocessing": {}, "source": {"kind": "prior", "class_names": []}, "sampling": sampling}
    text = render_dataset_card(a_manifest(identity=identity, rejects=[]))
    assert "synthetic" in yaml_of(text)["tags"]
    for expected in (
        "# 1,234 sampled images as VQGAN tokens\n",
        "Drawn from a prior: 32 × 24 tokens",
        '"top_p": 0.95',
    ):
        assert expected in text
    assert f"Prior: fingerprint `{'ef' * 32}`" in text
    assert "## Preprocessing" not in text
    assert "of the images" not in text


@pytest.mark.parametrize(
    ("licence", "expected", "shown"),
    [
        ("CC-BY-4.0", {"license": "cc-by-4.0"}, "CC-BY-4.0"),
        ("My own", {"license": "other", "license_name": "my-own"}, "My own"),
        ("", {"license": "unknown"}, "not recorded"),
        (None, {"license": "unknown"}, "not recorded"),
        ({"a": 1}, {"license": "unknown"}, "not recorded"),
    ],
)
def test_licences(licence: object, expected: dict[str, str], shown: str) -> None:
    text = render_dataset_card(a_manifest(license=licence))
    assert {name: value for name, value in yaml_of(text).items() if name.startswith("license")} == expected
    assert f"- of the images: {shown}\n" in text


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (1_281_167, "1M<n<10M"),
        (10**12 - 1, "100B<n<1T"),
        (10**12, "n>1T"),
    ],
)
def test_size_categories(rows: int, name: str) -> None:
    assert size_category(rows) == name


@pytest.mark.parametrize("kind", ["folder", "prior"])
def test_no_words_break_out(kind: str) -> None:
    geometry = {
        "image_size": HOSTILE,
        "resize": HOSTILE,
        "filter": HOSTILE,
        "views": HOSTILE,
        HOSTILE: HOSTILE,
    }
    identity = {
        "preprocessing": {"geometry": geometry},
        "source": {"kind": kind},
        "sampling": {"prior": {"fingerprint": HOSTILE}, "settings": HOSTILE},
    }
    codec = {"name": HOSTILE, "fingerprint": HOSTILE, "card": {"license": HOSTILE}}
    text = render_dataset_card(a_manifest(license=HOSTILE, identity=identity, codec=codec, plan_hash=HOSTILE))
    front = yaml_of(text)
    assert front["license"] == "other"
    assert front["configs"] == [CONFIG, REJECTS]
    body = text.split("---\n", 2)[2]
    outside = re.sub("^```.*?^```", "", body, flags=re.DOTALL | re.MULTILINE)
    assert body.count("\n```") == (10 if kind == "prior" else 8)  # begin and end of each block
    assert "<" not in outside
    assert [line for line in outside.splitlines() if line.startswith("---")] == []
    assert len([line for line in outside.splitlines() if line.startswith("# ")]) == 1
    headings = [line for line in outside.splitlines() if line.startswith("## ")]
    assert headings[:3] == ["## Contents", "## Reading", "## Decoding"]
    assert len(headings) == (6 if kind == "prior" else 5)
    assert re.findall(r"(?<!\\)[\[\]$]", outside) == []
    text.encode()
