"""Processor time and peak memory of importing a checkpoint of 289 MB, beside what loading it alone costs.

python benchmarks/import_checkpoint.py --output import.json

Each row is a process of its own, so that neither pages nor modules are shared, and the rows take turns. The
reference is ``torch.load`` where torch is installed, else ``load_file`` of ``safetensors.numpy``. One row has
the same weights among the shards of a model four times their size.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from common import add_output, figure, parser, say, scratch, write_results

from vqgan.config import ModelConfig

ROOT = Path(__file__).parents[1]
MEASURE = """
import json, resource, sys, time
import ml_dtypes, safetensors.numpy, yaml
import vqgan.codec_checkpoint, vqgan.importers.import_codec
{first}
usage = lambda: resource.getrusage(resource.RUSAGE_SELF)
before, begin = usage(), time.perf_counter()
kept = {work}
after, wall = usage(), time.perf_counter() - begin
spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps([spent, wall, (after.ru_maxrss - before.ru_maxrss) / 1024]))
"""
OURS = {
    "weights of a .ckpt": "vqgan.importers.import_checkpoint({ckpt!r})",
    "weights of a .safetensors": "vqgan.importers.import_checkpoint({safetensors!r})",
    "weights among shards": "vqgan.importers.import_checkpoint({shards!r})",
    "codec: weights and fingerprint": "(lambda info: vqgan.codec_checkpoint.load_weights(info, "
    "vqgan.codec_checkpoint.PARTS))(vqgan.codec_checkpoint.read_info({ckpt!r}))",
}


def writers() -> ModuleType:
    """The tests' module that writes checkpoints of other code bases without their code."""
    path = ROOT / "tests" / "vqgan" / "importers" / "foreign.py"
    spec = importlib.util.spec_from_file_location("vqgan_tests_foreign", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def write_checkpoints(folder: Path) -> dict[str, str]:
    """Writes random weights of taming's f16 VQGAN in three containers; returns their paths by kind."""
    foreign = writers()
    config = ModelConfig()
    tensors = foreign.foreign_tensors("taming", config, foreign.random_weights(config))
    places = {name: folder / name for name in ("ckpt", "safetensors", "shards")}
    for place in places.values():
        place.mkdir()
    foreign.write_torch_zip(places["ckpt"] / "last.ckpt", {"state_dict": tensors})
    foreign.write_safetensors(places["safetensors"] / "model.safetensors", tensors)
    write_shards(foreign, places["shards"], tensors)
    return {name: str(next(iter(sorted(place.iterdir())))) for name, place in places.items()} | {
        "shards": str(places["shards"])
    }


def write_shards(foreign: ModuleType, folder: Path, tensors: dict[str, np.ndarray], shards: int = 4) -> None:
    """Writes shards with as many bytes of another model in each as the tokenizer has in all."""
    size = sum(value.nbytes for value in tensors.values())
    homes: dict[str, str] = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part: dict[str, Any] = {f"vq.{key}": tensors[key] for key in list(tensors)[number::shards]}
        part[f"layers.{number}.weight"] = np.ones((size // 4096, 1024), np.float32)
        homes |= dict.fromkeys(part, name)
        foreign.write_safetensors(folder / name, part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))


def reference() -> tuple[str, str, str]:
    """Name of the reference, what it imports, and what it does."""
    if importlib.util.find_spec("torch") is not None:
        return "torch.load", "import torch", "torch.load({ckpt!r}, weights_only=True)"
    return "safetensors.numpy.load_file", "", "safetensors.numpy.load_file({safetensors!r})"


def measure(first: str, work: str, paths: dict[str, str]) -> list[float]:
    """Seconds of processor and of clock, and megabytes above what modules take, in a process of its own."""
    code = MEASURE.format(first=first, work=work.format(**paths))
    # By way of a shell: a process starts with its parent's peak of memory, and a shell has none to speak of.
    command = ["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found: list[float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measures all rows in turns; prints medians and their ratios to the reference."""
    flags = parser("Cost of importing a checkpoint.")
    flags.add_argument("--rounds", type=int, default=3)
    add_output(flags)
    args = flags.parse_args()
    name, first, work = reference()
    rows = {name: (first, work)} | {title: ("", each) for title, each in OURS.items()}
    with scratch() as folder:
        paths = write_checkpoints(Path(folder))
        megabytes = Path(paths["ckpt"]).stat().st_size / 2**20
        taken: dict[str, list[list[float]]] = {title: [] for title in rows}
        for number in range(args.rounds):
            for title in list(rows)[:: 1 if number % 2 == 0 else -1]:
                taken[title].append(measure(*rows[title], paths))
    figures = []
    for title, runs in taken.items():
        spent, wall, peak = (statistics.median(column) for column in zip(*runs, strict=True))
        times = [run[0] / base[0] for run, base in zip(runs, taken[name], strict=True)]
        figures.append(
            figure(f"importing {megabytes:.0f} MiB, {title}, processor time", [r[0] for r in runs], "s")
        )
        figures.append(
            figure(f"importing, {title}, peak memory beside the file", [r[2] / megabytes for r in runs])
        )
        say(
            f"{title}: {spent:.2f} s of processor ({statistics.median(times):.2f} times {name}), "
            f"{wall:.2f} s, peak {peak / megabytes:.2f} times the file"
        )
    write_results(args.output, figures, runs=taken)


if __name__ == "__main__":
    main()
