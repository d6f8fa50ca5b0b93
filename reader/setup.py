"""Packaging of vqgan-tokens: the reader of token data sets alone, with NumPy and pyarrow.

The modules are those of ``../vqgan`` that reading needs, found by following imports, and copied here for a
build. A source distribution has the copies, so it builds without the rest of the tree.
"""

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
TREE = HERE.parent
COPIES = HERE / "src"
ENTRIES = ("vqgan.data.tokens", "vqgan.data.token_batches")
# Modules whose imports are followed only where they stand at the top: vqgan.Codec is not for reading tokens.
SHALLOW = ("vqgan",)


def file_of(module: str) -> Path | None:
    """The file of a module in the tree; None where there is none of this name, as for a function's."""
    path = TREE.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def imports(module: str) -> Iterator[str]:
    """Names that a module imports when it runs, also in functions; not those for type checkers."""
    waiting: list[ast.AST] = [ast.parse(file_of(module).read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (module in SHALLOW and isinstance(node, ast.FunctionDef)):
            waiting += ast.iter_child_nodes(node)


def needed() -> set[str]:
    """Every module of ours that reading tokens may import."""
    found: set[str] = set()
    waiting = list(ENTRIES)
    while waiting:
        module = waiting.pop()
        if module in found or module.split(".")[0] != "vqgan" or file_of(module) is None:
            continue
        found.add(module)
        parents = module.split(".")[:-1]
        waiting += [".".join(parents[: depth + 1]) for depth in range(len(parents))]
        waiting += imports(module)
    return found


def copy_modules() -> None:
    """Puts fresh copies of the modules, and what goes with them, beside this file."""
    for stale in (COPIES, HERE / "build"):
        shutil.rmtree(stale, ignore_errors=True)
    for file in (*map(file_of, sorted(needed())), TREE / "vqgan" / "py.typed"):
        copy = COPIES / file.relative_to(TREE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    shutil.copyfile(TREE / "LICENSE", HERE / "LICENSE")


if not (HERE / "PKG-INFO").exists():  # which an unpacked source distribution has
    copy_modules()
INIT = COPIES / "vqgan" / "__init__.py"
VERSION = re.search(r'^__version__ = "(.+)"$', INIT.read_text(encoding="utf-8"), re.MULTILINE)[1]

setup(
    name="vqgan-tokens",
    version=VERSION,
    description="Reads token data sets of vqgan-pipelines, for any framework, with NumPy and pyarrow alone",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The vqgan-pipelines authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["vqgan", "image tokens", "data loading", "parquet"],
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"vqgan": ["py.typed"]},
    install_requires=["numpy>=2", "pyarrow>=21"],
    # Data sets on the Hugging Face Hub.
    extras_require={"hub": ["huggingface-hub"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
