"""Paths mean the same on a worker, whatever folder it was started in."""

from pathlib import Path

import pytest

from pipelines.options.run_options import TokenizeOptions
from pipelines.runners.beam_runs import codec_everywhere, everywhere
from pipelines.tokenize_images import plan_tokenize
from transforms.images.crops import Geometry


def test_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert everywhere("photos/*.jpg") == f"{tmp_path}/photos/*.jpg"
    assert everywhere("~/photos") == "/home/me/photos"
    for same in (
        "/photos",
        "s3://bucket/photos?region=x",
        "gs://b/c",
        "tfds:mnist/train",
        "hf://datasets/o/n",
    ):
        assert everywhere(same) == same
    assert everywhere("tfds:mnist/train?data_dir=d") == f"tfds:mnist/train?data_dir={tmp_path}/d"


def test_codecs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.ckpt").touch()
    (tmp_path / "tiny").mkdir()
    assert codec_everywhere("model.ckpt?weights=ema") == f"{tmp_path}/model.ckpt?weights=ema"
    assert codec_everywhere("model.ckpt") == f"{tmp_path}/model.ckpt"
    for same in ("hf://owner/name", "tiny", "nowhere"):  # that folder holds no codec
        assert codec_everywhere(same) == same
    (tmp_path / "tiny" / "codec.json").touch()
    assert codec_everywhere("tiny") == f"{tmp_path}/tiny"


def test_what_a_worker_gets(photos: Path, codec_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own words stay in the manifest: a data set that is given away names no one's folders."""
    monkeypatch.chdir(photos.parent)
    name = Path(codec_path).name
    Path(name).symlink_to(codec_path)
    options = TokenizeOptions(input=photos.name, output="out", codec=name, quiet=True)
    task = plan_tokenize(options.config()).task
    assert (task.source.input, task.output) == (str(photos), f"{photos.parent}/out")
    assert (task.codec, task.codec_name) == (f"{photos.parent}/{name}", name)
    assert task.threads is None
    assert task.geometry == Geometry(image_size=32)
