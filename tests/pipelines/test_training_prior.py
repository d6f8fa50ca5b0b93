"""``vqgan train-prior``: settings, data sets, refusals, stopping and going on."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines.training.prior_sets import split_weights
from pipelines.training.training_prior import configure_prior_training
from vqgan.errors import UserError
from vqgan.prior.checkpoint import load_prior_weights, read_prior
from vqgan.training.prior import run as prior_run
from vqgan.training.prior.config import PRIOR_TRAINING_PRESETS
from vqgan.training.prior.prior_rows import PriorRows

pytestmark = pytest.mark.usefixtures("few_optimizations")

Vqgan = Callable[..., Any]
ROOT = Path(__file__).parents[2]
TOY_SETTINGS = (
    "model.layers=1", "model.heads=2", "model.width=16", "model.hidden=16", "train.steps=6",
    "train.batch_size=4", "train.log_every=2", "train.evaluate_every=3", "train.save_every=2",
    "data.holdout=5", "data.samples=3", "data.validation_limit=5",
)  # fmt: skip


def command(tokens: Any, run: Path, *more: Any) -> list[Any]:
    settings = [part for setting in TOY_SETTINGS for part in ("--set", setting)]
    return ["train-prior", "--tokens", tokens, "--output", run, *settings, *more]


def argv(tokens: Path, run: Path, *more: Any) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", *map(str, command(tokens, run, *more))]


@pytest.fixture(scope="module")
def trained(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, in a process of its own."""
    run = tmp_path_factory.mktemp("prior") / "run"
    done = subprocess.run(argv(finished / "out", run), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "step 6, validation: loss" in done.stderr
    assert "no classes" in done.stderr
    return run


def test_settings_reach_their_section() -> None:
    config = configure_prior_training("tiny", ["model.layers=2", "train.fsdp=2", "objective.keep=0.9"])
    assert (config.model.layers, config.train.fsdp, config.objective.keep) == (2, 2, 0.9)
    assert configure_prior_training("small", []) == PRIOR_TRAINING_PRESETS["small"]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("model.layer=3", "unknown field 'layer'"),
        ("model.grid=[8,8]", "model.grid follows from the data; leave it out"),
        ("model.classes=3", "model.classes follows from the data"),
        ("model.heads=3", "model.heads is 3: it must divide"),
        ("model.kind=diffusion", "give one of autoregressive, masked"),
        ("loss.l1=1", "there is no section 'loss'"),
        ("train.best=psnr", "give one of loss, bits"),
        ("train.fsdp=0", "train.fsdp is 0"),
        ("train.fsdp=7", "train.fsdp is 7: it must divide the number of devices"),
        ("data.views=some", "give one of all, one"),
        ("data.holdout=1", "all would be kept for validation"),
        ("data.holdout=100000", "none of the 40 rows is kept for validation"),
        ("objective.keep=1.5", "it must lie in [0, 1]"),
        ("steps=3", "write SECTION.FIELD=VALUE"),
    ],
)
def test_wrong_settings(vqgan: Vqgan, finished: Path, tmp_path: Path, setting: str, says: str) -> None:
    result = vqgan(*command(finished / "out", tmp_path / "run", "--set", setting, "--quiet"))
    assert (result.code, says in result.line) == (2, True), result.err
    assert not (tmp_path / "run").exists()


def test_masked_priors_hide_tokens_instead_of_replacing_them() -> None:
    with pytest.raises(UserError, match=r"objective\.keep is 0\.9: a masked prior hides"):
        configure_prior_training("tiny", ["model.kind=masked", "objective.keep=0.9"])


def test_unknown_preset(vqgan: Vqgan, finished: Path, tmp_path: Path) -> None:
    result = vqgan(*command(finished / "out", tmp_path / "run", "--preset", "huge"))
    assert (result.code, "--preset huge: known are llamagen-b" in result.line) == (2, True)


def test_weights_of_data_sets(tmp_path: Path) -> None:
    odd = tmp_path / "a=3"
    odd.mkdir()
    assert split_weights(["x", "y"]) == (["x", "y"], None)
    assert split_weights(["x=0.3", "y=7"]) == (["x", "y"], (0.3, 7.0))
    assert split_weights([str(odd), "b=c"]) == ([str(odd), "b=c"], None)
    assert split_weights([f"{odd}=2"]) == ([str(odd)], (2.0,))
    with pytest.raises(UserError, match="give every data set a weight"):
        split_weights(["x=0.3", "y"])
    with pytest.raises(UserError, match="the weight must be above 0"):
        split_weights(["x=0"])


def test_what_a_run_leaves(trained: Path, finished: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names == {
        "checkpoints", "prior", "config.json", "metrics.jsonl", "report.html", "grids", "run.yaml",
        "tensorboard",
    }  # fmt: skip
    manifest = json.loads((finished / "out" / "manifest.json").read_text())
    info = read_prior(trained)
    assert (info.config.codebook_size, info.config.grid, info.config.classes) == (64, (16, 16), 0)
    assert info.codec.fingerprint == manifest["codec"]["fingerprint"]
    assert info.codec.image_size == 32
    validation = info.card["data"]["validation_images"]
    assert info.card["data"]["training_images"] + validation >= 35
    assert info.card["metrics"]["loss"]["samples"] == validation == 5  # no more than data.validation_limit
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    figures = [record for record in records if "validation/loss" in record]
    assert [record["step"] for record in figures] == [3, 6]
    entropy = manifest["codebook"]["entropy_bits"]  # of all rows, held-back ones too
    assert figures[0]["validation/unigram_bits"] == pytest.approx(entropy, rel=0.02)
    assert sorted(path.name for path in (trained / "grids").iterdir()) == ["samples-3.png", "samples-6.png"]
    page = (trained / "report.html").read_text()
    assert "Samples of the prior" in page
    assert "unigram entropy" in page
    assert "reconstructions" not in page


def test_stopped_by_sigterm_and_continued(trained: Path, finished: Path, tmp_path: Path) -> None:
    """The prior has the fingerprint of the run that was never stopped: every bit of it is the same."""
    run = tmp_path / "run"
    process = subprocess.Popen(argv(finished / "out", run), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while process.poll() is None and not _begun(run) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert "the same command goes on from there" in err
    done = subprocess.run(argv(finished / "out", run), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_prior(run).fingerprint == read_prior(trained).fingerprint


def test_killed_and_continued(
    vqgan: Vqgan, trained: Path, finished: Path, tmp_path: Path, killed_before: Callable[..., None]
) -> None:
    """SIGKILL with the second checkpoint written and not yet in its place."""
    run = tmp_path / "run"
    killed_before("checkpoints/4", *command(finished / "out", run))
    assert (run / "checkpoints" / "2").is_dir()
    assert not (run / "checkpoints" / "4").exists()
    assert vqgan(*command(finished / "out", run, "--quiet")).code == 0
    assert read_prior(run).fingerprint == read_prior(trained).fingerprint


def test_a_lower_learning_rate_helps(vqgan: Vqgan, trained: Path, finished: Path, tmp_path: Path) -> None:
    """A run that goes on with too high a rate ends, and the message's advice works."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    common = [
        part
        for setting in ("steps=16", "max_skipped=3", "log_every=1", "evaluate_every=20", "save_every=1")
        for part in ("--set", f"train.{setting}")
    ]
    rate, no_clip = "optimizer.learning_rate", ("--set", "optimizer.clip_norm=0")
    broken = vqgan(*command(finished / "out", run, *common, *no_clip, "--set", f"{rate}=1e38", "--quiet"))
    assert broken.code == 2
    assert "not finite in 3 steps in a row; the last checkpoint, " in broken.line
    assert "give the same command, which goes on from there, with a lower learning rate" in broken.line
    mended = vqgan(*command(finished / "out", run, *common, "--set", f"{rate}=1e-4", "--quiet"))
    assert (mended.code, mended.err) == (0, "")
    assert (run / "checkpoints" / "16").is_dir()


def _begun(run: Path) -> bool:
    return (run / "metrics.jsonl").exists() and "train/loss" in (run / "metrics.jsonl").read_text()


def test_finished_run_goes_no_further(vqgan: Vqgan, trained: Path, finished: Path) -> None:
    before = load_prior_weights(read_prior(trained))
    assert vqgan(*command(finished / "out", trained, "--quiet")).code == 0
    after = load_prior_weights(read_prior(trained))
    assert all((before[name] == after[name]).all() for name in before)


def test_another_configuration_in_the_same_folder(vqgan: Vqgan, trained: Path, finished: Path) -> None:
    result = vqgan(*command(finished / "out", trained, "--set", "model.width=32", "--quiet"))
    assert (result.code, "model.width was 16, is 32" in result.line) == (2, True)


def test_what_is_trained_on_does_not_validate(vqgan: Vqgan, finished: Path, tmp_path: Path) -> None:
    data = finished / "out"
    refused = vqgan(*command(data, tmp_path / "run", "--validation", data, "--quiet"))
    assert (refused.code, "are trained on" in refused.line) == (2, True)


def test_tokens_of_another_codec(
    vqgan: Vqgan, tokenize: Vqgan, trained: Path, finished: Path, few: Path, other_codec: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    assert tokenize(few, "--codec", other_codec, output=other).code == 0
    first, second = (json.loads((path / "manifest.json").read_text())["codec"]["fingerprint"][:12]
                     for path in (finished / "out", other))  # fmt: skip
    goes_on = vqgan(*command(other, trained, "--quiet"))
    assert (goes_on.code, f"learns tokens of codec {first} (" in goes_on.line) == (2, True), goes_on.err
    assert second in goes_on.line
    validated = vqgan(*command(finished / "out", tmp_path / "run", "--validation", other, "--quiet"))
    assert (validated.code, first in validated.line, second in validated.line) == (2, True, True)
    mixed = vqgan(*command(finished / "out", tmp_path / "run", "--tokens", other, "--quiet"))
    assert (mixed.code, first in mixed.line, second in mixed.line) == (2, True, True)
    decoded = vqgan(*command(finished / "out", tmp_path / "run", "--codec", other_codec, "--quiet"))
    assert (decoded.code, "but the tokens were made by" in decoded.line) == (2, True)
    assert not (tmp_path / "run").exists()


def test_tokens_of_another_grid(
    vqgan: Vqgan, tokenize: Vqgan, finished: Path, few: Path, tmp_path: Path
) -> None:
    smaller = tmp_path / "smaller"
    assert tokenize(few, "--image-size", 16, output=smaller).code == 0
    result = vqgan(*command(finished / "out", tmp_path / "run", "--tokens", smaller, "--quiet"))
    assert (result.code, "16 rows of 16 and 8 rows of 8 tokens" in result.line) == (2, True), result.err


def test_not_a_data_set(vqgan: Vqgan, tmp_path: Path) -> None:
    result = vqgan(*command(tmp_path / "none", tmp_path / "run"))
    assert (result.code, "nothing there" in result.line) == (2, True)
    (tmp_path / "none").mkdir()
    result = vqgan(*command(tmp_path / "none", tmp_path / "run"))
    assert (result.code, "not a finished data set" in result.line) == (2, True)


@pytest.fixture
def labelled(tokenize: Vqgan, photos: Path, tmp_path: Path) -> Path:
    """20 photographs in two classes."""
    for number, path in enumerate(sorted(photos.iterdir())[:20]):
        folder = tmp_path / "images" / ("cats", "dogs")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    assert tokenize(tmp_path / "images", "--folder-labels", output=tmp_path / "labelled").code == 0
    return tmp_path / "labelled"


@pytest.fixture
def sketches(tokenize: Vqgan, labelled: Path, photos: Path, tmp_path: Path) -> Path:
    """Coarser tokens of the same photographs and of others, which come in between."""
    shutil.copytree(tmp_path / "images", tmp_path / "more")
    (tmp_path / "more" / "cows").mkdir()
    for path in sorted(photos.iterdir())[20:]:
        shutil.copy(path, tmp_path / "more" / "cows")
    assert tokenize(tmp_path / "more", "--image-size", 16, output=tmp_path / "sketches").code == 0
    return tmp_path / "sketches"


def read_rows(folder: Path) -> list[tuple[tuple[str, int], tuple[int, ...]]]:
    """Key and view, and tokens, of each row."""
    tables = [pq.read_table(path) for path in sorted(folder.glob("data/tokens-*"))]
    rows = pa.concat_tables(tables).select(["key", "view", "tokens"]).to_pylist()
    return [((row["key"], row["view"]), tuple(row["tokens"])) for row in rows]


def test_classes_and_a_condition(
    vqgan: Vqgan, labelled: Path, sketches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that training and validation are given have the condition of the same image."""
    seen: list[PriorRows] = []
    real = prior_run.fit_prior

    def watched(job: Any, batches: Any, validation: PriorRows) -> Any:
        start = batches.get_state()
        seen.extend([validation, *(next(batches) for _ in range(8))])
        batches.set_state(start)
        return real(job, batches, validation)

    monkeypatch.setattr(prior_run, "fit_prior", watched)
    once = ["--set", "train.steps=2", "--set", "train.batch_size=2", "--set", "data.samples=0"]
    result = vqgan(*command(labelled, tmp_path / "run", *once, "--condition", sketches))
    assert result.code == 0, result.err
    assert "2 classes" in result.err
    info = read_prior(tmp_path / "run")
    assert (info.config.classes, info.class_names) == (2, ("cats", "dogs"))
    assert (info.config.condition_grid, info.config.condition_codebook_size) == ((8, 8), 64)
    assert list((tmp_path / "run" / "grids").iterdir()) == []

    names, partners = {tokens: name for name, tokens in read_rows(labelled)}, dict(read_rows(sketches))
    assert (len(names), len(partners)) == (20, 40)
    found = [
        (names[tuple(tokens.tolist())], tuple(condition.tolist()))
        for rows in seen
        for tokens, condition in zip(rows.tokens, rows.condition, strict=True)
    ]
    assert len(set(found)) > 15
    assert found == [(name, partners[name]) for name, _ in found]


def test_a_masked_prior_is_not_set_beside_the_entropy(vqgan: Vqgan, finished: Path, tmp_path: Path) -> None:
    """Its loss is that of hidden tokens, no likelihood: the two would seem to compare."""
    once = ["--set", "train.steps=1", "--set", "data.samples=0", "--set", "model.kind=masked"]
    result = vqgan(*command(finished / "out", tmp_path / "run", *once))
    assert result.code == 0, result.err
    assert "validation: loss" in result.err
    records = (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    figures = [name for record in records for name in record if name.startswith("validation/")]
    assert sorted(figures) == ["validation/bits", "validation/loss"]
    metrics = read_prior(tmp_path / "run").card["metrics"]
    assert sorted(metrics) == ["bits", "loss"]
    assert "no likelihood" in metrics["loss"]["reference"]
    assert "unigram" not in result.err + (tmp_path / "run" / "report.html").read_text()


def test_condition_without_partners(
    vqgan: Vqgan, tokenize: Vqgan, finished: Path, few: Path, tmp_path: Path
) -> None:
    assert tokenize(few, output=tmp_path / "condition").code == 0
    result = vqgan(
        *command(finished / "out", tmp_path / "run", "--condition", tmp_path / "condition", "--quiet")
    )
    tokens = pa.concat_tables(pq.read_table(path) for path in sorted((finished / "out").glob("data/*")))
    keys = pc.unique(tokens["key"]).to_pylist()
    assert len(keys) == 40
    assert result.code == 2
    assert "partner of the same key and view" in result.line
    assert "(such as key " in result.line


def test_unconditional(vqgan: Vqgan, labelled: Path, tmp_path: Path) -> None:
    once = ["--set", "train.steps=1", "--set", "data.samples=0", "--set", "data.holdout=0"]
    result = vqgan(*command(labelled, tmp_path / "run", *once, "--unconditional"))
    assert result.code == 0, result.err
    assert "no validation data" in result.err
    assert read_prior(tmp_path / "run").config.classes == 0
