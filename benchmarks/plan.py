"""Planning many images: time, memory, the size of the job graph, and how fast slices are opened.

The list names links to folders of a thousand small files, so that each of its paths leads to a file, as in a
real corpus. Containers are zips, linked to in the same way. Nothing is decoded.

    python benchmarks/plan.py --images 10000000 --containers 100000 --output plan.json
"""

import argparse
import dataclasses
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import Figure, add_output, parser, say, scratch, write_results

from pipelines.runners.beam_runs import measure_graph
from pipelines.tokenize_images import PlannedTokenize, TokenizeConfig, plan_tokenize
from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig
from transforms.sharded.plan import Plan, read_slice
from transforms.sources import SourceConfig
from vqgan import publishing

FILES = 1000
IN_A_CONTAINER = 2
OPENED = 9
GRAPHS = (10, 1_000_000)


def linked(folder: Path, files: int) -> Iterator[str]:
    """Makes links to the folder ``files`` and yields paths of as many files in it, each another one."""
    names = sorted(path.name for path in (folder / "files").iterdir())
    for number in itertools.count():
        (folder / f"part-{number:05d}").symlink_to("files")
        for name in names[: files - number * len(names)]:
            yield f"part-{number:05d}/{name}"
        if (number + 1) * len(names) >= files:
            return


def make_list(folder: Path, images: int) -> Path:
    """Makes a list of files that are there."""
    (folder / "files").mkdir(parents=True)
    for number in range(min(images, FILES)):
        (folder / "files" / f"photo-{number:03d}.jpg").write_bytes(b"jpeg")
    with (folder / "list.txt").open("w") as file:
        file.writelines(f"{path}\n" for path in linked(folder, images))
    return folder / "list.txt"


def make_containers(folder: Path, containers: int) -> Path:
    """Makes zips of two images."""
    (folder / "files").mkdir(parents=True)
    for number in range(min(containers, FILES)):
        with zipfile.ZipFile(folder / "files" / f"{number:03d}.zip", "w") as archive:
            for image in range(IN_A_CONTAINER):
                archive.writestr(f"{image}.jpg", b"jpeg")
    for _ in linked(folder, containers):
        pass
    return folder


def planned_run(source: str, kind: str, output: str) -> PlannedTokenize:
    """Plans; writes nothing."""
    where = f"{source}/part-*/*.zip" if kind == "zip" else source
    config = TokenizeConfig(
        source=SourceConfig(where, kind=kind),
        output=output,
        codec="tiny",
        geometry=Geometry(image_size=256),
        decode=DecodeConfig(),
        quiet=True,
    )
    return plan_tokenize(config)


def measure(source: str, kind: str, output: str) -> dict[str, Any]:
    """Plans, writes the plan, opens slices and builds graphs, all in this process."""
    before, started, used = _peak_bytes(), time.monotonic(), time.process_time()
    run = planned_run(source, kind, output)
    publishing.make_folder(output)
    run.write_plan()
    last = run.plan.slices - 1
    return {
        "entries": run.plan.entries,
        "slices": run.plan.slices,
        "seconds": round(time.monotonic() - started, 2),
        "processor_seconds": round(time.process_time() - used, 2),
        "peak_bytes": _peak_bytes(),
        "peak_bytes_before": before,
        "plan_bytes": sum(path.stat().st_size for path in Path(output).rglob("*") if path.is_file()),
        "first_slice_ms": _median_ms(lambda: read_slice(output, 0)),
        "last_slice_ms": _median_ms(lambda: read_slice(output, last)),
        "graph_bytes": {str(slices): graph_bytes(run, slices) for slices in GRAPHS},
    }


def _median_ms(action: Callable[[], Any]) -> float:
    times = []
    for _ in range(OPENED):
        started = time.process_time()
        action()
        times.append(time.process_time() - started)
    return round(1000 * statistics.median(times), 3)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def graph_bytes(run: PlannedTokenize, slices: int) -> int:
    """Returns the size of the job graph that a runner would get for so many slices."""
    job = dataclasses.replace(run.job, task=dataclasses.replace(run.task, slices=slices))
    return measure_graph(job, Plan(run.plan.identity, slices, run.plan.entries))


def apart(source: Path, kind: str, output: Path) -> dict[str, Any]:
    """Measures in a process of its own, whose memory is nothing but this."""
    command = [sys.executable, __file__, "--measure", str(source), kind, str(output)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def figures_of(kind: str, result: dict[str, Any]) -> list[Figure]:
    """Returns rows of the table of measurements; there is one round."""
    what = f"planning {result['entries']:,} images, {kind}"
    values = {
        f"{what}, processor time": (result["processor_seconds"], "s"),
        f"{what}, peak memory": (result["peak_bytes"] / 1e9, "GB"),
        f"opening slice {result['slices'] - 1:,} beside slice 0, {kind}": (
            result["last_slice_ms"] / result["first_slice_ms"],
            "times",
        ),
    }
    return [Figure(name, value, value, value, unit) for name, (value, unit) in values.items()]


def main() -> None:
    """Plans a list and containers, and prints what that took."""
    flags = parser("Planning many images.")
    flags.add_argument("--images", type=int, default=20_000, help="in a list")
    flags.add_argument("--containers", type=int, default=300, help="zips of two images each")
    add_output(flags)
    flags.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = flags.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    with scratch() as name:
        folder = Path(name)
        inputs = {
            "list": make_list(folder / "list", args.images),
            "zip": make_containers(folder / "zip", args.containers),
        }
        found = {kind: apart(source, kind, folder / f"{kind}-out") for kind, source in inputs.items()}
    for kind, result in found.items():
        say(f"{kind}: " + ", ".join(f"{name} {value}" for name, value in result.items()))
    figures = [one for kind, result in found.items() for one in figures_of(kind, result)]
    write_results(args.output, figures, found=found)


if __name__ == "__main__":
    main()
