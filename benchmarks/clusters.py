"""Two workers beside one, and Prism beside FnApiRunner: the same images, the same command, by the clock.

- ``dask``: two ``dask worker`` processes on two cores, and one on one core.
- ``prism``: the one worker that Prism starts for a job, on two cores and on one.
- ``overhead``: Prism beside FnApiRunner, one slice on all cores.

A worker is kept to its core by ``taskset`` and computes in one thread for each. What is timed is the whole
command, from the launcher's start to its end, for workers that have run a small job before. Linux only.

    python benchmarks/clusters.py --prism PATH
    python benchmarks/clusters.py --prism PATH --only overhead --output clusters.json    # keeps the others
"""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from common import (
    Figure,
    add_output,
    figure,
    make_corpus,
    parser,
    ratios,
    say,
    scratch,
    take_turns,
    write_results,
)
from whole_job import Seconds, timed

SIZE = 256
SLICES = 8
FEW = 16
ONE_THREAD = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1"}
PATIENCE = 120
PARTS = ("dask", "prism", "overhead")


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all runs have in common.

    Attributes:
      folder: everything goes below it; ``few`` and ``all`` hold images.
      images: in ``all``.
      prism: Prism's binary.
    """

    folder: Path
    images: int
    prism: Path

    def tokenize(self, name: str, slice_size: int, flags: Sequence[str]) -> Seconds:
        """Runs a command to its end, into an output of its own."""
        number = sum(1 for _ in self.folder.glob("out-*"))
        command = [sys.executable, "-m", "vqgan", "tokenize", "--input", str(self.folder / name)]
        command += ["--codec", "tiny", "--image-size", str(SIZE), "--slice-size", str(slice_size)]
        command += ["--output", str(self.folder / f"out-{number}"), "--no-report", "--quiet", *flags]
        return timed(command, cache=str(self.folder / "cache"))

    def warmed(self, flags: Sequence[str], workers: int) -> float:
        """Returns images per second of a command whose workers have run a small one before."""
        self.tokenize("few", FEW // (2 * workers), flags)
        return self.images / self.tokenize("all", self.images // SLICES, flags).wall

    def prism_flags(self, kind: str) -> list[str]:
        """Returns the flags that lead to Prism, with workers of this kind."""
        return ["--runner=PrismRunner", f"--prism_location={self.prism}", f"--environment_type={kind}"]


@contextlib.contextmanager
def servers() -> Iterator[Callable[..., int]]:
    """Gives what starts a Python module on cores, and at the end kills all that it has started."""
    started: list[subprocess.Popen[bytes]] = []

    def start(cores: str, module: str, *argv: object, port_flag: str = "") -> int:
        port = free_port() if port_flag else 0
        where = [port_flag, str(port)] if port_flag else []
        command = ["taskset", "-c", cores, sys.executable, "-m", module, *map(str, argv), *where]
        several = {} if "," in cores else ONE_THREAD
        environment = {**os.environ, **several, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        null = subprocess.DEVNULL
        process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=null, stderr=null)
        started.append(process)
        if port:
            wait_for_port(port)
        return port

    try:
        yield start
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    """Finds a port that nobody listens at."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for_port(port: int) -> None:
    """Waits until somebody listens."""
    for _ in range(PATIENCE * 10):
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit(f"nobody listens at port {port}")


def dask_rate(bench: Bench, workers: int) -> float:
    """Returns images per second of so many Dask workers, each on a core of its own."""
    with servers() as start:
        port = start("0,1", "distributed.cli.dask_scheduler", "--no-dashboard", port_flag="--port")
        for core in range(workers):
            own = ("--no-nanny", "--no-dashboard", "--nthreads", 1)
            start(str(core), "distributed.cli.dask_worker", f"127.0.0.1:{port}", *own)
        flags = ["--runner=DaskRunner", f"--dask_client_address=127.0.0.1:{port}"]
        return bench.warmed(flags, workers)


def prism_rate(bench: Bench, cores: int) -> float:
    """Returns images per second of the worker of an EXTERNAL pool that has so many cores."""
    with servers() as start:
        names = ",".join(map(str, range(cores)))
        port = start(names, "apache_beam.runners.worker.worker_pool_main", port_flag="--service_port")
        return bench.warmed([*bench.prism_flags("EXTERNAL"), f"--environment_config=localhost:{port}"], cores)


def compare_two(what: str, rate: Callable[[int], float], rounds: int) -> list[Figure]:
    """Compares two workers or cores with one."""
    measured = take_turns({str(n): functools.partial(rate, n) for n in (1, 2)}, rounds)
    rows = [figure(f"{what}, {n}", measured[n], "images/s") for n in measured]
    return [*rows, figure(f"{what}, 2 beside 1", ratios(measured, "2", "1"))]


def compare_overhead(bench: Bench, rounds: int) -> list[Figure]:
    """Compares Prism with FnApiRunner, by the clock and in processor time."""
    flags = {"FnApiRunner": ["--runner=FnApiRunner"], "Prism": bench.prism_flags("LOOPBACK")}
    processor: dict[str, list[float]] = {name: [] for name in flags}

    def way(name: str) -> float:
        taken = bench.tokenize("all", bench.images, flags[name])
        processor[name].append(taken.processor)
        return taken.wall

    bench.tokenize("few", FEW, flags["FnApiRunner"])  # fills the cache of compiled programs
    wall = take_turns({name: functools.partial(way, name) for name in flags}, rounds)
    rows = [figure(f"a slice, {name}", wall[name], "s") for name in flags]
    for label, taken in (("by the clock", wall), ("processor time", processor)):
        rows.append(figure(f"Prism beside FnApiRunner, {label}", ratios(taken, "Prism", "FnApiRunner")))
    return rows


def kept(path: Path | None, measured: Sequence[Figure]) -> list[Figure]:
    """Returns the figures of a file of results that were not measured anew."""
    if path is None or not path.exists():
        return []
    names = {one.what for one in measured}
    rows = [Figure(**row) for row in json.loads(path.read_text())["figures"]]
    return [row for row in rows if row.what not in names]


def main() -> None:
    """Measures the parts that were asked for, and prints their figures."""
    flags = parser("Two workers beside one, and Prism beside FnApiRunner.")
    flags.add_argument("--images", type=int, default=512, help="photographs of 480 pixels")
    flags.add_argument("--rounds", type=int, default=2)
    prism = os.environ.get("VQGAN_PRISM")
    flags.add_argument("--prism", type=Path, default=prism, help="its binary; without it, Dask alone")
    flags.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    add_output(flags)
    args = flags.parse_args()
    parts = [part for part in args.only if args.prism or part == "dask"]
    measured: list[Figure] = []
    with scratch() as name:
        bench = Bench(Path(name), args.images, args.prism)
        make_corpus(bench.folder / "all", args.images)
        make_corpus(bench.folder / "few", FEW)
        rates = {"dask": ("Dask workers", dask_rate), "prism": ("cores of Prism's worker", prism_rate)}
        for part in parts:
            if part == "overhead":
                measured += compare_overhead(bench, args.rounds)
            else:
                what, rate = rates[part]
                measured += compare_two(what, functools.partial(rate, bench), args.rounds)
    for one in measured:
        say(f"{one.what}: {one.value:.2f} {one.unit} ({one.low:.2f} to {one.high:.2f})")
    write_results(args.output, [*kept(args.output, measured), *measured])


if __name__ == "__main__":
    main()
