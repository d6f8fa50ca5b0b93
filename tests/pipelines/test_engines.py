"""--engine: what commands write says which engine ran, another one is refused, and agreement is told."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from vqgan.engines import choice

from .conftest import Vqgan
from .test_sample_prior import save_random_prior

INSTALLED = importlib.util.find_spec("openvino") is not None
with_openvino = pytest.mark.skipif(not INSTALLED, reason="NOT CHECKED: openvino is not installed (extra cpu)")
ENGINE = ("--engine", "openvino")


def read_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture
def tokenize(few: Path, codec_path: str, tmp_path: Path, vqgan: Vqgan) -> Any:
    """Tokenizes ten images in three slices to a folder of this name."""

    def tokenize(name: str, *flags: str) -> Any:
        where = ("--input", few, "--codec", codec_path, "--output", tmp_path / name)
        return vqgan("tokenize", *where, "--slice-size", 4, "--batch-size", 4, "--no-report", *flags)

    return tokenize


@with_openvino
def test_tokens_of_an_engine(
    tokenize: Any, tmp_path: Path, few: Path, codec_path: str, vqgan: Vqgan, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tokenize("out", *ENGINE)
    assert done.code == 0
    version = choice.resolve_engine("openvino").version
    assert f", engine openvino {version}" in done.err
    assert "  engine: 1,024 of 1,024 tokens of 4 images are JAX's, 1,0" in done.err
    manifest = read_manifest(tmp_path / "out")
    assert manifest["identity"]["engine"] == f"openvino {version}"
    found = manifest["agreement_with_jax"]
    assert (found["images"], found["tokens"]) == (4, 1024)
    assert found["clear"] == found["clear_equal"] > 1000
    names = [entry["name"] for entry in manifest["shards"]]
    footers = [json.loads(pq.read_metadata(tmp_path / "out" / name).metadata[b"vqgan"]) for name in names]
    assert {footer["engine"] for footer in footers} == {f"openvino {version}"}
    for described in (tmp_path / "out", tmp_path / "out" / names[0]):
        assert f"openvino {version}" in vqgan("inspect", described).out

    # The same bytes by another mode of the runner.
    modes = ("--direct_running_mode=multi_threading", "--direct_num_workers=2")
    assert tokenize("threads", *ENGINE, *modes).code == 0
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "threads" / name).read_bytes()

    # Continued by the same engine, and by no other.
    (tmp_path / "out" / names[1]).unlink()
    refused = tokenize("out")
    assert refused.code == 2
    assert f"belongs to another run (engine: openvino {version}, now jax); choose" in refused.line
    assert tokenize("out", *ENGINE).code == 0
    assert (tmp_path / "out" / names[1]).read_bytes() == (tmp_path / "threads" / names[1]).read_bytes()

    # Verified by the same engine, by another one, and where it is missing.
    encode = ("verify", tmp_path / "out", "--codec", codec_path, "--input", few)
    same = vqgan(*encode)
    assert (same.code, "re-encoded by" in same.out) == (0, False)
    assert "10 images re-encoded: 100.0000% of tokens agree" in same.out
    other = vqgan(*encode, "--engine", "jax", "--min-agreement", "1.1")
    assert other.code == 0
    assert f"re-encoded by jax, made by openvino {version}: no other agreement is asked for" in other.out
    assert vqgan(*encode, "--min-agreement", "1.1").code == 1
    monkeypatch.setattr(choice, "_openvino_version", lambda: "1.0")
    assert "re-encoded by jax, made by openvino" in vqgan(*encode).out


@with_openvino
def test_images_of_an_engine(tokenize: Any, tmp_path: Path, few: Path, codec_path: str, vqgan: Vqgan) -> None:
    assert tokenize("tokens").code == 0
    decode = ("decode", "--tokens", tmp_path / "tokens", "--output", tmp_path / "images", "--no-report")
    done = vqgan(*decode, *ENGINE)
    assert done.code == 0
    assert "of the values of 4 images are JAX's, the largest difference is" in done.err
    manifest = read_manifest(tmp_path / "images")
    assert manifest["identity"]["engine"].startswith("openvino 2")
    found = manifest["agreement_with_jax"]
    assert (found["images"], found["equal"] > 0.99, found["largest"] <= 1) == (4, True, True)
    assert vqgan("verify", tmp_path / "images").code == 0
    assert "(engine: openvino" in vqgan(*decode).line

    prior = save_random_prior(tmp_path / "prior", codec_path)
    where = ("--prior", prior, "--count", 2, "--output", tmp_path / "samples")
    assert vqgan("sample", *where, *ENGINE).code == 0
    manifest = read_manifest(tmp_path / "samples")
    assert manifest["identity"]["pictures"]["engine"].startswith("openvino 2")
    assert manifest["agreement_with_jax"]["images"] == 2
    assert vqgan("verify", tmp_path / "samples").code == 0
    assert "(pictures.engine: openvino" in vqgan("sample", *where).line

    where = ("--input", few, "--codec", codec_path, "--output", tmp_path / "evaluation")
    assert vqgan("evaluate", *where, "--metrics", "psnr", *ENGINE).code == 0
    results = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert results["engine"].startswith("openvino 2")
    assert results["codecs"][0]["agreement_with_jax"]["images"] == 4


def test_an_engine_that_is_missing(tokenize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    done = tokenize("out", *ENGINE)
    assert done.code == 2
    assert "--engine openvino needs openvino (extra 'cpu'), not installed; install it with" in done.line
    assert not (tmp_path / "out").exists()


def test_the_default_is_jax_whatever_is_installed(tokenize: Any, tmp_path: Path) -> None:
    """A package that is installed must not turn the plan of a run that is to be continued."""
    done = tokenize("out")
    assert (done.code, "engine" in done.err) == (0, False)
    manifest = read_manifest(tmp_path / "out")
    assert not {"engine"} & manifest["identity"].keys()
    assert "agreement_with_jax" not in manifest
    shutil.rmtree(tmp_path / "out")
