"""What the benchmarks share: a corpus made from the test photographs, and codecs of two sizes."""

import argparse
import datetime
import importlib.metadata
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from pipelines.training.training_runs import TrainingSummary
from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig, prepare
from vqgan.codec_checkpoint import model_weights, save_codec
from vqgan.config import ModelConfig
from vqgan.model.vqgan import VQGAN
from vqgan.processor import available_cores

PHOTOS = Path(__file__).parent.parent / "tests" / "testdata" / "photos"

# A codec of published width for which decoding images is a small part of the work.
LARGE = ModelConfig(
    resolution=256, ch=64, ch_mult=(1, 1, 2, 4), num_res_blocks=2, attn_resolutions=(), mid_attention=False
)


class Figure(NamedTuple):
    """A row of the table of measurements.

    Attributes:
      what: what was measured.
      value: its median.
      low: the least of all rounds.
      high: the greatest.
      unit: ``times`` for ratios, else such as ``images/s``.
    """

    what: str
    value: float
    low: float
    high: float
    unit: str


def parser(description: str) -> argparse.ArgumentParser:
    """A parser that every benchmark starts from."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


def make_corpus(folder: Path, images: int, short_side: int = 480, photos: Path = PHOTOS) -> None:
    """Distinct JPEG files, each a random crop of a photograph at ``short_side`` pixels."""
    rng = np.random.default_rng(0)
    sources = [Image.open(path).convert("RGB") for path in sorted(photos.glob("*.jpg"))]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(images):
        source = sources[number % len(sources)]
        share = rng.uniform(0.6, 1.0)
        width, height = round(source.width * share), round(source.height * share)
        left, top = (int(rng.integers(rest + 1)) for rest in (source.width - width, source.height - height))
        scale = short_side / min(width, height)
        size = (round(width * scale), round(height * scale))
        crop = source.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        crop.save(folder / f"{number:06d}.jpg", quality=90)


def read_photos(folder: Path, size: int) -> tuple[list[Path], np.ndarray]:
    """The photographs of a folder and their centre crops, uint8 ``[N, size, size, 3]``."""
    paths, geometry = sorted(folder.glob("*.jpg")), Geometry(image_size=size)
    views = [prepare(path.read_bytes(), path.name, DecodeConfig(), geometry).pixels for path in paths]
    return paths, np.concatenate(views)


def random_codec(folder: Path, config: ModelConfig) -> str:
    """A codec with random weights: as fast as a trained one."""
    model = VQGAN(config, rngs=nnx.Rngs(0))
    save_codec(folder, config, model_weights(model))
    return str(folder)


def scratch() -> tempfile.TemporaryDirectory:
    """A temporary folder."""
    return tempfile.TemporaryDirectory(prefix="vqgan-benchmark-")


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)
    sys.stdout.flush()


def finished(summary: TrainingSummary) -> TrainingSummary:
    """Returns what a training has made; one that a signal has stopped ends the program."""
    if not summary.finished:
        raise SystemExit(f"{summary.output}: stopped; the same command goes on")
    return summary


def take_turns(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measures every way once a round, in both orders by turns, since a shared machine's speed drifts."""
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            measured[name].append(ways[name]())
    return measured


class TimedStep:
    """A training step whose calls give the processor time that they took; their wall time is kept beside."""

    def __init__(self, step: Callable[[], float]):
        self._step = step
        self.wall: list[float] = []
        self.loss = self._step()  # what is compiled is compiled here

    def __call__(self) -> float:
        wall, processor = time.monotonic(), time.process_time()
        self.loss = self._step()
        self.wall.append(time.monotonic() - wall)
        return time.process_time() - processor


def compare_steps(ways: Mapping[str, TimedStep], rounds: int, size: int, unit: str) -> None:
    """Prints steps side by side, each of ``size`` units: tokens or images."""
    measured = take_turns(ways, rounds)
    walls = {name: step.wall for name, step in ways.items()}
    say(f"| step | processor time | {unit} for each second of it | wall time | {unit}/s | loss | ratios |")
    say("|---|---|---|---|---|---|---|")
    first = next(iter(ways))
    for name, step in ways.items():
        cpu, wall = float(np.median(measured[name])), float(np.median(walls[name]))
        against = [float(np.median(ratios(times, name, first))) for times in (measured, walls)]
        say(
            f"| {name} | {cpu:.2f} s | {size / cpu:,.1f} | {wall:.2f} s | {size / wall:,.1f} "
            f"| {step.loss:.6f} | {against[0]:.2f}, {against[1]:.2f} |"
        )
    say(f"\nRatios: processor and wall time against {first!r}, medians of those of {rounds} rounds.")


def ratios(measured: Mapping[str, list[float]], name: str, reference: str) -> list[float]:
    """How many times the reference's value ``name`` has, round by round."""
    return [one / other for one, other in zip(measured[name], measured[reference], strict=True)]


def installed(package: str, why: str) -> bool:
    """Whether a package that is compared with is there; says so where it is not."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        say(f"NOT COMPARED with {why}: {package} is not installed")
        return False
    return True


def figure(what: str, values: Sequence[float], unit: str = "times") -> Figure:
    """The median of what rounds gave, with its spread."""
    return Figure(what, float(np.median(values)), min(values), max(values), unit)


def add_output(flags: argparse.ArgumentParser) -> None:
    """Adds the flag for a file of results."""
    flags.add_argument("--output", type=Path, help="JSON file for the figures")


def write_results(path: Path | None, figures: Sequence[Figure], **details: Any) -> None:
    """Writes figures as JSON, with a description of what they were measured on.

    ``benchmarks/run_all.py`` makes the README's table from such files.
    """
    if path is None:
        return
    packages = ("jax", "jaxlib", "flax", "apache-beam", "pyarrow", "numpy", "pillow")
    described = {
        "processor": _processor(),
        "cores": available_cores(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "date": datetime.date.today().isoformat(),
    }
    rows = [one._asdict() for one in figures]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": described, "figures": rows, **details}, indent=2) + "\n")
    say(f"written to {path}")


def matrix_flops(dtype: str) -> float:
    """Floating-point operations per second of a large matrix product, the best of five."""
    size = 2048 if jax.default_backend() == "cpu" else 16384
    matrix = jnp.ones((size, size), dtype)
    product: Callable[[jax.Array], jax.Array] = jax.jit(lambda m: m @ m)
    jax.block_until_ready(product(matrix))
    best = float("inf")
    for _ in range(5):
        started = time.monotonic()
        jax.block_until_ready(product(matrix))
        best = min(best, time.monotonic() - started)
    return 2 * size**3 / best


def _processor() -> dict[str, Any]:
    """The model and those of its features that decide how fast matrices are multiplied."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {"model": platform.processor() or platform.machine()}
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    told = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return {"model": fields.get("model name", platform.machine()), "features": told}
