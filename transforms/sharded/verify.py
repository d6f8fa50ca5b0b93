"""Checking a finished data set against its manifest and its plan: what is the same for all of them.

Problems are collected as lines, one each; only what cannot be looked at all raises.
"""

import abc
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pyarrow import fs

from transforms.sharded import rejects
from transforms.sharded.plan import (
    Plan,
    check_plan_tables,
    differences,
    plan_document,
    plan_file,
    plan_tables,
    read_plan,
)
from transforms.sharded.rejects import RejectRow
from transforms.sharded.summary import FileSummary, SliceTotals, describe_file
from vqgan import filesystems
from vqgan.documents import Fields, parse_document
from vqgan.errors import UserError, counted, first_line, printable
from vqgan.manifest import check_parts, read_manifest
from vqgan.shards import rejects_name

AGREEMENTS = ("agreement_with_float32", "agreement_with_jax")
CIRCUMSTANCES = ("throughput", "versions", "finished", *AGREEMENTS, "license")
"""Parts of a manifest that nothing else in the data set tells; of the codec, its name and card."""


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


ABOUT_CODEC = ("name", "fingerprint", "decoder_sha256", "config", "card")


class Verifier(abc.ABC):
    """One check of one data set; derive it for each kind of data set.

    Attributes:
      lists: the manifest's lists of files.
      endings: of the files that must belong to a list.
      output, manifest, plan: of the data set.
      part: of it, which the plan is of; its first, unless there are several.
      identity: the plan's, to be read field by field.
      planned: how many entries each slice has.
      listed: the manifest's entry of each file, by name.
      found: the files that are there as listed, by name.
      totals: what the slices hold that were checked; derived classes add each.
      problems: found so far.
      broken: names of files that are gone or have changed.
    """

    lists: ClassVar[tuple[str, ...]] = ("shards", "rejects")
    endings: ClassVar[tuple[str, ...]] = (".parquet",)

    def __init__(self, output: str, manifest: Mapping[str, Any], plan: Plan, part: int = 0) -> None:
        self.output, self.manifest, self.plan, self.part = output, manifest, plan, part
        self.identity = Fields(plan.identity, self._refuse_plan, "identity")
        self.planned: list[int] = []
        self.entries = [entry for name in self.lists for entry in manifest[name]]
        self.listed: dict[str, Mapping[str, Any]] = {entry["name"]: entry for entry in self.entries}
        self.found: dict[str, FileSummary] = {}
        self.totals = self.empty_totals()
        self.problems: list[str] = []
        self.broken: set[str] = set()

    @abc.abstractmethod
    def empty_totals(self) -> SliceTotals:
        """Returns the sum of no slices."""

    @abc.abstractmethod
    def check_identity(self) -> None:
        """Checks the types of what other checks read of the plan's identity. Raises UserError."""

    @abc.abstractmethod
    def rebuild_plan(self) -> Plan:
        """Returns the plan that the tables of slices make; sets ``planned``."""

    @abc.abstractmethod
    def files_of(self, number: int) -> list[str]:
        """Returns the names of a slice's files but for its rejects, the shard first."""

    @abc.abstractmethod
    def check_slice(self, number: int, name: str) -> None:
        """Checks a shard that is there as the manifest has it, and adds it to ``totals``.

        Raises:
          UserError: it cannot be read.
        """

    @abc.abstractmethod
    def check_whole(self) -> None:
        """Checks what no single slice tells, at the end."""

    @abc.abstractmethod
    def rebuild_manifest(self) -> dict[str, Any]:
        """Returns the manifest that ``totals`` make. Raises where that is none."""

    @abc.abstractmethod
    def summary(self) -> str:
        """Returns one line that says what was checked."""

    def files_of_all(self) -> list[str]:
        """Returns the names of files that are of no single slice."""
        return []

    def check_plan(self) -> None:
        """Compares the plan with its table, from which every figure of it follows.

        Raises:
          UserError: it is not as it was written.
        """
        check_plan_tables(self.output, self.part)
        self.check_identity()
        rebuilt = self.rebuild_plan()
        data = filesystems.read_bytes(filesystems.join(self.output, plan_file(self.part)))
        written = parse_document(data, self._refuse_plan).data
        tables = plan_tables(self.output, self.part)
        by = tables[0] if len(tables) == 1 else f"the {len(tables)} tables beside it"
        document = plan_document(self.output, rebuilt, tables)
        if "table" in written:  # as earlier releases wrote it
            (document["table"],) = document.pop("tables")
        for line in contradictions(written, document):
            raise self._refuse_plan(f"{line} by {by}")

    def verify(self) -> tuple[list[str], str]:
        """Runs all checks but that of the plan, which has to hold.

        Returns:
          Problems, one line each, and one line that says what was checked.
        """
        self._check_identity()
        self.check_listing(self.expected_files(), self.rejects_files())
        self.check_slices()
        self.check_whole()
        self._check_manifest()
        return [printable(problem) for problem in self.problems], self.summary()

    def expected_files(self) -> list[str]:
        """Returns the names of all files but rejects."""
        numbers = range(self.plan.slices)
        return [name for number in numbers for name in self.files_of(number)] + self.files_of_all()

    def rejects_files(self) -> list[str]:
        """Returns the names that files of rejects may have."""
        return [self._rejects_name(number) for number in range(self.plan.slices)]

    def check_slices(self) -> None:
        """Compares all files with their sums, and checks each slice whose files are there as listed."""
        self.broken = {name for name, entry in self.listed.items() if not self._is_intact(entry)}
        for number in range(self.plan.slices):
            names = self.files_of(number)
            if names[0] in self.listed and not self.broken & {*names, self._rejects_name(number)}:
                try:
                    self.check_slice(number, names[0])
                except UserError as error:
                    self.problems.append(str(error))

    def expect(self, name: str, what: str, found: Any, expected: Any) -> None:
        """Adds a problem where something is not as expected."""
        self.problems += [f"{name}: {line}" for line in contradictions(found, expected, what)]

    def codec(self) -> dict[str, Any]:
        """Returns what the manifest says of the codec, without what no manifest says."""
        return {name: part for name, part in self.manifest["codec"].items() if name in ABOUT_CODEC}

    def check_rejects(
        self, number: int, shard: str, expected: int
    ) -> tuple[FileSummary | None, list[RejectRow]]:
        """Checks the number of a slice's rejects against its shard's footer; returns file and rows.

        Raises:
          UserError: they cannot be read.
        """
        name = self._rejects_name(number)
        if name not in self.found:
            if expected:
                what = counted(expected, "reject")
                self.problems.append(f"{shard}: {what}, but no rejects file in the manifest")
            return None, []
        rows = rejects.read_rejects(filesystems.join(self.output, name))
        self.expect(name, "rows", len(rows), expected)
        return FileSummary(name, len(rows), self.found[name].bytes, self.found[name].sha256), rows

    def _rejects_name(self, number: int) -> str:
        return rejects_name(number, self.plan.slices, self.part)

    def _refuse_plan(self, reason: str) -> UserError:
        path = filesystems.join(self.output, plan_file(self.part))
        return UserError(f"{path}: damaged ({reason}); restore it, or make the data set again elsewhere")

    def _check_identity(self) -> None:
        """Checks that the manifest says of itself what the plan says."""
        where, identity, codec = "manifest.json", self.plan.identity, self.manifest["codec"]
        lines = differences(identity, self.manifest["identity"])
        for line in lines or contradictions(self.manifest["identity"], identity):
            self.problems.append(f"{where}: is not of its plan: {line}")
        for name in ("fingerprint", "config", "decoder_sha256"):
            if name in identity["codec"]:
                self.expect(where, f"{name} of the codec", codec.get(name), identity["codec"][name])

    def check_listing(self, expected: Sequence[str], possible: Sequence[str]) -> None:
        """Compares names alone: files that the manifest does not list, and files in no list.

        Args:
          expected: names of files that have to be listed.
          possible: names of files that may be.
        """
        self.problems += [f"{name} is not in the manifest" for name in expected if name not in self.listed]
        known = {*expected, *possible}
        strangers = [name for name in self.listed if name not in known]
        self.problems += [f"manifest.json: lists {name}, which is not of the plan" for name in strangers]
        folders = {"", *filesystems.parents((*expected, *possible, *self.listed))}
        there = sorted(filesystems.file_sizes(self.output, folders))
        strays = [name for name in there if name.endswith(self.endings) and name not in self.listed]
        self.problems += [f"{name} belongs to no manifest entry" for name in strays]

    def _is_intact(self, entry: Mapping[str, Any]) -> bool:
        """Tells whether a file is there with the recorded sha256."""
        name = entry["name"]
        info = filesystems.file_info(filesystems.join(self.output, name))
        if not info.is_file:
            there = info.type != fs.FileType.NotFound
            self.problems.append(f"{name} is a folder" if there else f"{name} is missing")
            return False
        try:
            found = describe_file(self.output, name, entry["rows"])
        except OSError as error:
            self.problems.append(f"{name} cannot be read ({first_line(error)})")
            return False
        if found.sha256 != entry["sha256"]:
            self.problems.append(
                f"{name} has changed: {found.bytes} bytes and sha256 {found.sha256[:12]}, "
                f"recorded {entry['bytes']} and {entry['sha256'][:12]}"
            )
            return False
        self.found[name] = found
        return True

    def _check_manifest(self) -> None:
        """Checks that the manifest says what the files say, or where some are damaged, its own sums."""
        if self.broken or len(self.totals.shards) != self.plan.slices:
            self._check_sums()
            return
        try:
            rebuilt = self.rebuild_manifest()
        except UserError as error:
            self.problems.append(f"manifest.json: {error}")
            return
        found, expected = (
            {name: part for name, part in document.items() if name not in CIRCUMSTANCES}
            for document in (self.manifest, rebuilt | {"identity": self.manifest["identity"]})
        )
        self.expect("manifest.json", "number of", found.pop("counts"), expected.pop("counts"))
        self.expect("manifest.json", "", found, expected)

    def _check_sums(self) -> None:
        """Checks that the manifest's counts are the sums of its entries."""
        counts = self.manifest["counts"]
        rows = sum(entry["rows"] for entry in self.manifest["shards"])
        rejected = sum(entry["rows"] for entry in self.manifest["rejects"])
        sums = {"planned": self.plan.entries, "rejects": rejected, "rows": rows}
        self.expect("manifest.json", "number of", {name: counts[name] for name in sums}, sums)
        made = counts["images"] + rejected
        self.expect("manifest.json", "number of images and rejects", made, self.plan.entries)


def reasons_of(rows: Iterable[RejectRow]) -> Counter[str]:
    """Counts how often each reason occurs among rejects."""
    return Counter(f"{row.stage}: {row.error}" for row in rows)


def contradictions(found: Any, expected: Any, where: str = "") -> Iterator[str]:
    """Yields in what JSON data differ from what is expected, one line each.

    Numbers that are no whole ones may differ in their last digits: they were computed elsewhere.
    """
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        for name in sorted(found.keys() | expected.keys()):
            inner = f"{where} {name}".strip()
            if name in found and name in expected:
                yield from contradictions(found[name], expected[name], inner)
            else:
                yield f"{inner} is not there" if name in expected else f"{inner} is unknown"
    elif _are_lists(found, expected):
        for number, pair in enumerate(zip(found, expected, strict=True)):
            yield from contradictions(*pair, f"{where} {number}")
    elif not _is_same(found, expected):
        yield f"{where} is {_shown(found)}, expected {_shown(expected)}"


def _are_lists(found: Any, expected: Any) -> bool:
    """Tells whether both are lists of as many objects."""
    lists = isinstance(found, (list, tuple)) and isinstance(expected, (list, tuple))
    return lists and len(found) == len(expected) and any(isinstance(item, Mapping) for item in expected)


def _is_same(found: Any, expected: Any) -> bool:
    if isinstance(expected, float) and type(found) in (int, float):
        return math.isclose(found, expected, rel_tol=1e-9)
    return json.dumps(found) == json.dumps(expected)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
