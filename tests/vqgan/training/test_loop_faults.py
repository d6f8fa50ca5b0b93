"""Training under faults: steps that are not finite, a disk that is full at every write in turn, kills.

With the learner of :mod:`tests.vqgan.training.test_loop`, whose total tells which batches it has seen.
"""

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from vqgan import publishing
from vqgan.training import checkpoints, logs
from vqgan.training.logs import ProgressLine, read_metrics
from vqgan.training.loop import Evaluation, Outcome, TrainingLoop
from vqgan.training.loop_config import LoopConfig

from .test_loop import CONFIG, Never, Numbers, State, Summing, expected, stopped_after


class Blown(Summing):
    """From a step on every result is spoiled, until the run is started with a smaller rate."""

    def __init__(self, spoiled_from: int, rate: float = 1.0) -> None:
        super().__init__()
        self.spoiled_from, self.rate = spoiled_from, rate

    def step(self, step: int, state: State, batch: int) -> Any:
        # The update that spoils the weights looks like any other: only the step after it is not finite.
        self.not_finite_from = 0 if float(state.total) >= 1e30 else 10**9
        state, scalars = super().step(step, state, batch)
        if step + 1 == self.spoiled_from and self.rate == 1.0:
            state = state._replace(total=jnp.float32(1e30))
        return state, scalars


def run(folder: Path, learner: Summing, stopping: Any = Never, **fields: Any) -> Outcome[State]:
    config = LoopConfig(**{**vars(CONFIG), **fields})
    options = {"quiet": True, "tensorboard": True}
    loop = TrainingLoop(
        learner,
        learner.evaluate,
        learner.export,
        Numbers(),
        config,
        folder,
        ProgressLine(quiet=True),
        options,
    )
    return loop.run(stopping)


def kept(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


# Steps that are not finite


@pytest.mark.parametrize(("spoiled", "newest"), [(5, 4), (6, 4), (7, 4), (9, 8)])
def test_no_checkpoint_while_steps_are_skipped(
    spoiled: int, newest: int, tmp_path: Path, refused: Any
) -> None:
    with refused(
        rf"in \d steps in a row; the last checkpoint, {newest}, is from before .* goes on .* lower learning"
    ):
        run(tmp_path, Blown(spoiled), log_every=1)
    assert kept(tmp_path)[-1] == newest
    again = Blown(spoiled, rate=0.1)
    assert float(run(tmp_path, again, log_every=1).state.total) == expected(12)
    assert again.steps == list(range(newest, 12))


@pytest.mark.parametrize("log_every", [1, 4])
def test_a_checkpoint_of_spoiled_weights_is_removed(log_every: int, tmp_path: Path, refused: Any) -> None:
    """It was written before a step could tell; what the message advises must work all the same."""
    with refused(r"the last checkpoint, 4, is from before \(that of step 8 was of no use and is removed"):
        run(tmp_path, Blown(8), log_every=log_every)
    assert kept(tmp_path) == [4]
    again = Blown(8, rate=0.1)
    assert float(run(tmp_path, again).state.total) == expected(12)
    assert again.steps == list(range(4, 12))


def test_skipped_before_the_first_checkpoint(tmp_path: Path, refused: Any) -> None:
    with refused(r"there is no checkpoint yet: give the same command, which starts again, with a lower"):
        run(tmp_path, Blown(2), log_every=1)
    assert kept(tmp_path) == []
    assert float(run(tmp_path, Blown(2, rate=0.1)).state.total) == expected(12)


def test_the_only_checkpoint_is_never_removed(tmp_path: Path, refused: Any) -> None:
    with refused(r"nor are they from the only checkpoint, 4, on: start again in another folder, with"):
        run(tmp_path, Blown(4), log_every=1)
    assert kept(tmp_path) == [4]


def test_the_first_good_step_is_followed_by_the_checkpoint_that_was_due(tmp_path: Path) -> None:
    class Hiccup(Summing):
        def step(self, step: int, state: State, batch: int) -> Any:
            self.not_finite_from = step if step in (3, 4, 7) else 10**9
            return super().step(step, state, batch)

    learner = Hiccup()
    saved: list[int] = []
    learner.during = lambda step: saved.extend(set(kept(tmp_path)) - set(saved)) if step else None
    outcome = run(tmp_path, learner)
    assert (outcome.finished, outcome.checkpoint) == (True, 12)
    assert saved == [6, 9]  # due at 4 and 8, which end skipped steps


@pytest.mark.parametrize(("stop", "left"), [(5, 4), (2, None)])
def test_stopped_while_steps_are_skipped(stop: int, left: int | None, tmp_path: Path) -> None:
    learner = Summing()
    learner.not_finite_from = stop - 1
    outcome = stopped_after(stop, learner, tmp_path)
    assert (outcome.step, outcome.finished, outcome.checkpoint) == (stop, False, left)
    assert kept(tmp_path) == ([] if left is None else [left])
    assert float(run(tmp_path, Summing()).state.total) == expected(12)


def test_without_validation_spoiled_weights_are_not_exported(tmp_path: Path, refused: Any) -> None:
    class Unjudged(Blown):
        def evaluate(self, state: State) -> Evaluation:
            return Evaluation({}, None)

    learner = Unjudged(5)
    with refused("in a row"):
        run(tmp_path, learner, log_every=2, max_skipped=4)
    assert learner.written == [3]


# A full disk


class Disk:
    """Counts writes of a run; from one of them on it is full."""

    def __init__(self) -> None:
        self.full_from = 10**9
        self.done: list[str] = []

    def write(self, what: str) -> None:
        self.done.append(what)
        if len(self.done) > self.full_from:
            raise OSError(28, "No space left on device")


@pytest.fixture
def writes_to(monkeypatch: pytest.MonkeyPatch) -> Callable[[Disk], None]:
    """Lets every write of a run ask a disk first."""
    from tensorboardX.record_writer import RecordWriter

    def attach(disk: Disk) -> None:
        def opened(self: Any, *args: Any) -> None:
            real_init(self, *args)
            self._file = Log(disk, self._file)

        def synced(filesystem: Any, path: bytes) -> None:
            disk.write("grid" if b"/grids/" in path else "other")
            real_sync(filesystem, path)

        real_init, real_sync = logs._Files.__init__, publishing._sync
        monkeypatch.setattr(logs._Files, "__init__", opened)
        monkeypatch.setattr(publishing, "_sync", synced)
        for owner, name, what in (
            (checkpoints.ocp.CheckpointManager, "save", "checkpoint"),
            (RecordWriter, "write", "tensorboard"),
            (RecordWriter, "flush", "tensorboard"),
        ):
            monkeypatch.setattr(owner, name, _asking(disk, getattr(owner, name), what))

    return attach


class Log:
    """The file of the log, whose flush asks a disk."""

    def __init__(self, disk: Disk, file: Any) -> None:
        self._disk, self._file = disk, file
        self.write, self.close = file.write, file.close

    def flush(self) -> None:
        self._disk.write("log")
        self._file.flush()


def _asking(disk: Disk, real: Any, what: str) -> Any:
    def write(self: Any, *args: Any, **options: Any) -> Any:
        disk.write(what)
        return real(self, *args, **options)

    return write


def records(folder: Path) -> list[dict[str, Any]]:
    """The log but for what depends on the clock."""
    names = ("time", "train/images_per_second", "train/data_wait_share")
    return [
        {name: value for name, value in record.items() if name not in names}
        for record in read_metrics(folder / "metrics.jsonl")
    ]


@pytest.mark.parametrize("what", ["checkpoint", "log", "grid", "tensorboard"])
@pytest.mark.parametrize("which", [0, 1, -1])
def test_full_disk(
    what: str, which: int, writes_to: Callable[[Disk], None], tmp_path: Path, refused: Any
) -> None:
    """From some write on all fail; with space again, the same command ends as if nothing had been."""
    counting = Disk()
    writes_to(counting)
    run(tmp_path / "whole", Summing())
    places = [number for number, done in enumerate(counting.done) if done == what]
    counting.full_from = places[which]
    counting.done.clear()
    first = Summing()
    with refused(rf"{tmp_path}/parts/.* cannot be written .*No space left on device.*; .*free (some )?space"):
        run(tmp_path / "parts", first)
    counting.full_from = 10**9
    before = kept(tmp_path / "parts")
    second = Summing()
    outcome = run(tmp_path / "parts", second)
    assert float(outcome.state.total) == expected(12)
    assert second.steps == list(range(before[-1] if before else 0, 12))
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    grids = [
        sorted(path.name for path in (tmp_path / part / "grids").iterdir()) for part in ("whole", "parts")
    ]
    assert grids[0] == grids[1]


def test_checkpoint_that_the_disk_takes_half_of(
    tmp_path: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file of the checkpoint may have more than some bytes: TensorStore itself finds no room."""
    real = checkpoints.ocp.CheckpointManager.save

    def save(self: Any, step: int, *args: Any, **options: Any) -> Any:
        if step != 8:
            return real(self, step, *args, **options)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
        try:
            return real(self, step, *args, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.ocp.CheckpointManager, "save", save)
        with refused("checkpoint 8 cannot be written .* earlier ones are intact"):
            run(tmp_path, Summing())
    again = Summing()
    assert float(run(tmp_path, again).state.total) == expected(12)
    assert again.steps == list(range(4, 12))


# Kills


def test_killed_at_any_moment(
    writes_to: Callable[[Disk], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies on the disk around each write and rename is what a kill would leave: each goes on alike."""
    moments: list[str] = []
    chosen: set[int] = set()

    def moment(what: str) -> None:
        if len(moments) in chosen:
            shutil.copytree(tmp_path / "whole", tmp_path / f"killed-{len(moments)}")
        moments.append(what)

    def renaming(real: Any) -> Any:
        def rename(source: Any, target: Any, **options: Any) -> None:
            moment(f"before {Path(str(target)).name}")
            real(source, target, **options)
            moment(f"after {Path(str(target)).name}")

        return rename

    with monkeypatch.context() as patch:
        disk = Disk()
        disk.write = moment  # type: ignore[method-assign]
        writes_to(disk)
        for name in ("rename", "replace"):
            patch.setattr(os, name, renaming(getattr(os, name)))
        run(tmp_path / "counted", Summing())
        assert {"before 4", "after 4", "before 12", "log", "grid", "tensorboard"} <= set(moments)
        renames = [number for number, what in enumerate(moments) if what.startswith(("before", "after"))]
        rng = np.random.default_rng(11)
        chosen |= set(rng.choice(renames, 6, replace=False).tolist())
        chosen |= set(rng.choice(len(moments), 6, replace=False).tolist())
        moments.clear()
        run(tmp_path / "whole", Summing())
    killed = sorted(tmp_path.glob("killed-*"))
    assert len(killed) == len(chosen)
    for folder in killed:
        assert float(run(folder, Summing()).state.total) == expected(12), folder
        assert records(folder) == records(tmp_path / "whole"), folder
        # A kill between the last checkpoint and the removal of an old one leaves that.
        assert kept(folder)[-2:] == [8, 12], folder
