"""The worker image and the manifests beside it, as far as they can be checked without Docker and a cluster.

What the Dockerfile copies and installs is put into the environment of the other tests here; Beam's entry
point is a program of another image, and is started by whoever builds this one.
"""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cli import build_parser
from pipelines.runners.runner_flags import RunnerFlags

from .conftest import build_wheel, pip

Environment = Any

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
MANIFESTS = sorted(DOCKER.glob("*.yaml"))
POOL_PORT = 50000
"""Of ``boot --worker_pool``."""


def instructions() -> list[tuple[str, str]]:
    """Those of the Dockerfile, each with its arguments in one line."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line)]


def given(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def arguments() -> dict[str, str]:
    return dict(each.split("=", 1) for each in given("ARG"))


def copied() -> list[str]:
    """What is copied out of the checkout."""
    copies = [shlex.split(each) for each in given("COPY") if not each.startswith("--from")]
    return [source for copy in copies for source in copy[:-1]]


def documents() -> list[tuple[Path, dict[str, Any]]]:
    return [(path, each) for path in MANIFESTS for each in yaml.safe_load_all(path.read_text())]


def pods(document: Any) -> list[dict[str, Any]]:
    """Every pod that a manifest describes, at any depth."""
    if isinstance(document, list):
        return [pod for each in document for pod in pods(each)]
    if not isinstance(document, dict):
        return []
    return [document] * ("containers" in document) + [pod for each in document.values() for pod in pods(each)]


CONTAINERS = [
    (path, pod, container)
    for path, document in documents()
    for pod in pods(document)
    for container in pod["containers"]
]


def test_versions_are_those_of_the_tests() -> None:
    assert f"\napache-beam=={arguments()['BEAM_VERSION']}\n" in CONSTRAINTS
    assert f"Python :: {arguments()['PYTHON_VERSION']}" in (ROOT / "setup.py").read_text()
    bases = given("FROM")
    assert bases[0] == "apache/beam_python${PYTHON_VERSION}_sdk:${BEAM_VERSION} AS beam"
    assert bases[-1] == "worker", "what is built without --target"
    (jax,) = re.findall(r"^jax==(.+)$", CONSTRAINTS, re.MULTILINE)
    cuda = (DOCKER / "constraints-cuda12.txt").read_text()
    assert f"\njax-cuda12-plugin=={jax}\n" in cuda
    assert all("==" in line for line in cuda.splitlines()[1:])


def test_nobody_is_root() -> None:
    names = [name for name, _ in instructions()]
    assert names.index("USER") > max(index for index, name in enumerate(names) if name == "RUN")
    assert given("USER") == ["1000:1000"]
    for path, pod, container in CONTAINERS:
        contexts = (pod.get("securityContext", {}), container.get("securityContext", {}))
        ours = container["image"].startswith("vqgan-worker")
        assert not ours or any(context.get("runAsNonRoot") for context in contexts), path


def test_entry_point_is_beams() -> None:
    assert given("ENTRYPOINT") == ['["/opt/apache/beam/boot"]']
    assert "--from=beam /opt/apache/beam/boot /opt/apache/beam/boot" in given("COPY")


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert f"!{source.rstrip('/')}" in ignored, source


def test_what_is_copied_installs(base: Environment, tmp_path: Path) -> None:
    """The step that installs, with nothing but the copied files at hand; all it needs is there."""
    for source in copied():
        here = ROOT / source
        copy = shutil.copytree if here.is_dir() else shutil.copy
        copy(here, tmp_path / Path(source).name)
    (step,) = (each for each in given("RUN") if each.startswith("pip install"))
    values = {**arguments(), "EXTRAS": ""}
    words = shlex.split(re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], step.partition("&&")[0]))
    assert words[:2] == ["pip", "install"]
    constraints = [tmp_path / word if word.endswith(".txt") else word for word in words[2:-1]]
    wheel = build_wheel(tmp_path, tmp_path / "wheel")
    done = pip("--python", base.python, "install", "--dry-run", *constraints, wheel)
    assert done.returncode == 0, done.stderr


def test_a_worker_starts_with_what_is_installed(base: Environment) -> None:
    """What boot runs: the harness, a pool, and the functions that are sent to it."""
    code = "import apache_beam.runners.worker.sdk_worker_main, transforms.sharded.beam_graph"
    base.run("-c", code)
    said = base.run("-m", "apache_beam.runners.worker.worker_pool_main", "--help").stdout
    assert "--container_executable" in said


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifest(path: Path) -> None:
    found = list(yaml.safe_load_all(path.read_text()))
    assert all({"apiVersion", "kind", "metadata", "spec"} <= set(each) for each in found)
    for each in found:
        selected = each["spec"].get("selector", {}).get("matchLabels")
        if selected:
            assert each["spec"]["template"]["metadata"]["labels"] == selected
    for pod in pods(found):
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        mounted = {mount["name"] for each in pod["containers"] for mount in each.get("volumeMounts", [])}
        assert mounted == volumes


def test_one_process_for_each_accelerator() -> None:
    """A container with a device runs one pool, or one Dask worker of one thread."""
    with_device = [each for _, _, each in CONTAINERS if "nvidia.com/gpu" in str(each.get("resources"))]
    assert len(with_device) == 3
    for container in with_device:
        assert container["image"] == "vqgan-worker-cuda"
        if "command" in container:
            words = container["command"]
            assert words[:2] == ["dask", "worker"]
            assert [words[words.index(flag) + 1] for flag in ("--nworkers", "--nthreads")] == ["1", "1"]
        else:
            assert container["args"] == ["--worker_pool"]
            assert container["ports"] == [{"containerPort": POOL_PORT}]


def test_launchers_flags_are_known() -> None:
    launched = [each["command"] for _, _, each in CONTAINERS if each.get("command", [""])[0] == "vqgan"]
    assert len(launched) == 2
    for words in launched:
        _, unknown = build_parser().parse_known_args(words[1:])
        flags = RunnerFlags(unknown)
        assert {flag.split("=")[0] for flag in unknown} <= flags.known()
        if flags.runner == "flink":
            assert flags.given.environment_config == f"localhost:{POOL_PORT}"
