"""``vqgan train``: settings, images, stopping and going on, and a codec that tokenize takes."""

import _thread
import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.training import training_codec
from pipelines.training.training_codec import configure_codec_training, validation_images
from transforms.images.dataset import ImageDataset
from transforms.images.decode import DecodeConfig
from transforms.sources import SourceConfig
from vqgan.codec_checkpoint import PARTS, load_weights, read_info, save_codec
from vqgan.errors import UserError
from vqgan.training.codec.config import CODEC_TRAINING_PRESETS, DataConfig
from vqgan.training.codec.learner import CodecLearner

pytestmark = pytest.mark.usefixtures("few_optimizations")
Vqgan = Callable[..., Any]
ROOT = Path(__file__).parents[2]
TOY_SETTINGS = (
    "model.resolution=16", "model.ch=8", "model.ch_mult=[1,1]", "model.z_channels=8", "model.embed_dim=4",
    "model.codebook_size=16", "model.norm_groups=4", "data.crop_size=16", "data.validation_size=16",
    "data.threads=2", "train.steps=8", "train.batch_size=4", "train.log_every=2", "train.evaluate_every=4",
    "train.save_every=3", "codebook.autoencoder_steps=2", "codebook.revive_every=2",
    "adversarial.weight=0.5", "adversarial.start=4", "discriminator.channels=4", "discriminator.layers=1",
)  # fmt: skip


def command(source: Path, run: Path, *more: Any) -> list[Any]:
    settings = [part for setting in TOY_SETTINGS for part in ("--set", setting)]
    return ["train", "--input", source, "--output", run, *settings, *more]


def test_settings_reach_their_section() -> None:
    config = configure_codec_training(
        "tiny", ["model.ch=32", "model.ch_mult=[1, 2]", "train.steps=700", "loss.entropy=1"]
    )
    assert (config.model.ch, config.model.ch_mult, config.train.steps) == (32, (1, 2), 700)
    assert config.loss.entropy == 1.0
    assert configure_codec_training("tiny", []) == CODEC_TRAINING_PRESETS["tiny"]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("model.chanels=3", "unknown field 'chanels'"),
        ("model.ch=many", "expected int, got 'many'"),
        ("model.ch=3.5", "expected int"),
        ("model.ch", "write SECTION.FIELD=VALUE"),
        ("ch=3", "write SECTION.FIELD=VALUE"),
        ("model.ch.x=3", "write SECTION.FIELD=VALUE"),
        ("other.ch=3", "there is no section 'other'"),
        ("model.norm_groups=7", "norm_groups is 7"),
        ("model.codebook_size=1", "a codebook needs at least 2 codes"),
        ("model.resolution=100", "it must be divisible by 8"),
        ("data.crop_size=60", "multiples of 8"),
        ("data.validation_size=100", "multiples of 8"),
        ("train.accumulate=3", "must divide train.batch_size"),
        ("train.steps=100", "codebook.autoencoder_steps is 600: it must be below"),
        ("train.dtype=float16", "give one of float32, bfloat16"),
        ("train.best=fid", "train.best is 'fid'"),
        ("optimizer.learning_rate=-1", "learning_rate is -1.0"),
        ("adversarial.loss=wgan", "give one of hinge"),
        ("loss.l1=NaN", "loss.l1 is nan"),
        ("train.best=lpips", "this run measures psnr, l1, used_codes, perplexity"),
        ("train.best=loss", "this run measures"),
        ("train.seed=-1", "train.seed is -1"),
        ("optimizer.learning_rate=Infinity", "learning_rate is inf"),
        ("codebook.ema_decay=1.0", "codebook.ema_decay is 1.0"),
        ("codebook.least_share=2", "must lie in [0, 1]"),
    ],
)
def test_wrong_settings(vqgan: Vqgan, photos: Path, tmp_path: Path, setting: str, says: str) -> None:
    result = vqgan("train", "--input", photos, "--output", tmp_path / "run", "--set", setting, "--quiet")
    assert (result.code, says in result.line) == (2, True), result.err
    assert not (tmp_path / "run").exists()


def test_rotation_needs_a_codebook() -> None:
    lfq = ["model.quantizer=lfq", "model.embed_dim=10", "codebook.rotation=true"]
    with pytest.raises(UserError, match="the rotation trick is for nearest, cosine, ema"):
        configure_codec_training("tiny", lfq)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["discriminator.kind=stylegan"], r"discriminator.resolution is 256: .* data.crop_size is 64"),
        (["discriminator.kind=stylegan", "discriminator.resolution=96"], "a power of two"),
        (["discriminator.layers=6"], "a patch discriminator of 6 layers needs 192 pixels"),
    ],
)
def test_discriminator_that_does_not_fit_the_crops(settings: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        configure_codec_training("cpu-64", settings)
    configure_codec_training("tiny", settings[:1])  # it trains without one


def test_crops_too_small_for_lpips() -> None:
    with pytest.raises(UserError, match="too small for LPIPS over alex, which takes 31"):
        configure_codec_training("cpu-64", ["data.crop_size=28", "data.validation_size=32"])
    with pytest.raises(UserError, match="too small for LPIPS"):
        configure_codec_training("cpu-64", ["data.validation_size=28"])
    with pytest.raises(UserError, match="too small for LPIPS over alex"):
        configure_codec_training("f8-1024", ["data.crop_size=24", "loss.perceptual_alex=1"])


def test_alexnet_stands_beside_vgg_alone() -> None:
    configure_codec_training("f8-1024", ["loss.perceptual_alex=0.5"])
    for preset in ("cpu-64", "tiny"):  # over AlexNet already, and without LPIPS
        with pytest.raises(UserError, match=r"loss\.perceptual_alex is 0\.5: it goes beside LPIPS over vgg"):
            configure_codec_training(preset, ["loss.perceptual_alex=0.5"])


def test_entropy_loss_needs_a_quantizer_that_has_one() -> None:
    fsq = ["model.quantizer=fsq", "model.fsq_levels=[8,8,8]", "model.embed_dim=3", "model.codebook_size=512"]
    configure_codec_training(
        "tiny", [*fsq, "train.steps=100"]
    )  # no autoencoder phase: its length does not matter
    with pytest.raises(UserError, match=r"model\.quantizer 'fsq' has none"):
        configure_codec_training("tiny", [*fsq, "loss.entropy=0.1"])


def test_unknown_preset(vqgan: Vqgan, photos: Path, tmp_path: Path) -> None:
    result = vqgan("train", "--input", photos, "--output", tmp_path / "c", "--preset", "huge")
    assert (result.code, "--preset huge: known are" in result.line) == (2, True)


def test_validation_images_leave_out_rejects(few: Path) -> None:
    (few / "broken.jpg").write_bytes(b"no image")
    images = ImageDataset(SourceConfig(str(few)), DecodeConfig(), None, 16, 1 << 20)
    crops = validation_images(images, DataConfig(crop_size=16))
    assert (crops.shape, crops.dtype) == ((10, 16, 16, 3), np.uint8)
    assert len(validation_images(images, DataConfig(crop_size=16, validation_limit=3))) <= 3


def test_nothing_to_train_on(vqgan: Vqgan, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    result = vqgan(*command(tmp_path / "in", tmp_path / "run", "--quiet"))
    assert (result.code, str(tmp_path / "in") in result.line) == (2, True)


def test_nothing_usable(vqgan: Vqgan, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(30):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(b"no image")
    result = vqgan(*command(tmp_path / "in", tmp_path / "run", "--quiet"))
    assert (result.code, "images can be used; see the reasons" in result.line) == (2, True), result.err
    assert not (tmp_path / "run" / "codec").exists()
    assert rejects_in(tmp_path / "run").keys() == {f"{number}.jpg" for number in range(30)}


def rejects_in(run: Path) -> dict[str, str]:
    records = map(json.loads, (run / "rejects.jsonl").read_text().splitlines())
    return {record["key"]: record["reason"] for record in records}


def test_all_too_small(vqgan: Vqgan, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is in the line, before a model is made; the folder serves the corrected command."""
    larger = ["--set", "data.crop_size=96", "--set", "model.resolution=96", "--set", "data.max_short_side=96"]

    def made(*_: Any) -> None:
        raise UserError("as far as this")

    monkeypatch.setattr("vqgan.training.codec.run.fit_codec", made)
    result = vqgan(*command(few, tmp_path / "run", *larger, "--quiet"))
    assert result.code == 2
    assert "images can be used; see the reasons of the rejects in " in result.line
    assert "pixels; min_side is 96; data.crop_size is 96) and correct the input" in result.line
    rejects = rejects_in(tmp_path / "run")
    assert len(rejects) >= 5
    assert all("min_side is 96" in reason for reason in rejects.values())
    assert vqgan(*command(few, tmp_path / "run", "--quiet")).line.endswith("as far as this")


def test_rejects_are_not_written_where_something_else_is(vqgan: Vqgan, tmp_path: Path) -> None:
    for name in ("in", "run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(b"no image")
    result = vqgan(*command(tmp_path / "in", tmp_path / "run", "--quiet"))
    assert (result.code, "something else than a training run" in result.line) == (2, True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["a.jpg"]


def test_no_weights_of_lpips(
    vqgan: Vqgan, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: Any) -> None:
        raise UserError("weights of LPIPS cannot be had")

    monkeypatch.setattr("vqgan.training.codec.run.load_lpips", nothing)
    result = vqgan(*command(few, tmp_path / "run", "--set", "loss.perceptual=1", "--quiet"))
    assert (result.code, "or train without LPIPS: --set loss.perceptual=0" in result.line) == (2, True)


def test_start_from_a_codec(vqgan: Vqgan, few: Path, tmp_path: Path, codec_path: str) -> None:
    result = vqgan(*command(few, tmp_path / "run", "--init", codec_path, "--quiet"))
    assert (result.code, "another architecture (" in result.line) == (2, True)
    assert "ch_mult is [1, 2] there, [1, 1] here" in result.line
    info = read_info(codec_path)
    weights = load_weights(info, PARTS)
    weights["decoder"]["decoder.conv_out.bias"] = np.full(3, np.nan, np.float32)
    broken = save_codec(tmp_path / "broken", info.config, weights).path
    same = ["--set", "model.ch_mult=[1,2]", "--set", "model.codebook_size=64", "--set", "model.resolution=32"]
    result = vqgan(*command(few, tmp_path / "run", *same, "--init", broken, "--quiet"))
    assert (result.code, "decoder.decoder.conv_out.bias has values that are not finite" in result.line) == (
        2,
        True,
    )
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, in a process of its own; an image in its data is broken."""
    root = tmp_path_factory.mktemp("trained")
    shutil.copytree(photos, root / "in")
    (root / "in" / "broken.jpg").write_bytes(b"no image")
    done = subprocess.run(argv(root / "in", root / "run"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "step 8 of 8" in done.stderr
    assert "1 image could not be used" in done.stderr
    return root


def argv(source: Path, run: Path) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", *map(str, command(source, run))]


def test_what_a_run_leaves(trained: Path) -> None:
    run = trained / "run"
    names = {path.name for path in run.iterdir()}
    assert names == {
        "checkpoints", "codec", "config.json", "metrics.jsonl", "rejects.jsonl", "report.html", "grids",
        "run.yaml", "tensorboard",
    }  # fmt: skip
    assert json.loads((run / "rejects.jsonl").read_text())["key"] == "broken.jpg"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["event"] for record in records if "event" in record] == [
        "codebook placed", "discriminator starts"
    ]  # fmt: skip
    assert sum("validation/psnr" in record for record in records) == 2
    card = read_info(run).card
    assert card["data"]["training_images"] + card["data"]["validation_images"] == 41
    assert card["metrics"]["psnr"]["samples"] == card["data"]["validation_images"]
    assert card["steps"] in (4, 8)
    assert "# VQGAN codec" in (run / "codec" / "README.md").read_text()


def test_train_then_tokenize(tokenize: Vqgan, trained: Path, few: Path, tmp_path: Path) -> None:
    assert tokenize(few, "--codec", trained / "run").code == 0
    assert len(list((tmp_path / "out").glob("data/tokens-*"))) == 3


def test_a_larger_decoder_for_the_same_tokens(vqgan: Vqgan, trained: Path, few: Path, tmp_path: Path) -> None:
    settings = ("codebook.keep_tokens=true", "model.decoder_res_blocks=3", "adversarial.weight=0")
    short = ("train.steps=1", "train.evaluate_every=1", "codebook.autoencoder_steps=0")
    more = [part for setting in (*settings, *short) for part in ("--set", setting)]
    result = vqgan(*command(few, tmp_path / "run", *more, "--init", trained / "run", "--quiet"))
    assert result.code == 0, result.line
    before, grown = read_info(trained / "run"), read_info(tmp_path / "run")
    assert (grown.fingerprint, grown.quantizer_sha256) == (before.fingerprint, before.quantizer_sha256)
    assert (grown.config.decoder_blocks, grown.config.decoder_res_blocks) == (3, None)


def test_stopped_by_sigterm_and_continued(trained: Path, tmp_path: Path) -> None:
    """The codec has the fingerprint of the run that was never stopped: every bit of it is the same."""
    run = tmp_path / "run"
    process = subprocess.Popen(argv(trained / "in", run), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while process.poll() is None and not _placed(run) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert "the same command goes on from there" in err
    done = subprocess.run(argv(trained / "in", run), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_info(run).fingerprint == read_info(trained / "run").fingerprint
    assert read_info(run).decoder_sha256 == read_info(trained / "run").decoder_sha256


def test_stopped_killed_twice_and_continued(
    vqgan: Vqgan,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_before: Callable[..., None],
) -> None:
    """In the end every bit is that of the run that was left alone."""
    run, real = tmp_path / "run", CodecLearner._whole_step
    # Some of it runs in this process, where JAX has begun with one device.
    one_device = ("--set", "train.cpu_devices=1")
    assert vqgan(*command(trained / "in", tmp_path / "alone", *one_device)).code == 0

    @functools.wraps(real)
    def traced(*arguments: Any, **options: Any) -> Any:
        _thread.interrupt_main(signal.SIGTERM)  # as Python tells it, whatever libraries do with signals
        return real(*arguments, **options)

    with monkeypatch.context() as patch:  # SIGTERM while the first step is compiled: it is done, and saved
        patch.setattr(CodecLearner, "_whole_step", traced)
        stopped = vqgan(*command(trained / "in", run, *one_device))
    assert stopped.code == 130
    assert "stopped after step 1; the same command goes on from there" in stopped.err
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["1"]

    killed_before(
        "checkpoints/3", *command(trained / "in", run, *one_device)
    )  # it is written, and not yet in its place
    assert not (run / "checkpoints" / "3").exists()
    killed_before(f"{run}/codec", *command(trained / "in", run, *one_device))  # likewise
    assert (run / "checkpoints" / "3").is_dir()
    assert list(run.glob(".codec.*.tmp"))

    assert vqgan(*command(trained / "in", run, *one_device)).code == 0
    found, expected = read_info(run), read_info(tmp_path / "alone")
    assert (found.fingerprint, found.decoder_sha256) == (expected.fingerprint, expected.decoder_sha256)
    assert not list(run.glob(".*.tmp"))


def test_a_lower_learning_rate_helps(vqgan: Vqgan, few: Path, tmp_path: Path) -> None:
    """The weights are spoiled by the first update, and the message's advice works."""
    settings = {
        "data.holdout": 0, "adversarial.weight": 0, "optimizer.clip_norm": 0, "optimizer.warmup_steps": 0,
        "train.max_skipped": 3, "train.log_every": 1, "train.save_every": 2, "train.steps": 6,
        "codebook.autoencoder_steps": 0,
    }  # fmt: skip
    common = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    rate = "optimizer.learning_rate"
    broken = vqgan(*command(few, tmp_path / "run", *common, "--set", f"{rate}=1e30", "--quiet"))
    assert broken.code == 2
    assert "not finite in 3 steps in a row; there is no checkpoint yet: give the same command" in broken.line
    mended = vqgan(*command(few, tmp_path / "run", *common, "--set", f"{rate}=1e-4", "--quiet"))
    assert (mended.code, mended.err) == (0, "")
    weights = load_weights(read_info(tmp_path / "run"), PARTS)
    assert max(float(abs(value).max()) for part in weights.values() for value in part.values()) < 100


def _placed(run: Path) -> bool:
    return (run / "metrics.jsonl").exists() and "codebook placed" in (run / "metrics.jsonl").read_text()


def test_another_configuration_in_the_same_folder(vqgan: Vqgan, trained: Path) -> None:
    before = (trained / "run" / "config.json").read_bytes()
    result = vqgan(*command(trained / "in", trained / "run", "--set", "model.ch=16", "--quiet"))
    assert (result.code, "model.ch was 8, is 16" in result.line) == (2, True)
    assert (trained / "run" / "config.json").read_bytes() == before


def test_too_many_rejects(vqgan: Vqgan, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_codec, "CHECK_EVERY", 1)
    for number in range(10):
        (few / f"broken-{number}.jpg").write_bytes(b"no image")
    limits = ["--set", "data.holdout=0", "--set", "data.max_rejects=0.2"]
    result = vqgan(*command(few, tmp_path / "run", *limits, "--quiet"))
    assert (result.code, "of 20 images cannot be used (such as broken-" in result.line) == (2, True)
    assert len(rejects_in(tmp_path / "run")) > 4
    assert all(key.startswith("broken-") for key in rejects_in(tmp_path / "run"))
