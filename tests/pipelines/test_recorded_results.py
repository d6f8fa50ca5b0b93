"""What commands write is what it was when ``tests/testdata/recorded_results.json`` was made.

Rows, footers, plans, manifests and image pixels are compared, not the files' bytes, which depend on the
release of pyarrow as well. To record anew after a change that is meant to alter results:
``VQGAN_RECORD=1 make test TESTS=tests/pipelines/test_recorded_results.py WORKERS=0``.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from .conftest import PHOTOS, Vqgan
from .test_sample_prior import save_random_prior

RECORD = Path(__file__).parents[1] / "testdata" / "recorded_results.json"
PASSING = {"versions", "throughput", "finished", "storage"}
"""Parts of a manifest that differ from run to run, or with the release of a library."""


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


def table_digest(table: pa.Table) -> dict[str, str]:
    """Of each column, so that a failure tells which one differs."""
    columns = {
        name: digest([repr(value) for value in column.to_pylist()])
        for name, column in zip(table.schema.names, table.columns, strict=True)
        if name not in ("image", "modified")  # images are compared by their means, and times of files pass
    }
    return {"schema": str(table.schema.remove_metadata()), **columns}


def footer(path: Path) -> dict[str, Any]:
    found = pq.read_metadata(path).metadata or {}
    return {
        key.decode(): json.loads(value) for key, value in found.items() if key in (b"vqgan", b"vqgan-images")
    }


def without_sums(value: Any) -> Any:
    """JSON data without what depends on the bytes of files or on where they lie."""
    if isinstance(value, dict):
        dropped = {"bytes", "sha256", "path", "shards_sha256", "plan_hash", "hash", "name", "image_bytes"}
        return {key: without_sums(inner) for key, inner in value.items() if key not in dropped}
    return [without_sums(inner) for inner in value] if isinstance(value, list) else value


def data_set(folder: Path) -> dict[str, Any]:
    """Digests of all that a command has written."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.parquet")):
        name = str(path.relative_to(folder))
        found[name] = {**table_digest(pq.read_table(path)), "footer": digest(without_sums(footer(path)))}
    manifest = json.loads((folder / "manifest.json").read_text())
    # What images were decoded from is named by its place, and by sums of its shards' bytes.
    left_out = PASSING | ({"plan_hash", "tokens"} if manifest.get("kind") == "images" else set())
    found["manifest"] = {
        name: digest(without_sums(part)) for name, part in manifest.items() if name not in left_out
    }
    found["plan"] = digest(without_sums(json.loads((folder / "plan" / "plan.json").read_text())))
    return found


def means(images: Iterable[Path]) -> list[list[int]]:
    """Mean colour of each image's four quarters: robust against the last bit of a processor's arithmetic."""
    found = []
    for path in images:
        pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"), np.float64)
        h, w = pixels.shape[0] // 2, pixels.shape[1] // 2
        quarters = [pixels[:h, :w], pixels[:h, w:], pixels[h:, :w], pixels[h:, w:]]
        found.append([round(float(quarter.mean())) for quarter in quarters])
    return found


def compare(name: str, found: dict[str, Any]) -> None:
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if os.environ.get("VQGAN_RECORD"):
        RECORD.write_text(json.dumps({**recorded, name: found}, indent=1, sort_keys=True) + "\n")
        pytest.skip(f"{name}: recorded anew")
    assert found == recorded[name]


def test_tokens_of_photographs_by_the_shipped_codec(vqgan: Vqgan, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for path in PHOTOS:
        (tmp_path / "in" / path.name).symlink_to(path)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no image")
    flags = ["--image-size", 64, "--views", "hflip", "--slice-size", 6, "--batch-size", 4, "--threads", 2]
    where = ["--input", tmp_path / "in", "--output", tmp_path / "out", "--codec", "tiny"]
    assert vqgan("tokenize", *where, *flags, "--quiet", "--no-report").code == 0
    compare("tokenize", data_set(tmp_path / "out"))


@pytest.mark.parametrize("kind", ["autoregressive", "masked"])
def test_samples(vqgan: Vqgan, tmp_path: Path, codec_path: str, kind: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "codec").symlink_to(codec_path)  # its name, the same on every machine, stands in the manifest
    save_random_prior(tmp_path / "prior", "codec", kind)
    flags = [
        "--count",
        10,
        "--batch-size",
        4,
        "--slice-size",
        5,
        "--seed",
        7,
        "--top-k",
        30,
        "--guidance",
        1.5,
    ]
    where = ["--prior", tmp_path / "prior", "--output", tmp_path / "out"]
    assert vqgan("sample", *where, *flags, "--quiet").code == 0
    images = sorted((tmp_path / "out" / "images").glob("*.png"))
    compare(f"sample-{kind}", {**data_set(tmp_path / "out"), "images": means(images)})


@pytest.mark.parametrize("container", ["png", "tar", "parquet"])
def test_decoded_images(vqgan: Vqgan, finished: Path, tmp_path: Path, container: str) -> None:
    where = ["--tokens", finished / "out", "--output", tmp_path / "out", "--format", container]
    assert vqgan("decode", *where, "--batch-size", 4, "--quiet", "--no-report").code == 0
    found = data_set(tmp_path / "out")
    for name, columns in found.items():
        if name.startswith(("data/", "index/")):  # of the files: one level of one pixel changes them
            del columns["bytes"], columns["sha256"]
    images = sorted((tmp_path / "out").rglob("*.png"))
    compare(f"decode-{container}", {**found, "images": means(images)})
