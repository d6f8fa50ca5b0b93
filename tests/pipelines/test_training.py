"""``vqgan train``: settings, pictures, and a codec that tokenize takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from pipelines import training
from pipelines.training import load_pictures, override
from transforms.sources import SourceConfig
from vqgan.config import ModelConfig
from vqgan.errors import UserError
from vqgan.model import VQGAN
from vqgan.presets import PRESETS
from vqgan.training.tokenizer import Progress, TrainConfig

Vqgan = Callable[..., Any]
SMALL = ModelConfig(
    resolution=16, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), mid_attention=False,
    z_channels=8, embed_dim=4, codebook_size=16, norm_groups=4,
)  # fmt: skip


def test_override() -> None:
    settings = ["model.ch=32", "model.ch_mult=[1, 2]", "model.resolution=64", "train.steps=7", "train.seed=3"]
    config = override(PRESETS["tiny"], "model", settings)
    assert (config.ch, config.ch_mult, config.resolution) == (32, (1, 2), 64)
    changed = override(TrainConfig(), "train", [*settings, "train.autoencoder_steps=1"])
    assert (changed.steps, changed.seed) == (7, 3)
    assert override(TrainConfig(), "train", []) == TrainConfig()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("model.chanels=3", "unknown field 'chanels'"),
        ("model.ch=many", "expected int, got 'many'"),
        ("model.ch=3.5", "expected int"),
        ("model.ch", "write model.FIELD=VALUE"),
        ("ch=3", "write model.FIELD=VALUE"),
        ("other.ch=3", "write model.FIELD=VALUE"),
        ("model.norm_groups=7", "norm_groups is 7"),
    ],
)
def test_wrong_settings(vqgan: Vqgan, photos: Path, tmp_path: Path, setting: str, says: str) -> None:
    result = vqgan("train", "--data", photos, "--output", tmp_path / "codec", "--set", setting)
    assert (result.code, says in result.line) == (2, True)
    assert not (tmp_path / "codec").exists()


def test_pictures(photos: Path, few: Path) -> None:
    (few / "broken.jpg").write_bytes(b"no image")
    Image.new("RGB", (1400, 700)).save(few / "large.png")
    Image.new("RGB", (8, 100)).save(few / "narrow.png")
    train, held_back = load_pictures(SourceConfig(str(few)), SMALL, crop_size=33, holdout=0)
    assert len(train) == 11  # ten photographs of 48x40 and the large picture
    assert all(picture.dtype == np.uint8 and min(picture.shape[:2]) >= 33 for picture in train)
    assert max(min(picture.shape[:2]) for picture in train) == training.MAX_SHORT_SIDE
    assert held_back.shape == (0, 16, 16, 3)


def test_holdout_does_not_depend_on_other_pictures(photos: Path, few: Path) -> None:
    train, held_back = load_pictures(SourceConfig(str(photos)), SMALL, crop_size=16, holdout=3)
    assert len(train) + len(held_back) == 40
    assert 5 < len(held_back) < 22
    some, some_back = load_pictures(SourceConfig(str(few)), SMALL, crop_size=16, holdout=3)
    assert len(some) + len(some_back) == 10
    whole = {picture.tobytes() for picture in held_back}
    assert all(picture.tobytes() in whole for picture in some_back)


def test_no_usable_picture(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="no picture of at least 16 pixels"):
        load_pictures(SourceConfig(str(tmp_path)), SMALL, crop_size=16, holdout=10)


def test_unknown_preset(vqgan: Vqgan, photos: Path, tmp_path: Path) -> None:
    result = vqgan("train", "--data", photos, "--output", tmp_path / "c", "--preset", "huge")
    assert (result.code, "--preset huge: known are" in result.line) == (2, True)


def untrained(model: ModelConfig, config: TrainConfig, images: Any, report: Any) -> VQGAN:
    """In place of training, which has tests of its own and takes long to compile."""
    assert all(min(picture.shape[:2]) >= config.crop_size for picture in images)
    for step in range(1, config.steps + 1):
        report(Progress(step, 0.5, 0.1, 10.0))
    made: VQGAN = nnx.eval_shape(lambda: VQGAN(model, rngs=nnx.Rngs(config.seed)))
    rng = np.random.default_rng(config.seed)
    params = nnx.state(made, nnx.Param)
    nnx.update(made, jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), params))
    return made


def test_train_then_tokenize(
    vqgan: Vqgan, tokenize: Vqgan, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(training.PRESETS, "small", SMALL)
    monkeypatch.setattr("vqgan.training.tokenizer.train", untrained)
    train = {"steps": 4, "autoencoder_steps": 2, "batch_size": 4, "crop_size": 16, "warmup_steps": 1}
    settings = [part for name, value in train.items() for part in ("--set", f"train.{name}={value}")]
    path = tmp_path / "codec"
    result = vqgan("train", "--data", few, "--output", path, "--preset", "small", "--holdout", 0, *settings)
    assert result.code == 0, result.err
    assert "step 4 of 4" in result.err
    assert tokenize(few, "--codec", path).code == 0
    assert len(list((tmp_path / "out").glob("tokens-*"))) == 3
