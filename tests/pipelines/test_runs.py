"""Whole runs from Python, and what they leave for ``--config``: the same command again gives the same."""

import hashlib
import io
import json
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import pipelines
from pipelines.runners import run_watch
from pipelines.runs import DataSetSummary
from tests.conftest import Refused
from transforms.tokenizing import shard
from vqgan.data.tokens import open_tokens
from vqgan.prior.inference import Prior

from .conftest import Vqgan
from .test_sample_prior import save_random_prior
from .test_training_codec import TOY_SETTINGS as CODEC_SETTINGS
from .test_training_prior import TOY_SETTINGS as PRIOR_SETTINGS

ROOT = Path(__file__).parents[2]
CLOCKS = {
    "manifest.json",
    "report.html",
    "metrics.jsonl",
    "prior.json",
    "codec.json",
    "README.md",
    "evaluation.json",
}
"""Files that tell the time, or of them."""
Repeat = Callable[..., None]


def contents(folder: Path) -> dict[str, str]:
    """sha256 of every file but those of :data:`CLOCKS`, and those of libraries that do the same."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in CLOCKS]
    files = [path for path in files if not {"tensorboard", "checkpoints", "weights"} & set(path.parts)]
    parts = [path for path in files if not {"encoder", "decoder", "quantizer"} & set(path.parts)]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in parts}


@pytest.fixture
def repeat(vqgan: Vqgan, tmp_path: Path) -> Repeat:
    """Runs a command with the settings that a run has left, and compares what both have written."""

    def repeat(command: str, made: Path, record: str, expected: Mapping[str, Any]) -> None:
        settings = yaml.safe_load((made / record).read_text())
        assert expected.items() <= settings.items()
        again = tmp_path / "again"
        result = vqgan(command, "--config", made, "--output", again, "--quiet")
        assert (result.code, result.err) == (0, "")
        assert contents(again) == contents(made)
        assert record in contents(made)

    return repeat


def test_tokenize(few: Path, codec_path: str, tmp_path: Path, repeat: Repeat) -> None:
    made = pipelines.tokenize(
        input=few, codec=Path(codec_path), output=tmp_path / "out", slice_size=4, batch_size=4, views="hflip",
        columns=[], quiet=True,
    )  # fmt: skip
    assert isinstance(made, DataSetSummary)
    assert (made.output, made.counts["images"], made.counts["rows"]) == (str(tmp_path / "out"), 10, 20)
    assert len(open_tokens(made.output)) == 20
    expected = {"views": "hflip", "slice_size": 4, "threads": None, "input": str(few), "codec": codec_path}
    repeat("tokenize", tmp_path / "out", "plan/run.yaml", expected)
    with pytest.raises(TypeError, match="'imagesize'; did you mean 'image_size'"):
        pipelines.tokenize(input=few, codec=codec_path, output="o", imagesize=3)  # type: ignore[call-arg]


def test_a_resumed_run_has_the_same_settings(few: Path, codec_path: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "input": few,
        "codec": codec_path,
        "slice_size": 4,
        "batch_size": 4,
        "quiet": True,
    }
    for name in ("out", "whole"):
        pipelines.tokenize(output=tmp_path / name, **settings)
    (tmp_path / "out" / "manifest.json").unlink()
    min((tmp_path / "out" / "data").iterdir()).unlink()
    pipelines.tokenize(output=tmp_path / "out", **settings)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_slow_source(
    few: Path,
    codec_path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A source that gives nothing for long is told of; what comes of it in the end is the same."""
    settings: dict[str, Any] = {
        "input": few,
        "codec": codec_path,
        "slice_size": 4,
        "batch_size": 4,
        "threads": 1,
    }
    pipelines.tokenize(output=tmp_path / "swift", quiet=True, **settings)
    progress, load, told = tmp_path / "slow" / "progress.json", shard.load_item, threading.Event()

    def slow(*arguments: Any) -> Any:
        while not told.is_set():
            seen = json.loads(progress.read_text()) if progress.exists() else {"stalled": False}
            if seen["stalled"] and "no sign of life" in capsys.readouterr().err:
                told.set()
        return load(*arguments)

    monkeypatch.setattr(shard, "load_item", slow)
    monkeypatch.setattr(run_watch, "REPORT_SECONDS", 0.01)
    for name in ("FIRST_SIGN_SECONDS", "STALLED_SECONDS"):
        monkeypatch.setattr(run_watch, name, 0.05)
    pipelines.tokenize(output=tmp_path / "slow", **settings)
    assert contents(tmp_path / "slow") == contents(tmp_path / "swift")
    assert not progress.exists()


def test_decode(finished: Path, tmp_path: Path, repeat: Repeat) -> None:
    made = pipelines.decode(
        tokens=finished / "out", output=tmp_path / "out", format="tar", image_format="webp", limit=5,
        batch_size=4, quiet=True, beam={"direct_num_workers": 1},
    )  # fmt: skip
    assert made.counts["images"] == 5
    expected = {"format": "tar", "image_format": "webp", "limit": 5, "beam": ["--direct_num_workers=1"]}
    repeat("decode", tmp_path / "out", "plan/run.yaml", expected)


def test_sample(codec_path: str, tmp_path: Path, repeat: Repeat) -> None:
    save_random_prior(tmp_path / "prior", codec_path)
    made = pipelines.sample(
        prior=tmp_path / "prior", output=tmp_path / "out", count=5, batch_size=5, classes=["cat", "none"],
        top_p=0.9, guidance=2, quiet=True,
    )  # fmt: skip
    assert made.counts["rows"] == 5
    expected = {"count": 5, "classes": ["cat", "none"], "top_p": 0.9, "guidance": 2.0, "grid": None}
    repeat("sample", tmp_path / "out", "plan/run.yaml", expected)
    drawn = Prior.load(tmp_path / "prior", batch_size=5).sample(
        5, labels=["cat", None], top_p=0.9, guidance=2
    )
    np.testing.assert_array_equal(
        drawn, open_tokens(made.output).take(np.arange(5)).tokens.reshape(drawn.shape)
    )


def test_evaluate(few: Path, codec_path: str, tmp_path: Path, repeat: Repeat) -> None:
    made = pipelines.evaluate(
        codec=codec_path, input=few, output=tmp_path / "out", metrics=["psnr", "l1"], limit=4, batch_size=4,
        quiet=True,
    )  # fmt: skip
    assert set(made.metrics[codec_path]) >= {"psnr", "l1"}
    assert made.metrics[codec_path]["psnr"] == made.results["codecs"][0]["metrics"]["psnr"]["value"]
    assert "psnr" in str(made)
    repeat(
        "evaluate",
        tmp_path / "out",
        "run.yaml",
        {"codec": [codec_path], "metrics": ["psnr", "l1"], "limit": 4},
    )


def test_train(few: Path, tmp_path: Path, repeat: Repeat) -> None:
    settings = [*CODEC_SETTINGS, "adversarial.weight=0", "train.steps=4"]
    made = pipelines.train(input=few, output=tmp_path / "run", set=settings, quiet=True)
    assert (made.finished, made.step, made.model) == (True, 4, str(tmp_path / "run" / "codec"))
    assert made.metrics.keys() >= {"psnr", "l1"}
    left = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["set"]
    assert (left["train"]["steps"], left["model"]["ch_mult"]) == (4, [1, 1])
    repeat("train", tmp_path / "run", "run.yaml", {"preset": "tiny", "validation": None, "input": str(few)})


def test_train_prior(finished: Path, tmp_path: Path, repeat: Repeat) -> None:
    made = pipelines.train_prior(
        tokens=finished / "out", output=tmp_path / "run", set=[*PRIOR_SETTINGS, "data.samples=0"], quiet=True
    )
    assert (made.finished, made.step, made.model) == (True, 6, str(tmp_path / "run" / "prior"))
    repeat("train-prior", tmp_path / "run", "run.yaml", {"preset": "tiny", "tokens": [str(finished / "out")]})


def test_mistakes_are_raised(few: Path, tmp_path: Path, codec_path: str, refused: Refused) -> None:
    with refused("there are no images in it"):
        (tmp_path / "empty").mkdir()
        pipelines.tokenize(input=tmp_path / "empty", codec=codec_path, output=tmp_path / "o", quiet=True)
    with refused("unknown flag --runer: did you mean --runner"):
        pipelines.tokenize(input=few, codec=codec_path, output=tmp_path / "o", beam={"runer": "x"})
    with refused("there is no section 'trian'"):
        pipelines.train(input=few, output=tmp_path / "o", set={"trian.steps": 3})
    assert not (tmp_path / "o").exists()


# Files of the user's that hide ours


@pytest.mark.parametrize("name", ["transforms", "pipelines"])
def test_a_file_that_hides_ours_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("raise SystemExit('ran')\n")
    program = "import sys; from vqgan.__main__ import start; sys.exit(start(['--help']))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": f".:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"vqgan: {tmp_path}/{name}.py: hides the package {name} of vqgan; "
        "rename it, or start in another folder\n"
    )


def test_python_is_told_of_it_too(tmp_path: Path) -> None:
    (tmp_path / "transforms.py").write_text("raise SystemExit('ran')\n")
    done = subprocess.run(
        [sys.executable, "-c", "from pipelines import tokenize"],
        cwd=tmp_path, env={"PYTHONPATH": f".:{ROOT}"}, capture_output=True, text=True,
    )  # fmt: skip
    last = done.stderr.splitlines()[-1]
    assert last.startswith("vqgan.errors.UserError: ")
    assert f"{tmp_path}/transforms.py: hides the package transforms" in last


# Progress


def test_a_notebook_sees_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    from vqgan.extras import progress_bar

    stream = io.StringIO()
    assert progress_bar(stream, total=3) is None
    notebook = types.ModuleType("IPython")
    notebook.get_ipython = lambda: types.SimpleNamespace(kernel="a kernel")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ipykernel", sys)  # loaded, but no notebook
    assert progress_bar(stream, total=3) is None
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    bar = progress_bar(stream, total=3)
    bar.update(3)
    bar.close()
    assert "3/3" in stream.getvalue()
