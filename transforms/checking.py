"""What checks of finished data sets have in common: problems are collected as lines, one each."""

from collections.abc import Iterable, Mapping
from typing import Any

from transforms.summary import describe_file
from vqgan import filesystems


def check_listing(
    output: str, expected: Iterable[str], listed: Mapping[str, Any], endings: tuple[str, ...]
) -> list[str]:
    """Problems of names alone: files of the plan that the manifest does not list, and files in no list."""
    expected = list(expected)
    problems = [f"{name} is not in the manifest" for name in expected if name not in listed]
    folders = {"", *filesystems.parents(expected), *filesystems.parents(listed)}
    strays = [name for name in sorted(filesystems.file_sizes(output, folders)) if name.endswith(endings)]
    return problems + [f"{name} belongs to no manifest entry" for name in strays if name not in listed]


def check_file(output: str, entry: Mapping[str, Any], problems: list[str]) -> bool:
    """Whether a file is there with the recorded size and sha256."""
    if not filesystems.exists(filesystems.join(output, entry["name"])):
        problems.append(f"{entry['name']} is missing")
        return False
    found = describe_file(output, entry["name"], entry["rows"])
    if found.sha256 != entry["sha256"]:
        problems.append(
            f"{entry['name']} has changed: {found.bytes} bytes and sha256 {found.sha256[:12]}, "
            f"recorded {entry['bytes']} and {entry['sha256'][:12]}"
        )
    return found.sha256 == entry["sha256"]


def expect(problems: list[str], name: str, what: str, found: Any, expected: Any) -> None:
    """Adds a problem where something is not as expected."""
    if found != expected:
        problems.append(f"{name}: {what} is {found}, expected {expected}")
