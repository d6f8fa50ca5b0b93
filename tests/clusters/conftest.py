"""Engines in processes of their own on this machine, and a command that runs on them."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.faulty import KILLS
from tests.toy_codec import TOY, toy_weights
from vqgan.codec_checkpoint import save_codec

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PATIENCE = 600
"""Seconds that nothing takes, on whatever machine."""


class Source(NamedTuple):
    """What the runs read: images and one reject, a codec."""

    images: Path
    codec: Path


class Engine(NamedTuple):
    """Where a command runs.

    Attributes:
      flags: for Beam.
      when_a_worker_dies: it is ``replaced`` and the run goes on, or the run ``ends`` in a line, or ``hangs``.
    """

    flags: tuple[str, ...]
    when_a_worker_dies: str = "hangs"


class Processes:
    """Starts Python programs, and ends them. All wait at the gate, see :mod:`tests.clusters.gate`.

    Attributes:
      gate: a file that, while it is there, holds whoever has written a file with its text in the name.
    """

    def __init__(self, folder: Path) -> None:
        self.gate = folder / "gate"
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def environment(self, **more: str) -> dict[str, str]:
        path = os.pathsep.join([str(Path(__file__).parent / "gate"), str(ROOT)])
        # Worker pools start "python", whichever that is.
        found = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PYTHONPATH": path, "PATH": found, "VQGAN_TEST_GATE": str(self.gate), **more}

    def start(self, *argv: Any, cwd: Path = ROOT, **environment: str) -> subprocess.Popen[bytes]:
        """Starts a Python program, with its output in a file; a session of its own ends with it."""
        log = self._folder / f"{len(self._started)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *map(str, argv)],
                cwd=cwd,
                env=self.environment(**environment),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def log(self, process: subprocess.Popen[bytes]) -> str:
        return (self._folder / f"{self._started.index(process)}.log").read_text()

    def finish(self, process: subprocess.Popen[bytes], code: int = 0) -> str:
        """Waits for a program's end; returns what it has printed."""
        process.wait(PATIENCE)
        assert process.returncode == code, self.log(process)
        return self.log(process)

    def kill(self, process: subprocess.Popen[bytes], who: str = "launchers") -> None:
        """Kills one process, and none that it has started; it is counted as one of ``who``."""
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
        KILLS[who] += process.returncode == -signal.SIGKILL

    def end(self) -> None:
        self.gate.unlink(missing_ok=True)
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE)

    def hold(self, name: str) -> None:
        """Closes the gate for whoever writes a file with ``name`` in its own."""
        self.gate.with_name("gate.waiting").unlink(missing_ok=True)
        self.gate.write_text(name)

    def held(self, process: subprocess.Popen[bytes]) -> int:
        """Waits until a worker is held; returns its process id."""
        waiting = self.gate.with_name("gate.waiting")
        for _ in until(lambda: waiting.exists() and waiting.read_text()):
            assert process.poll() is None, self.log(process)
        return int(waiting.read_text())


def until(condition: Callable[[], Any]) -> Iterator[None]:
    """Yields now and then until a condition holds."""
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends, "nothing happens"
        time.sleep(0.05)
        yield


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for_port(port: int) -> None:
    def is_open() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    for _ in until(is_open):
        pass


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """16 images of noise, of which one is none."""
    root = tmp_path_factory.mktemp("cluster-source")
    (root / "in").mkdir()
    rng = np.random.default_rng(0)
    for number in range(15):
        pixels = rng.integers(0, 256, (33, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "in" / f"{number}.png")
    (root / "in" / "broken.jpg").write_bytes(b"no image")
    save_codec(root / "codec", TOY, toy_weights(0))
    return Source(root / "in", root / "codec")


@pytest.fixture(scope="session")
def two_shapes(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """The same, and five images twice as wide as high."""
    folder = tmp_path_factory.mktemp("cluster-shapes") / "in"
    shutil.copytree(source.images, folder)
    rng = np.random.default_rng(1)
    for number in range(5):
        pixels = rng.integers(0, 256, (20, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"wide-{number}.png")
    return Source(folder, source.codec)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    made = Processes(tmp_path_factory.mktemp("processes"))
    try:
        yield made
    finally:
        made.end()


def tokenize_command(source: Source, output: Any, flags: Sequence[str] = ()) -> list[str]:
    where = ["--input", source.images, "--output", output, "--codec", source.codec]
    small = ["--slice-size", 2, "--batch-size", 2, "--threads", 1, "--no-report"]
    return ["-m", "pipelines.cli", "tokenize", *map(str, where), *map(str, small), *flags]


def decode_command(tokens: Any, output: Any, flags: Sequence[str] = ()) -> list[str]:
    where = ["--tokens", tokens, "--output", output, "--format", "tar", "--batch-size", 2, "--no-report"]
    return ["-m", "pipelines.cli", "decode", *map(str, where), *flags]


class Reference(NamedTuple):
    """What the command makes in its own process, without Beam."""

    tokens: Path
    images: Path


@pytest.fixture(scope="session")
def reference(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    root = tmp_path_factory.mktemp("reference")
    here = Processes(root)
    here.finish(here.start(*tokenize_command(source, root / "tokens")))
    here.finish(here.start(*decode_command(root / "tokens", root / "images")))
    yield Reference(root / "tokens", root / "images")
    shutil.rmtree(root, ignore_errors=True)


# Engines. Each starts what it needs with the given processes, and says which flags lead there.


def fnapi(mode: str) -> Callable[[Processes], Engine]:
    def start(processes: Processes) -> Engine:
        several = ("--direct_num_workers=2",) if mode != "in_memory" else ()
        return Engine(("--runner=FnApiRunner", f"--direct_running_mode={mode}", *several))

    return start


def no_runner(processes: Processes) -> Engine:
    return Engine(())


def start_pool(processes: Processes) -> str:
    """Starts a worker pool; returns its address."""
    port = free_port()
    processes.start("-m", "apache_beam.runners.worker.worker_pool_main", "--service_port", port)
    wait_for_port(port)
    return f"localhost:{port}"


def job_service(processes: Processes) -> Engine:
    port, pool = free_port(), start_pool(processes)
    processes.start("-m", "apache_beam.runners.portability.local_job_service_main", "--port", port)
    wait_for_port(port)
    where = ("--runner=PortableRunner", f"--job_endpoint=localhost:{port}")
    pool_flags = ("--environment_type=EXTERNAL", f"--environment_config={pool}")
    return Engine((*where, *pool_flags), when_a_worker_dies="ends")


def start_dask_scheduler(processes: Processes) -> str:
    """Starts Dask's scheduler; returns its address."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    processes.start("-m", "distributed.cli.dask_scheduler", "--host", address, "--no-dashboard")
    wait_for_port(port)
    return address


def start_dask_worker(processes: Processes, address: str, **environment: str) -> "subprocess.Popen[bytes]":
    """Starts a worker with one thread that nobody starts again; returns its process."""
    quiet = ("--no-nanny", "--no-dashboard", "--nthreads", 1)
    return processes.start("-m", "distributed.cli.dask_worker", address, *quiet, **environment)


def dask(processes: Processes) -> Engine:
    pytest.importorskip("distributed", reason="the extra dask is not installed")
    address = start_dask_scheduler(processes)
    for _ in range(2):
        start_dask_worker(processes, address)
    return Engine(("--runner=DaskRunner", f"--dask_client_address={address}"), when_a_worker_dies="replaced")


def prism(environment: str) -> Callable[[Processes], Engine]:
    def start(processes: Processes) -> Engine:
        binary = os.environ.get("VQGAN_PRISM", "")
        if not os.access(binary, os.X_OK):
            pytest.skip("no Prism: give VQGAN_PRISM=PATH of its binary; make test-clusters builds it with Go")
        pool = (f"--environment_config={start_pool(processes)}",) if environment == "EXTERNAL" else ()
        flags = ("--runner=PrismRunner", f"--prism_location={binary}", f"--environment_type={environment}")
        return Engine((*flags, *pool), when_a_worker_dies="ends" if pool else "hangs")

    return start


def from_jar(runner: str, flag: str, variable: str) -> Callable[[Processes], Engine]:
    def start(processes: Processes) -> Engine:
        jar = os.environ.get(variable, "")
        if not Path(jar).is_file():
            pytest.skip(f"no job server for {runner}: give {variable}=PATH of its jar")
        pool = ("--environment_type=EXTERNAL", f"--environment_config={start_pool(processes)}")
        return Engine((f"--runner={runner}", f"--{flag}={jar}", *pool))

    return start


ENGINES = {
    "no-runner": no_runner,
    "fnapi-in-memory": fnapi("in_memory"),
    "fnapi-multi-threading": fnapi("multi_threading"),
    "fnapi-multi-processing": fnapi("multi_processing"),
    "job-service": job_service,
    "dask": dask,
    "prism-loopback": prism("LOOPBACK"),
    "prism-external": prism("EXTERNAL"),
    "flink": from_jar("FlinkRunner", "flink_job_server_jar", "FLINK_JOB_SERVER_JAR"),
    "spark": from_jar("SparkRunner", "spark_job_server_jar", "SPARK_JOB_SERVER_JAR"),
}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, processes: Processes) -> Engine:
    return ENGINES[request.param](processes)
