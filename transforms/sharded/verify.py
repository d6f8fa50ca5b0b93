"""Checking a finished data set against its manifest and its plan: what is the same for all of them.

Problems are collected as lines, one each; only what cannot be looked at all raises.
"""

import abc
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from transforms.sharded import rejects
from transforms.sharded.plan import Plan, differences, read_plan
from transforms.sharded.summary import describe_file
from vqgan import filesystems
from vqgan.errors import UserError
from vqgan.manifest import check_parts, read_manifest
from vqgan.shards import rejects_name


def require_manifest(output: str) -> dict[str, Any]:
    """Returns the manifest of a finished data set.

    Raises:
      UserError: there is none.
    """
    manifest = read_manifest(output)
    if manifest is not None:
        check_parts(output, manifest)
        return manifest
    if read_plan(output) is not None:
        raise UserError(f"{output}: not finished (no manifest.json); run the command that makes it again")
    raise UserError(
        f"{output}: no data set there (no manifest.json); give the output of vqgan tokenize or decode"
    )


class Verifier(abc.ABC):
    """One check of one data set; derive it for each kind of data set.

    Attributes:
      lists: the manifest's lists of files.
      endings: of the files that must belong to a list.
      planned_unit, made_unit: what the plan counts and what is made of it, in messages.
      output, manifest, plan: of the data set.
      listed: the manifest's entry of each file, by name.
      problems: found so far.
      broken: names of files that are gone or have changed.
    """

    lists: ClassVar[tuple[str, ...]] = ("shards", "rejects")
    endings: ClassVar[tuple[str, ...]] = (".parquet",)
    planned_unit: ClassVar[str] = "images"
    made_unit: ClassVar[str] = "images"

    def __init__(self, output: str, manifest: Mapping[str, Any], plan: Plan) -> None:
        self.output, self.manifest, self.plan = output, manifest, plan
        entries = [entry for name in self.lists for entry in manifest[name]]
        self.listed: dict[str, Mapping[str, Any]] = {entry["name"]: entry for entry in entries}
        self.problems: list[str] = []
        self.broken: set[str] = set()

    @abc.abstractmethod
    def files_of(self, number: int) -> list[str]:
        """Returns the names of a slice's files but for its rejects, the shard first."""

    @abc.abstractmethod
    def check_slice(self, number: int, name: str) -> None:
        """Checks a shard that is there as the manifest has it."""

    @abc.abstractmethod
    def check_whole(self) -> None:
        """Checks what no single slice tells, at the end."""

    @abc.abstractmethod
    def summary(self) -> str:
        """Returns one line that says what was checked."""

    def files_of_all(self) -> list[str]:
        """Returns the names of files that are of no single slice."""
        return []

    def verify(self) -> tuple[list[str], str]:
        """Runs all checks.

        Returns:
          Problems, one line each, and one line that says what was checked.
        """
        by_slice = [self.files_of(number) for number in range(self.plan.slices)]
        expected = [name for names in by_slice for name in names] + self.files_of_all()
        self._check_identity()
        self._check_listing(expected)
        self.broken = {name for name, entry in self.listed.items() if not self._is_intact(entry)}
        for number, names in enumerate(by_slice):
            if names[0] in self.listed and not self.broken & {*names, self._rejects_name(number)}:
                self.check_slice(number, names[0])
        self.check_whole()
        self._check_counts()
        return self.problems, self.summary()

    def expect(self, name: str, what: str, found: Any, expected: Any) -> None:
        """Adds a problem where something is not as expected."""
        if found != expected:
            self.problems.append(f"{name}: {what} is {found}, expected {expected}")

    def check_rejects(self, number: int, shard: str, expected: int) -> list[str]:
        """Checks the number of a slice's rejects against its shard's footer; returns their keys."""
        entry = self.listed.get(self._rejects_name(number))
        if entry is None:
            if expected:
                self.problems.append(f"{shard}: {expected} rejects, but no rejects file in the manifest")
            return []
        rows = rejects.read_rejects(filesystems.join(self.output, entry["name"]))
        self.expect(entry["name"], "rows", len(rows), expected)
        return [row.key for row in rows]

    def _rejects_name(self, number: int) -> str:
        return rejects_name(number, self.plan.slices)

    def _check_identity(self) -> None:
        """Checks that the manifest says of itself what the plan says."""
        where, identity, codec = "manifest.json", self.plan.identity, self.manifest["codec"]
        for line in differences(identity, self.manifest["identity"]):
            self.problems.append(f"{where}: is not of its plan: {line}")
        for name in ("fingerprint", "config", "decoder_sha256"):
            if name in identity["codec"] and name in codec:
                self.expect(where, f"{name} of the codec", codec[name], identity["codec"][name])

    def _check_listing(self, expected: Iterable[str]) -> None:
        """Compares names alone: files of the plan that the manifest does not list, and files in no list."""
        expected = list(expected)
        self.problems += [f"{name} is not in the manifest" for name in expected if name not in self.listed]
        folders = {"", *filesystems.parents(expected), *filesystems.parents(self.listed)}
        there = sorted(filesystems.file_sizes(self.output, folders))
        strays = [name for name in there if name.endswith(self.endings) and name not in self.listed]
        self.problems += [f"{name} belongs to no manifest entry" for name in strays]

    def _is_intact(self, entry: Mapping[str, Any]) -> bool:
        """Tells whether a file is there with the recorded size and sha256."""
        if not filesystems.exists(filesystems.join(self.output, entry["name"])):
            self.problems.append(f"{entry['name']} is missing")
            return False
        found = describe_file(self.output, entry["name"], entry["rows"])
        if found.sha256 != entry["sha256"]:
            self.problems.append(
                f"{entry['name']} has changed: {found.bytes} bytes and sha256 {found.sha256[:12]}, "
                f"recorded {entry['bytes']} and {entry['sha256'][:12]}"
            )
        return bool(found.sha256 == entry["sha256"])

    def _check_counts(self) -> None:
        """Checks that the manifest's sums are those of its files."""
        counts, where, planned = self.manifest["counts"], "manifest.json", self.plan.entries
        rows = sum(entry["rows"] for entry in self.manifest["shards"])
        rejected = sum(entry["rows"] for entry in self.manifest["rejects"])
        self.expect(where, f"number of planned {self.planned_unit}", counts["planned"], planned)
        self.expect(where, f"number of {self.made_unit} and rejects", counts["images"] + rejected, planned)
        self.expect(where, "number of rejects", counts["rejects"], rejected)
        self.expect(where, "number of rows", counts["rows"], rows)
