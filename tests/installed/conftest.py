"""Fresh virtual environments outside of the checkout, and what a user types in them.

Only these tests ask a package index, the one that pip is configured for. Where there is none they are
skipped, but not in CI.
"""

import dataclasses
import functools
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT_OUT = {".venv", ".git", "build", "dist", "demo-output", "shared", "src"}
PYTHON_SETTINGS = ("PYTHON", "VIRTUAL_ENV", "HF_", "HUGGING_FACE_", "TFDS_", "VQGAN_")
# Environments share what they compile, since their versions are the same; each program runs once or twice.
COMPILING = {
    "VQGAN_COMPILATION_CACHE": os.environ["VQGAN_COMPILATION_CACHE"],
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}
PROBED = "packaging"  # small, and on every index


@dataclasses.dataclass(frozen=True)
class Environment:
    """A virtual environment, and a folder of its own to work in.

    Attributes:
      folder: of the environment.
      script: the ``vqgan`` program, which need not lie in it.
      work: where commands run.
    """

    folder: Path
    script: Path
    work: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        """Its ``site-packages``."""
        (found,) = self.folder.glob("lib/python3*/site-packages")
        return found

    def vqgan(
        self, *arguments: str | Path, code: int = 0, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to an exit code that is expected; ``settings`` are environment variables."""
        return self.run(self.script, *arguments, code=code, **settings)

    def run(self, *arguments: str | Path, code: int = 0, **settings: str) -> subprocess.CompletedProcess[str]:
        """Runs the interpreter likewise. Nothing of this process's own Python reaches it."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith(PYTHON_SETTINGS)}
        done = subprocess.run(
            [self.python, *arguments],
            cwd=self.work,
            env=plain | {"HOME": str(self.work), "PYTHONNOUSERSITE": "1"} | COMPILING | settings,
            capture_output=True,
            text=True,
        )
        shown = f"{' '.join(map(str, arguments))}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == code, shown
        assert "Traceback" not in done.stderr, shown
        return done

    def refuses(self, *arguments: str | Path, **settings: str) -> str:
        """Runs a command that must end at once with one line; returns it."""
        before = sorted(self.work.iterdir())
        (line,) = self.vqgan(*arguments, code=2, **settings).stderr.splitlines()
        assert sorted(self.work.iterdir()) == before, "it had begun already"
        return line


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, since building writes beside them."""
    copy = tmp_path_factory.mktemp("sources") / "tree"

    def ignore(folder: str, names: list[str]) -> set[str]:
        hidden = {name for name in names if name.endswith((".egg-info", "_cache", "__pycache__"))}
        return hidden | (LEFT_OUT & set(names) if Path(folder) in (ROOT, ROOT / "reader") else set())

    shutil.copytree(ROOT, copy, ignore=ignore)
    return copy


@pytest.fixture(scope="session")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the whole product."""
    return build_wheel(tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """What ``pip install vqgan-pipelines`` gives, without any extra."""
    folder = tmp_path_factory.mktemp("base")
    made = new_environment(folder, folder / "venv" / "bin" / "vqgan")
    install(made, str(wheel))
    yield made
    shutil.rmtree(made.folder)  # more than a gigabyte, and pytest keeps the folders of three runs


@pytest.fixture(scope="session")
def with_extra(
    base: Environment, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Environment]:
    """The base installation with one extra and no other.

    What the extra adds lies in an environment of its own, which looks into the base's packages as well.
    """

    @functools.cache
    def layered(extra: str) -> Environment:
        made = new_environment(tmp_path_factory.mktemp(extra), base.script)
        (made.packages / "base.pth").write_text(f"{base.packages}\n")
        install(made, f"{wheel}[{extra}]")
        return made

    return layered


@pytest.fixture(scope="session")
def reader_wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the reader alone."""
    return build_wheel(tree / "reader", tmp_path_factory.mktemp("reader-wheel"))


@pytest.fixture(scope="session")
def reader(reader_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """What ``pip install ./reader`` gives."""
    folder = tmp_path_factory.mktemp("reader")
    made = new_environment(folder, folder / "no-program")
    install(made, str(reader_wheel))
    return made


def new_environment(folder: Path, script: Path) -> Environment:
    work = folder / "work"
    work.mkdir()
    venv.create(folder / "venv", symlinks=True)
    return Environment(folder / "venv", script, work)


def build_wheel(sources: Path, output: Path) -> Path:
    """The wheel of a source folder, made as pip makes it, with the setuptools that is here."""
    done = pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", output, sources)
    assert done.returncode == 0, done.stderr
    (made,) = output.glob("*.whl")
    return made


def install(environment: Environment, *requirements: str) -> None:
    """Installs into an environment, with the versions that all tests run with."""
    settings = ("--no-compile", "--constraint", ROOT / "constraints.txt")
    done = pip("--python", environment.python, "install", *settings, *requirements)
    if done.returncode == 0:
        return
    if not os.environ.get("CI") and not index_answers():
        pytest.skip("THE INSTALLED PRODUCT IS NOT TESTED: pip reaches no package index")
    pytest.fail(f"pip install {' '.join(requirements)}:\n{done.stderr}")


@functools.cache
def index_answers() -> bool:
    """Whether pip gets anything at all."""
    return pip("--retries", "1", "--timeout", "15", "index", "versions", PROBED).returncode == 0


def pip(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": ""}
    return subprocess.run(
        [*command, "--quiet", *arguments], env=environment, cwd="/", capture_output=True, text=True
    )
