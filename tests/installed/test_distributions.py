"""The distributions hold our packages, their data, and nothing else; each builds from its own sources too."""

import email
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import vqgan

ROOT = Path(__file__).parents[2]
PACKAGES = {"vqgan", "transforms", "pipelines"}
DATA = {
    "vqgan/pretrained/tiny/codec.json",
    "vqgan/py.typed",
    "pipelines/photos/wine.jpg",
    "pipelines/digits/digits.parquet",
}
READER = {"reader/setup.py", "reader/pyproject.toml", "reader/README.md"}
NOT_FOR_READING = ("vqgan/codec.py", "vqgan/model.py", "vqgan/data/image_crops.py", "vqgan/prior/config.py")


def setup(folder: Path, *command: str) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *command], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def modules() -> set[str]:
    return {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}


def contents(wheel: Path) -> dict[str, bytes]:
    """What gets installed, by path, without the metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def source_distribution(folder: Path) -> Path:
    setup(folder, "sdist")
    (archive,) = (folder / "dist").glob("*.tar.gz")
    return archive


def wheel_of(archive: Path, folder: Path) -> Path:
    """The wheel that a source distribution makes, far from the tree."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    setup(unpacked, "bdist_wheel")
    (wheel,) = (unpacked / "dist").glob("*.whl")
    return wheel


def test_source_distribution(tree: Path, wheel: Path, tmp_path: Path) -> None:
    archive = source_distribution(tree)
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert modules() | DATA | READER | {"setup.py", "README.md", "LICENSE", "constraints.txt"} <= names
    assert not {name for name in names if name.startswith(("tests/testdata", "benchmarks/", "reader/src/"))}
    assert contents(wheel_of(archive, tmp_path)) == contents(wheel)


def test_what_gets_installed(wheel: Path) -> None:
    names = set(contents(wheel))
    assert {name.split("/")[0] for name in names} == PACKAGES
    assert modules() | DATA <= names
    assert {name for name in names if name.startswith("vqgan/pretrained/")} == {
        str(path.relative_to(ROOT)) for path in (ROOT / "vqgan" / "pretrained").rglob("*") if path.is_file()
    }


def test_no_path_of_the_builder_is_shipped(wheel: Path) -> None:
    for name, data in contents(wheel).items():
        assert b"/tmp/" not in data or name.endswith(".py"), name


def test_metadata(wheel: Path, reader_wheel: Path) -> None:
    for found in (metadata(wheel), metadata(reader_wheel)):
        assert found["Version"] == vqgan.__version__
        assert found["Author"] == "The vqgan-pipelines authors"
        assert found["License"] == "Apache-2.0"
        assert found["Requires-Python"] == ">=3.11"
        assert "Programming Language :: Python :: 3.13" in found.get_all("Classifier", [])
        assert found["Keywords"]
    lines = metadata(reader_wheel).get_all("Requires-Dist", [])
    assert {re.split(r"[<>=]", line)[0] for line in lines if "extra ==" not in line} == {"numpy", "pyarrow"}
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "vqgan = vqgan.__main__:start" in archive.read(name).decode()


def test_the_reader_is_a_part_of_it(tree: Path, wheel: Path, reader_wheel: Path, tmp_path: Path) -> None:
    whole, part = contents(wheel), contents(reader_wheel)
    assert part.items() <= whole.items()
    assert {"vqgan/data/tokens.py", "vqgan/data/token_batches.py", "vqgan/py.typed"} <= set(part)
    assert not set(NOT_FOR_READING) & set(part)
    assert contents(wheel_of(source_distribution(tree / "reader"), tmp_path)) == part


def test_setup_imports_nothing_else(tree: Path) -> None:
    """Beam's stager builds it with nothing but setuptools at hand."""
    code = (
        "import runpy, sys; sys.argv = ['setup.py', '--name'];"
        "runpy.run_path('setup.py', run_name='__main__');"
        "assert not {'jax', 'numpy', 'apache_beam', 'vqgan', 'transforms', 'pipelines'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "vqgan-pipelines"), done.stderr


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="new environments have no setuptools of their own")
def test_an_old_setuptools_stages_it(tree: Path, tmp_path: Path) -> None:
    """Beam's stager uses the one that the launcher's environment came with: 65.5 in Python 3.11."""
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    command = ["setup.py", "-q", "sdist", "--dist-dir", str(tmp_path / "staged")]
    python = str(tmp_path / "venv" / "bin" / "python")
    done = subprocess.run([python, *command], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (staged,) = (tmp_path / "staged").iterdir()
    assert staged.name in {f"vqgan{sign}pipelines-{vqgan.__version__}.tar.gz" for sign in "-_"}
