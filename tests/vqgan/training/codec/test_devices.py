"""Data parallelism: four (virtual) devices do what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqgan.training.codec import learner
from vqgan.training.codec.config import CodecTrainConfig

ROOT = Path(__file__).parents[4]

DEVICES = """
import json, sys
import jax, numpy as np
sys.path.insert(0, "tests/vqgan/training/codec")
from conftest import TOY
from vqgan.compilation_cache import enable_compilation_cache
from vqgan.training.codec.learner import CodecLearner

enable_compilation_cache()
assert jax.device_count() == int(sys.argv[1])
crops = np.load(sys.argv[2])
learner = CodecLearner(TOY, None)
state, found = learner.initial(), []
for step in range(6):
    state, _ = learner.before_step(step, state, iter(crops[step:]))
    state, scalars = learner.step(step, state, crops[step])
    found.append({name: float(value) for name, value in scalars.items()})
print(json.dumps(found))
"""


def test_four_devices_give_the_losses_of_one(crops: np.ndarray, tmp_path: Path) -> None:
    """Placing the codebook, revival, batch statistics and all: six steps through all phases."""
    np.save(tmp_path / "crops.npy", crops)
    runs = []
    for count in (1, 4):
        env = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
            "PYTHONPATH": ".",
        }
        argv = [sys.executable, "-c", DEVICES, str(count), str(tmp_path / "crops.npy")]
        done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        runs.append(json.loads(done.stdout))
    one, four = runs
    assert "discriminator" in one[5]
    for step in range(6):
        assert four[step] == pytest.approx(one[step], rel=2e-3, abs=1e-4), step


def test_batch_that_devices_cannot_share(
    make_learner: Any, toy: CodecTrainConfig, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Three:
        size = 3

    monkeypatch.setattr(learner.sharding, "data_mesh", Three)
    with refused("train.batch_size is 4: it must be divisible by 3"):
        make_learner()


PROCESSOR = """
import sys
import jax
from vqgan.training.loop_config import LoopConfig
from vqgan.training.sharding import use_cpu_devices

count, batch_size, begun = map(int, sys.argv[1:])
if begun:
    jax.devices()
use_cpu_devices(LoopConfig(cpu_devices=count or None, batch_size=batch_size))
print(jax.device_count())
"""


@pytest.mark.parametrize(
    ("count", "batch_size", "begun", "flags", "devices"),
    [
        (2, 16, 0, "", 2),
        (4, 6, 0, "", 2),
        (0, 16, 0, "", 1),
        (2, 16, 1, "", 1),
        (2, 16, 0, "--xla_force_host_platform_device_count=3", 3),
    ],
)
def test_a_processor_as_several_devices(
    count: int, batch_size: int, begun: int, flags: str, devices: int
) -> None:
    """None given, JAX at work already, or a number that XLA was given: nothing is changed."""
    env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": ".", "JAX_PLATFORMS": "cpu"}
    argv = [sys.executable, "-c", PROCESSOR, *map(str, (count, batch_size, begun))]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == (str(devices), "")
