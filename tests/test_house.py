"""The house stays in order: sizes, names, the direction of imports, references to modules and files."""

import ast
import collections
import re
import statistics
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("vqgan", "transforms", "pipelines")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES
}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
PARALLEL = {"config", "losses", "learner", "run", "job", "manifest", "plan", "report", "shard", "verify"}
"""Names that may stand in several folders of a package: the same part of parallel jobs or trainers."""
TEXTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *FILES, *ROOT.glob("benchmarks/*.py")})


def is_package(name: str) -> bool:
    return MODULES[name].name == "__init__.py"


def imports() -> dict[str, set[str]]:
    """Modules of ours that each module imports anywhere, in functions and for type checkers too."""
    found: dict[str, set[str]] = {name: set() for name in MODULES}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            wanted: list[str] = []
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                full = [f"{node.module}.{alias.name}" for alias in node.names]
                wanted = [each if each in MODULES else node.module for each in full]
            found[name] |= {each for each in wanted if each in MODULES and each != name}
    return found


IMPORTS = imports()


def functions() -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield node


def test_sizes_of_files() -> None:
    lines = {name: len(MODULES[name].read_text().splitlines()) for name in MODULES if not is_package(name)}
    assert {name: count for name, count in lines.items() if count > 400} == {}
    assert 130 <= statistics.median(lines.values()) <= 200


def test_sizes_of_functions() -> None:
    lengths = sorted((node.end_lineno or 0) - node.lineno + 1 for node in functions())
    assert statistics.median(lengths) <= 10
    assert lengths[int(0.9 * len(lengths))] <= 30
    assert lengths[-1] <= 60


def test_small_modules_serve_many() -> None:
    importers: collections.Counter[str] = collections.Counter()
    for wanted in IMPORTS.values():
        importers.update(wanted)
    small = [
        name
        for name, path in MODULES.items()
        if not is_package(name) and len(path.read_text().splitlines()) < 36 and importers[name] <= 1
    ]
    assert small == []


def test_no_circles() -> None:
    """A topological order exists: modules are taken away whose imports are all gone, until none is left."""
    left = {name: set(wanted) for name, wanted in IMPORTS.items()}
    while free := [name for name, wanted in left.items() if not wanted & left.keys()]:
        for name in free:
            del left[name]
    assert sorted(left) == [], "these import each other, or something that does"


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    allowed = PACKAGES[: PACKAGES.index(package) + 1]
    wrong = [
        (name, wanted)
        for name in MODULES
        if name.split(".")[0] == package
        for wanted in IMPORTS[name]
        if wanted.split(".")[0] not in allowed
    ]
    assert wrong == []


def test_names_of_modules() -> None:
    """No two of a package alike, but for the same part of parallel jobs."""
    places = collections.defaultdict(list)
    for name in MODULES:
        if not is_package(name):
            package, _, rest = name.partition(".")
            places[package, rest.rpartition(".")[2]].append(name)
    twice = {key[1]: names for key, names in places.items() if len(names) > 1 and key[1] not in PARALLEL}
    assert twice == {}


def test_names_of_classes_and_functions() -> None:
    """Public ones are unique across the project, so that a search finds the one that is meant."""
    places = collections.defaultdict(list)
    for name, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                places[node.name].append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_folders_say_what_lives_there() -> None:
    silent = [name for name in MODULES if is_package(name) and not ast.get_docstring(TREES[name])]
    assert silent == []


DOTTED = re.compile(r"(?<![\w./-])(?:vqgan|transforms|pipelines)(?:\.[A-Za-z_]\w*)+")
PATH = re.compile(
    r"(?<![\w./-])(?:vqgan|transforms|pipelines|tests|benchmarks|docs)/[\w./-]*\.(?:py|md|png|jpg)\b"
)


def prose(path: Path) -> str:
    """The text of a document; of code its strings and comments, since imports are for the type checker."""
    if path.suffix == ".md":
        return path.read_text()
    with path.open("rb") as file:
        kinds = {tokenize.STRING, tokenize.COMMENT}
        return "\n".join(token.string for token in tokenize.tokenize(file.readline) if token.type in kinds)


def resolves(reference: str) -> bool:
    """Whether a dotted name is a module, or something that a module defines or imports."""
    parts = reference.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        if module in MODULES:
            text = MODULES[module].read_text()
            return end == len(parts) or re.search(rf"\b{parts[end]}\b", text) is not None
    return False


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_references_resolve(path: Path) -> None:
    """In docs, docstrings, comments and messages alike."""
    text = prose(path)
    lost = {found for found in DOTTED.findall(text) if not resolves(found)}
    lost |= {found for found in PATH.findall(text) if not (ROOT / found).exists()}
    assert sorted(lost) == []


def test_docstrings_of_functions_begin_with_a_verb() -> None:
    """In the third person ("Gives", "Reads"): what a function does, not what it is; values may be nouns."""
    wrong = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("__"):
                continue
            if any("property" in ast.unparse(decorator) for decorator in node.decorator_list):
                continue
            first = (ast.get_docstring(node) or "Says").split()[0].rstrip(".,:;")
            if not re.fullmatch("[A-Z][a-z]+s", first) or first in {"Is", "As", "This", "Its"}:
                wrong.append(f"{name}.{node.name}: {first}")
    assert wrong == []
