"""The distributions hold our three packages, their data, and nothing else."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"vqgan", "transforms", "pipelines"}
DATA = {"vqgan/pretrained/tiny/codec.json", "pipelines/photos/wine.jpg"}
LEFT_OUT = {".venv", ".git", "build", "dist", "demo-output", "shared"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, since building writes beside them."""
    copy = tmp_path_factory.mktemp("packaging") / "tree"

    def ignore(folder: str, names: list[str]) -> set[str]:
        hidden = {name for name in names if name.endswith((".egg-info", "_cache", "__pycache__"))}
        return hidden | (LEFT_OUT & set(names) if Path(folder) == ROOT else set())

    shutil.copytree(ROOT, copy, ignore=ignore)
    return copy


def setup(tree: Path, *command: str) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *command], cwd=tree, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def modules() -> set[str]:
    return {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}


def test_source_distribution(tree: Path) -> None:
    setup(tree, "sdist")
    (archive,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert modules() | DATA | {"setup.py", "README.md", "LICENSE"} <= names
    assert any(name.startswith("vqgan/pretrained/tiny/encoder/") for name in names)
    assert not {name for name in names if name.startswith(("tests/testdata", "benchmarks/"))}


def test_what_gets_installed(tree: Path) -> None:
    setup(tree, "bdist_wheel")
    (wheel,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    top = {name.split("/")[0] for name in names}
    assert top == PACKAGES
    assert modules() | DATA <= names
    assert {name for name in names if name.startswith("vqgan/pretrained/")} == {
        str(path.relative_to(ROOT)) for path in (ROOT / "vqgan" / "pretrained").rglob("*") if path.is_file()
    }


def test_metadata(tree: Path) -> None:
    setup(tree, "egg_info")
    (info,) = tree.glob("*.egg-info")
    assert set((info / "top_level.txt").read_text().split()) == PACKAGES
    assert "vqgan = pipelines.cli:main" in (info / "entry_points.txt").read_text()
    requires = (info / "requires.txt").read_text().split("\n[")[0]
    assert {"jax", "apache-beam", "pyarrow"} <= {
        re.split(r"[<>=]", line)[0] for line in requires.splitlines()
    }


def test_setup_imports_nothing_else(tree: Path) -> None:
    """Beam's stager builds it with nothing but setuptools at hand."""
    code = (
        "import runpy, sys; sys.argv = ['setup.py', '--name'];"
        "runpy.run_path('setup.py', run_name='__main__');"
        "assert not {'jax', 'numpy', 'apache_beam', 'vqgan', 'transforms', 'pipelines'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "vqgan-pipelines"), done.stderr
