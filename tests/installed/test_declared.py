"""Every package that is imported is declared: as required, or in an extra that a command checks first."""

import ast
import functools
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import setuptools

from vqgan.extras import EXTRAS, require_extra

ROOT = Path(__file__).parents[2]
OURS = ("vqgan", "transforms", "pipelines")
# Modules whose distribution has another name, but for the sign between words.
DISTRIBUTIONS = {
    "google.cloud.dataflow": "apache-beam",
    "PIL": "pillow",
    "pillow_jxl": "pillow-jxl-plugin",
    "yaml": "pyyaml",
    "apache_beam": "apache-beam",
    "google.protobuf": "protobuf",
    "orbax.checkpoint": "orbax-checkpoint",
}
# Imports optax at its top: whoever gets here has asked for the extra before.
TRAINING = "vqgan.training"


@pytest.fixture(scope="module")
def declared() -> dict[str, Any]:
    """What setup.py gives to setuptools."""
    given: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
        runpy.run_path(str(ROOT / "setup.py"))
    return given


def name_of(requirement: str) -> str:
    return requirement.split(">")[0].split("[")[0].lower().replace("_", "-")


def distribution(module: str) -> str:
    for known, name in DISTRIBUTIONS.items():
        if f"{module}.".startswith(f"{known}."):
            return name
    return module.split(".")[0].lower().replace("_", "-")


def module_names() -> dict[str, Path]:
    found = {}
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = module_names()


def imports(tree: ast.AST, *, lazy: bool) -> Iterator[str]:
    """Full names of what a module imports; with ``lazy`` in functions as well. Not for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, lazy=lazy)


@functools.cache
def imported(module: str, *, lazy: bool) -> set[str]:
    return set(imports(ast.parse(MODULES[module].read_text()), lazy=lazy))


def third_party(names: set[str]) -> set[str]:
    return {
        distribution(name) for name in names if name.split(".")[0] not in {*OURS, *sys.stdlib_module_names}
    }


def extra_only(declared: dict[str, Any]) -> set[str]:
    required = set(map(name_of, declared["install_requires"]))
    return {name_of(need) for extra in EXTRAS for need in declared["extras_require"][extra]} - required


def test_every_import_is_declared(declared: dict[str, Any]) -> None:
    known = extra_only(declared) | set(map(name_of, declared["install_requires"]))
    for module in MODULES:
        assert third_party(imported(module, lazy=True)) <= known, module


def test_every_requirement_is_imported(declared: dict[str, Any]) -> None:
    used = set.union(*(third_party(imported(module, lazy=True)) for module in MODULES))
    assert set(map(name_of, declared["install_requires"])) <= used


def test_an_extra_is_imported_only_when_it_is_used(declared: dict[str, Any]) -> None:
    extras = extra_only(declared)
    outside = [module for module in MODULES if not module.startswith(TRAINING)]
    for module in outside:
        assert not third_party(imported(module, lazy=False)) & extras, module
    # Nor does anything else import those modules of the training that do, directly or by way of others.
    seen: set[str] = set()
    waiting = list(outside)
    while waiting:
        module = waiting.pop()
        if module in seen or module not in MODULES:
            continue
        seen.add(module)
        assert not third_party(imported(module, lazy=False)) & extras, module
        waiting += imported(module, lazy=False)
    assert any(module.startswith(TRAINING) for module in seen)


def test_the_extras_are_those_of_setup(declared: dict[str, Any]) -> None:
    for extra, brought in EXTRAS.items():
        assert list(brought.values()) == declared["extras_require"][extra]
        assert list(map(distribution, brought)) == list(map(name_of, brought.values()))
    assert set(declared["extras_require"]) - set(EXTRAS) == {"all", "dev", "docs"}


def test_an_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch, refused: Any) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    line = r"^x needs safetensors \(extra 'import'\), not installed; .* with: pip install safetensors$"
    with refused(line):
        require_extra("import", "x")
