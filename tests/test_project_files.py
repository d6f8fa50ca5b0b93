"""What people and tools outside of the code read: citation, hooks, workflow, Makefile, the notebook."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

import vqgan
from pipelines.training.training_codec import configure_codec_training
from pipelines.training.training_prior import configure_prior_training

ROOT = Path(__file__).parents[1]


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def targets() -> dict[str, list[str]]:
    """The Makefile's targets with their recipes."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in (ROOT / "Makefile").read_text().replace("\\\n", "").splitlines():
        if match := re.match(r"([.\w/-]+):(?!=)", line):
            name = match[1]
            found[name] = []
        elif line.startswith("\t"):
            found[name].append(line[1:])
    return found


def test_citation() -> None:
    citation = load("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == vqgan.__version__
    assert citation["license"] == "Apache-2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert all("name" in author or "family-names" in author for author in citation["authors"])


def test_hooks_are_what_make_lint_runs() -> None:
    (repo,) = load(".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local"  # nothing is fetched
    entries = [hook["entry"].removeprefix(".venv/bin/").split() for hook in repo["hooks"]]
    lint = [line.removeprefix("$(BIN)/").split() for line in targets()["lint"]]
    assert [entry[:2] for entry in entries] == [line[:2] for line in lint]


def test_workflow_runs_every_python_that_setup_names() -> None:
    workflow = load(".github/workflows/checks.yml")
    checks = workflow["jobs"]["checks"]
    named = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.py").read_text())
    assert checks["strategy"]["matrix"]["python"] == named == ["3.11", "3.12", "3.13"]
    runs = [step["run"].split()[:2] for step in checks["steps"] if "run" in step]
    assert runs == [["make", "lint"], ["make", "test"], ["make", "docs"]]
    assert all(target in targets() for _, target in runs)


def test_make_shows_no_command_that_holds_an_error() -> None:
    """make prints a command before it runs it: one that names an error would look like one."""
    shown = [line for lines in targets().values() for line in lines if not line.startswith("@")]
    assert [line for line in shown if "||" in line or "echo" in line] == []


def test_make_says_what_it_sets_up_before_it_does() -> None:
    for name, adds in ((".venv/product", "-e '.[all]'"), (".venv/ready", "-e '.[all,dev]'")):
        recipe = targets()[name]
        said = next(index for index, line in enumerate(recipe) if re.search(r"GB.*minutes", line))
        installs = next(index for index, line in enumerate(recipe) if adds in line)
        assert said < installs
        assert "--quiet" not in (ROOT / "Makefile").read_text()


NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert [output for output in outputs if output.output_type in ("error", "stream")] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_small(path: Path) -> None:
    assert path.stat().st_size < 200_000


LOAD_AND_ASK_FOR_HELP = """
import contextlib, io, runpy, sys
for path in sys.argv[1:]:
    main = runpy.run_path(path, run_name="loaded").get("main")
    if main is None:  # what scripts share
        continue
    sys.argv, shown = [path, "--help"], io.StringIO()
    with contextlib.redirect_stdout(shown):
        try:
            main()
        except SystemExit as exit:
            print(exit.code or "")
    assert shown.getvalue().startswith("usage:"), path
"""


def test_every_benchmark_and_example_can_be_loaded_and_has_help() -> None:
    """What they take from the package is still there, so that every figure can be measured anew.

    How they call it, ``make lint`` checks.
    """
    scripts = sorted(path for folder in ("benchmarks", "examples") for path in (ROOT / folder).glob("*.py"))
    scripts = [path for path in scripts if "\nimport torch\n" not in path.read_text()]
    assert len(scripts) > 15
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD_AND_ASK_FOR_HELP, *map(str, scripts)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def setting_names(config: Any) -> set[str]:
    """The dotted names of all fields of a configuration."""
    found = set()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        below = setting_names(value) if dataclasses.is_dataclass(value) else ()
        found |= {field.name, *(f"{field.name}.{name}" for name in below)}
    return found


def test_settings_that_benchmarks_name_are_there() -> None:
    """They stand in texts, of which mypy knows nothing."""
    known = setting_names(configure_codec_training("tiny", [])) | setting_names(
        configure_prior_training("small", [])
    )
    sections = {name for name in known if "." not in name}
    text = "".join(path.read_text() for path in sorted((ROOT / "benchmarks").glob("*.py")))
    named = set(re.findall(rf'"((?:{"|".join(sections)})\.[\w.]+)(?:=|":)', text))
    assert len(named) > 30
    assert named <= known
