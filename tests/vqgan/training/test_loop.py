"""The loop that trains all models: with a learner of three numbers, whose every step is known."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan.errors import UserError
from vqgan.training import checkpoints
from vqgan.training.logs import ProgressLine, read_metrics
from vqgan.training.loop import Done, Evaluation, Outcome, TrainingLoop
from vqgan.training.loop_config import LoopConfig
from vqgan.training.training_run import check_same_run

ROOT = Path(__file__).parents[3]
CONFIG = LoopConfig(
    steps=12, batch_size=2, log_every=2, evaluate_every=3, save_every=4, best="psnr", max_skipped=3
)
PSNR = {3: 20.0, 6: 24.0, 9: 22.0, 12: 23.0}


class State(NamedTuple):
    total: jax.Array
    skipped: jax.Array


class Numbers:
    """Batches 0, 1, 2, ... whose position can be saved."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> "Numbers":
        return self

    def __next__(self) -> int:
        self.position += 1
        return self.position - 1

    def get_state(self) -> dict[str, Any]:
        return {"position": self.position}

    def set_state(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


class Summing:
    """Adds up batches by position, so that any lost, doubled or reordered one shows."""

    def __init__(self, during: Callable[[int], None] = lambda step: None, metrics: Any = PSNR) -> None:
        self.during = during
        self.metrics = metrics
        self.steps: list[int] = []
        self.written: list[int] = []
        self.not_finite_from = 10**9

    def initial(self) -> State:
        return State(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

    def before_step(self, step: int, state: State, batches: Any) -> tuple[State, str | None]:
        return state, "half" if step == 6 else None

    def step(self, step: int, state: State, batch: int) -> tuple[State, Mapping[str, jax.Array]]:
        self.during(step)
        self.steps.append(step)
        bad = step >= self.not_finite_from
        skipped = state.skipped + 1 if bad else jnp.zeros_like(state.skipped)
        total = state.total if bad else state.total * 1.5 + batch
        loss = jnp.asarray(np.nan) if bad else total
        return State(total, skipped), {"loss": loss, "skipped_in_row": skipped}

    def exported(self, state: State) -> Any:
        return state

    def evaluate(self, state: State) -> Evaluation:
        step = self.steps[-1] + 1 if self.steps else 3  # made up for at the start
        return Evaluation({"psnr": self.metrics[step]}, np.zeros((2, 2, 3), np.uint8))

    def export(self, state: State, done: Done, metrics: Mapping[str, float]) -> None:
        self.written.append(done.steps)


class Greedy(Summing):
    """Takes a batch for itself before every third step, as placing and reviving codes do."""

    def before_step(self, step: int, state: State, batches: Any) -> tuple[State, str | None]:
        return (state._replace(total=state.total + 1000 * next(batches)) if step % 3 == 2 else state), None


class Never:
    asked = False


def run(
    folder: Path,
    learner: Summing,
    config: LoopConfig = CONFIG,
    stopping: Any = Never,
    quiet: bool = True,
) -> Outcome[State]:
    logs = {"quiet": True, "tensorboard": False}
    progress = ProgressLine(quiet=quiet)
    loop = TrainingLoop(learner, learner.evaluate, learner.export, Numbers(), config, folder, progress, logs)
    return loop.run(stopping)


def expected(steps: int) -> float:
    total = 0.0
    for batch in range(steps):
        total = total * 1.5 + batch
    return total


def test_every_step_once_and_the_best_is_exported(tmp_path: Path) -> None:
    learner = Summing()
    outcome = run(tmp_path, learner)
    assert learner.steps == list(range(12))
    assert float(outcome.state.total) == expected(12)
    assert learner.written == [3, 6]  # 9 and 12 are worse
    assert (outcome.best_step, outcome.metrics, outcome.finished) == (6, {"psnr": 24.0}, True)


def test_patience(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = dataclasses.replace(CONFIG, steps=100, patience=2)
    learner = Summing(metrics={**PSNR, 15: 25.0, 18: 1.0, 21: math.nan, 24: 30.0, 25: 0.0})
    outcome = run(tmp_path, learner, config, quiet=False)
    assert learner.steps == list(range(12))  # 6 is the best, 9 and 12 are worse
    assert (outcome.step, outcome.best_step, outcome.finished, outcome.checkpoint) == (12, 6, True, 12)
    assert "no better psnr in 2 evaluations: ended after step 12" in capsys.readouterr().err
    again = run(tmp_path, learner, config)
    assert (again.step, again.finished, len(learner.steps)) == (12, True, 12)
    longer = run(tmp_path, learner, dataclasses.replace(config, patience=3, steps=25))
    assert (longer.step, longer.best_step) == (25, 24)  # 15 was better in time, and then 24


def test_without_patience_all_steps_are_done(tmp_path: Path) -> None:
    falling = {step: -float(step) for step in range(3, 13, 3)}
    assert run(tmp_path, Summing(metrics=falling)).step == 12


def test_log(tmp_path: Path) -> None:
    run(tmp_path, Summing())
    records = read_metrics(tmp_path / "metrics.jsonl")
    logged = {record["step"]: record["train/loss"] for record in records if "train/loss" in record}
    assert logged == {step: expected(step) for step in (2, 4, 6, 8, 10, 12)}
    psnr = {record["step"]: record["validation/psnr"] for record in records if "validation/psnr" in record}
    assert psnr == PSNR
    assert [record["step"] for record in records if record.get("event") == "half"] == [7]


def stopped_after(steps: int, learner: Summing, folder: Path) -> Outcome[State]:
    """Runs a learner that is asked to stop during its last step."""

    class Stop:
        asked = False

    stop = Stop()

    def ask(step: int) -> None:
        stop.asked = step == steps - 1

    learner.during = ask
    return run(folder, learner, stopping=stop)


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 8, 11])
def test_stopped_and_resumed_is_the_same_run(tmp_path: Path, stop: int) -> None:
    whole, first, second = Summing(), Summing(), Summing()
    run(tmp_path / "whole", whole)
    outcome = stopped_after(stop, first, tmp_path / "parts")
    assert (outcome.finished, outcome.step) == (False, stop)
    resumed = run(tmp_path / "parts", second)
    assert first.steps + second.steps == list(range(12))
    assert float(resumed.state.total) == expected(12)
    assert first.written + second.written == whole.written
    assert resumed.metrics == {"psnr": 24.0}
    lines = [
        [{name: value for name, value in record.items() if "time" not in name and "second" not in name
          and "wait" not in name} for record in read_metrics(tmp_path / part / "metrics.jsonl")]
        for part in ("whole", "parts")
    ]  # fmt: skip
    assert lines[0] == lines[1]


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6])
def test_batches_taken_between_steps_are_not_taken_twice(tmp_path: Path, stop: int) -> None:
    whole = run(tmp_path / "whole", Greedy())
    stopped_after(stop, Greedy(), tmp_path / "parts")
    assert float(run(tmp_path / "parts", Greedy()).state.total) == float(whole.state.total)


def test_asked_to_stop_where_an_evaluation_is_due(tmp_path: Path) -> None:
    """Saving goes first, since a scheduler may not wait; the evaluation is made up for."""

    first, second = Summing(), Summing()
    assert stopped_after(3, first, tmp_path).step == 3
    assert first.written == []
    run(tmp_path, second)
    assert second.written == [3, 6]


def test_shortened_run_is_finished(tmp_path: Path) -> None:
    stopped_after(8, Summing(), tmp_path)
    assert run(tmp_path, Summing(), LoopConfig(**{**vars(CONFIG), "steps": 5})).finished


def test_too_little_memory(tmp_path: Path, refused: Any) -> None:
    def exhausted(step: int) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")

    with refused("too little memory for a step: lower train.batch_size"):
        run(tmp_path, Summing(exhausted))


def test_killed_between_checkpoints(tmp_path: Path) -> None:
    """What was done after the last checkpoint is done again, with the same batches."""

    def die(step: int) -> None:
        if step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Summing(die))
    again = Summing()
    assert float(run(tmp_path, again).state.total) == expected(12)
    assert again.steps == list(range(8, 12))
    steps = [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in record]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_finished_run_does_nothing_more(tmp_path: Path) -> None:
    run(tmp_path, Summing())
    again = Summing()
    assert run(tmp_path, again).step == 12
    assert again.steps == []


TERMINATED = """
import signal, sys
from pathlib import Path
from tests.vqgan.training.test_loop import Summing, run
from vqgan.training.training_run import Stopping

def terminated(step):
    if step == 4:
        signal.raise_signal(signal.SIGTERM)

before = signal.getsignal(signal.SIGTERM)
with Stopping() as stopping:
    outcome = run(Path(sys.argv[1]), Summing(terminated), stopping=stopping)
print(outcome.step, outcome.finished, signal.getsignal(signal.SIGTERM) is before)
"""


def test_sigterm_saves_and_ends(tmp_path: Path) -> None:
    """In a process of its own: here, it would meet whatever the libraries of other tests do with signals."""
    done = subprocess.run(
        [sys.executable, "-c", TERMINATED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "5 False True"), done.stderr
    assert (tmp_path / "checkpoints" / "5").is_dir()


def test_lower_is_better_where_it_is(tmp_path: Path) -> None:
    class Lpips(Summing):
        def evaluate(self, state: State) -> Evaluation:
            return Evaluation({"lpips": {3: 0.5, 6: 0.2, 9: 0.3, 12: 0.1}[len(self.steps)]}, None)

    learner = Lpips()
    outcome = run(tmp_path, learner, LoopConfig(**{**vars(CONFIG), "best": "lpips"}))
    assert learner.written == [3, 6, 12]
    assert outcome.metrics == {"lpips": 0.1}


def test_loss_that_stays_not_finite_ends_the_run(tmp_path: Path, refused: Any) -> None:
    learner = Summing()
    learner.not_finite_from = 5
    with refused("not finite in 3 steps in a row"):
        run(tmp_path, learner)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4"]
    healthy = Summing()
    assert float(run(tmp_path, healthy).state.total) == expected(12)
    assert healthy.steps == list(range(4, 12))


def test_few_steps_that_are_not_finite_do_not(tmp_path: Path) -> None:
    class Hiccup(Summing):
        def step(self, step: int, state: State, batch: int) -> tuple[State, Mapping[str, jax.Array]]:
            self.not_finite_from = step if step in (3, 7) else 10**9
            return super().step(step, state, batch)

    assert run(tmp_path, Hiccup()).finished
    record = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in record if "train/loss" in r and r["train/loss"] is None] == [4, 8]


def test_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after(5, Summing(), tmp_path)
    manager = checkpoints.ocp.CheckpointManager
    with monkeypatch.context() as patch:
        patch.setattr(manager, "save", _no_space)
        with refused("checkpoint 8 cannot be written .*No space left.* earlier ones are intact"):
            run(tmp_path, Summing())
    assert float(run(tmp_path, Summing()).state.total) == expected(12)


def _no_space(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_damaged_checkpoint(tmp_path: Path, refused: Any) -> None:
    stopped_after(8, Summing(), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "8" / "state" / "d")
    for path in (tmp_path / "checkpoints" / "8" / "state").rglob("*"):
        if path.is_file() and "ocdbt" in str(path):
            path.write_bytes(b"")
    with refused("checkpoints/8: the checkpoint cannot be read .* remove that folder"):
        run(tmp_path, Summing())


def test_unknown_metric(tmp_path: Path, refused: Any) -> None:
    with refused("train.best is 'fid': give one of"):
        run(tmp_path, Summing(), LoopConfig(**{**vars(CONFIG), "best": "fid"}))
    with refused("train.best is 'lpips': this run measures psnr"):
        run(tmp_path, Summing(), LoopConfig(**{**vars(CONFIG), "best": "lpips"}))


def test_configuration_of_a_run_is_kept(tmp_path: Path, refused: Any) -> None:
    config = {"train": {"steps": 5, "seed": 1}, "model": {"ch": 8}}
    folder = tmp_path / "run"
    check_same_run(folder, config, frozenset({"train.steps"}))
    (folder / "checkpoints" / "5").mkdir(parents=True)
    check_same_run(folder, {**config, "train": {"steps": 9, "seed": 1}}, frozenset({"train.steps"}))
    assert json.loads((folder / "config.json").read_text())["train"]["steps"] == 9
    with refused("model.ch was 8, is 16"):
        check_same_run(folder, {**config, "model": {"ch": 16}}, frozenset({"train.steps"}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with refused("something else than a training run"):
        check_same_run(tmp_path / "other", config, frozenset())
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        check_same_run(folder, config, frozenset())
    (tmp_path / "file").write_text("")
    with refused("cannot be made a folder"):
        check_same_run(tmp_path / "file" / "run", config, frozenset())


def test_run_that_never_got_to_a_checkpoint_may_be_corrected(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    check_same_run(folder, {"train": {"batch_size": 512}}, frozenset())
    (folder / ".config.json.abc.tmp").write_text("{")  # of a killed process
    check_same_run(folder, {"train": {"batch_size": 8}}, frozenset())
    assert json.loads((folder / "config.json").read_text())["train"]["batch_size"] == 8


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ValueError("ours"), ValueError),
        (TypeError("ours"), TypeError),
        (OSError(28, "No space left"), UserError),
    ],
)
def test_a_mistake_of_ours_is_no_full_disk(
    error: Exception, raised: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    kept = checkpoints.Checkpoints(tmp_path / "checkpoints", keep=1)
    monkeypatch.setattr(kept._manager, "save", fail)
    with pytest.raises(raised):
        kept.save(1, {"a": np.ones(2)}, {"position": 0})
    kept.close()
