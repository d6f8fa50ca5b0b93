"""The examples of the public names: each is run as it stands, in a folder with what it takes for granted."""

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipelines
import vqgan
from tests.docs.standins import PHOTOS, PRIOR_TRAINING, TRAINING
from vqgan.codec_checkpoint import read_info
from vqgan.config_json import to_dict
from vqgan.prior.checkpoint import CodecIdentity, save_prior
from vqgan.prior.config import PriorConfig, prior_parameter_shapes

FACES = {
    **{
        f"vqgan.{name}": getattr(vqgan, name)
        for name in vqgan.__all__
        if name not in ("__version__", "ModelConfig")
    },
    **{f"pipelines.{name}": getattr(pipelines, name) for name in pipelines.__all__},
    "vqgan": vqgan,
    "pipelines": pipelines,
}

SMALL = {
    "pipelines.train": TRAINING,
    "pipelines.train_prior": (*PRIOR_TRAINING, "data.holdout=2", "data.samples=0"),
}
"""What is set in examples of training in place of what stands there, which takes long."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, their tokens, and a prior of two classes with random weights."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "photos").mkdir()
    for path in PHOTOS:
        (folder / "photos" / path.name).symlink_to(path)
    where: dict[str, Any] = {"input": folder / "photos", "output": folder / "tokens"}
    pipelines.tokenize(codec="tiny", image_size=64, batch_size=10, report=False, quiet=True, **where)
    config = PriorConfig(codebook_size=1024, grid=(8, 8), classes=2, layers=1, heads=2, width=16)
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape) for name, shape in prior_parameter_shapes(config).items()}
    info = read_info("tiny")
    codec = CodecIdentity(info.fingerprint, "tiny", to_dict(info.config), 64)
    save_prior(folder / "prior", config, weights, codec=codec, class_names=("cat", "dog"))
    return folder


@pytest.mark.parametrize("name", FACES)
def test_example(name: str, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = FACES[name].__doc__ or ""
    for path in given.iterdir():
        if f'output="{path.name}/"' not in text:
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    if name in SMALL:
        assert ", set=changes" in text
        text = text.replace(", set=changes", ", set=SMALL")
    example = doctest.DocTestParser().get_doctest(text, {"SMALL": SMALL.get(name)}, name, None, None)
    assert len(example.examples) > 1, f"{name} has no example"
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert "".join(said) == ""
