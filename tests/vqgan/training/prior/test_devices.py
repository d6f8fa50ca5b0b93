"""Data and fully-sharded parallelism: four (virtual) devices do what one does, and each keeps its share."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[4]

DEVICES = """
import dataclasses, json, sys
from pathlib import Path
import jax, numpy as np
sys.path.insert(0, "tests/vqgan/training/prior")
from test_learner import PLAIN, make, rows
from vqgan.compilation_cache import enable_compilation_cache
from vqgan.training.checkpoints import Checkpoints

enable_compilation_cache()
folder, found = Path(sys.argv[1]), {}
for fsdp in map(int, sys.argv[2:]):
    learner = make(dataclasses.replace(PLAIN, train=dataclasses.replace(PLAIN.train, fsdp=fsdp)))
    state, losses = learner.initial(), []
    for step in range(3):
        state, scalars = learner.step(step, state, rows(step))
        losses.append(float(scalars["loss"]))
    leaves = jax.tree.leaves(state)
    mine = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    whole = sum(leaf.nbytes for leaf in leaves)
    kernel = str(state.params["blocks.0.feed_forward.up.kernel"].sharding.spec)
    name = f"{fsdp}-of-{jax.device_count()}"
    kept = Checkpoints(folder / name, 1)
    kept.save(3, state, {})
    restored, _ = kept.restore(3, learner.initial())
    kept.close()
    placed = [a.sharding == b.sharding for a, b in zip(jax.tree.leaves(restored), leaves, strict=True)]
    np.savez(folder / f"{name}.npz", **{key: np.asarray(value) for key, value in state.params.items()})
    found[name] = {
        "losses": losses, "share": mine / whole, "kernel": kernel, "placed": all(placed),
        "compilations": learner.compilations,
    }
other = folder / "4-of-4"
if jax.device_count() == 1:
    kept = Checkpoints(other, 1)
    moved, _ = kept.restore(3, state)
    kept.close()
    saved = np.load(f"{other}.npz")
    same = [np.array_equal(saved[key], np.asarray(value)) for key, value in moved.params.items()]
    found["elsewhere"] = all(same) and len(same) == len(saved.files)
    goes_on = {"moved": [], "stayed": []}
    for step in (3, 4):  # the loss of the second one depends on the optimizer's state, too
        state, stayed_scalars = learner.step(step, state, rows(step))
        moved, moved_scalars = learner.step(step, moved, rows(step))
        goes_on["stayed"].append(float(stayed_scalars["loss"]))
        goes_on["moved"].append(float(moved_scalars["loss"]))
    found["goes on"] = goes_on | {"compilations": learner.compilations}
print(json.dumps(found))
"""


class Runs(NamedTuple):
    """What the processes said, and the weights after three steps by the name of a run."""

    found: dict[str, Any]
    params: dict[str, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Three steps on four devices, with each way to cut the state, then on one."""
    folder = tmp_path_factory.mktemp("devices")
    found: dict[str, Any] = {}
    for count, cuts in ((4, "124"), (1, "1")):
        flags = f"--xla_force_host_platform_device_count={count}"
        env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": "."}
        argv = [sys.executable, "-c", DEVICES, str(folder), *cuts]
        done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found |= json.loads(done.stdout)
    params = {}
    for path in folder.glob("*.npz"):
        with np.load(path) as file:
            params[path.stem] = dict(file)
    return Runs(found, params)


def test_four_devices_learn_what_one_does(runs: Runs) -> None:
    one = runs.params["1-of-1"]
    for name in ("1-of-4", "2-of-4", "4-of-4"):
        assert runs.found[name]["losses"] == pytest.approx(runs.found["1-of-1"]["losses"], rel=1e-4), name
        for key, value in runs.params[name].items():
            np.testing.assert_allclose(value, one[key], rtol=2e-3, atol=1e-4)


def test_each_device_keeps_its_share(runs: Runs) -> None:
    """Everything but a few counters can be cut in the toy."""
    assert runs.found["1-of-4"]["share"] == 1
    assert runs.found["2-of-4"]["share"] == pytest.approx(1 / 2, abs=0.01)
    assert runs.found["4-of-4"]["share"] == pytest.approx(1 / 4, abs=0.01)
    assert runs.found["4-of-4"]["kernel"] == str(jax.P(None, "fsdp"))


def test_one_compilation_each(runs: Runs) -> None:
    assert [runs.found[f"{fsdp}-of-4"]["compilations"] for fsdp in (1, 2, 4)] == [1, 1, 1]


def test_checkpoints_keep_the_placement_and_go_to_other_devices(runs: Runs) -> None:
    assert all(runs.found[f"{fsdp}-of-4"]["placed"] for fsdp in (1, 2, 4))
    assert runs.found["elsewhere"] is True
    goes_on = runs.found["goes on"]
    assert goes_on["moved"] == pytest.approx(goes_on["stayed"], rel=1e-4)
    assert goes_on["compilations"] == 1
