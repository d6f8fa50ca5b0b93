"""Checking a data set of tokens, tokenized or sampled, against its shards."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.images.crops import Geometry, count_views
from transforms.sampling.shard import (
    GRID_FILE,
    IMAGE_LIST,
    IMAGES_FOLDER,
    SEED_FIELD,
    image_lines,
    is_whole_image,
)
from transforms.sharded.plan import PLAN_FILE, Plan, differences, make_plan, read_slices, settings_of
from transforms.sharded.verify import Verifier, contradictions, reasons_of
from transforms.tokenizing.manifest import TokenSlice, TokenTotals, build_token_manifest
from vqgan import filesystems
from vqgan.config_json import from_dict
from vqgan.errors import UserError, counted, first_line
from vqgan.shard_columns import LATENTS, shard_schema
from vqgan.shards import Shard, open_shard, shard_name

_KEYS = pa.schema([pa.field("key", pa.string()), pa.field("view", pa.uint8())])


class TokenVerifier(Verifier):
    """Footers, keys, counts and token range; the histogram is that of all tokens."""

    totals: TokenTotals

    def __init__(self, *data_set: Any) -> None:
        super().__init__(*data_set)
        self._histogram = np.zeros(self.manifest["codebook"]["size"], np.int64)
        self.keys = [_KEYS.empty_table()]

    def empty_totals(self) -> TokenTotals:
        return TokenTotals()

    def check_identity(self) -> None:
        codec = self.identity.fields("codec")
        codec.text("fingerprint")
        codec.mapping("config")
        self.identity.mapping("preprocessing")
        self.identity.mapping("sampling", {})
        self.identity.text_or_none("engine")
        self.identity.fields("source").texts("columns", ())

    def rebuild_plan(self) -> Plan:
        def counted() -> Iterator[pa.Table]:
            for part in read_slices(self.output, part=self.part):
                self.planned.append(part.num_rows)
                yield part

        return make_plan(counted(), settings_of(self.plan.identity))

    def files_of(self, number: int) -> list[str]:
        return [shard_name(number, self.plan.slices, self.part)]

    def check_slice(self, number: int, name: str) -> None:
        histogram = np.zeros(len(self._histogram), np.int64)
        with open_shard(filesystems.join(self.output, name), name) as shard:
            metadata = shard.metadata
            self._check_footer(number, name, shard)
            for batch in shard.batches():  # all columns: damage must not pass
                tokens = shard.tokens(batch)
                valid = tokens[(tokens >= 0) & (tokens < len(histogram))]
                if valid.size < tokens.size:
                    self.problems.append(f"{name}: tokens outside of [0, {len(histogram)})")
                histogram += np.bincount(valid, minlength=len(histogram))
                self.keys.append(pa.table([batch.column("key"), batch.column("view")], schema=_KEYS))
            rows, token_bytes = shard.rows, shard.token_bytes()
        reject_file, rejected = self.check_rejects(number, name, metadata.rejects)
        keys = [row.key for row in rejected]
        self.keys.append(pa.table({"key": keys, "view": [None] * len(keys)}, schema=_KEYS))
        self._histogram += histogram
        found = TokenSlice(
            number=number,
            planned=metadata.planned,
            images=metadata.images,
            shard=dataclasses.replace(self.found[name], rows=rows),
            reject_file=reject_file,
            reject_reasons=reasons_of(rejected),
            seconds=None,
            token_bytes=token_bytes,
            histogram=histogram,
        )
        self.totals.add(found)

    def _check_footer(self, number: int, name: str, shard: Shard) -> None:
        metadata, identity = shard.metadata, self.plan.identity
        self.expect(name, "plan hash", metadata.plan_hash, self.manifest["plan_hash"])
        self.expect(name, "codec", metadata.fingerprint, self.manifest["codec"]["fingerprint"])
        self.expect(name, "engine", metadata.engine, identity.get("engine"))
        self.expect(name, "slice number", metadata.slice_number, number)
        self.expect(name, "number of slices", metadata.slices, self.plan.slices)
        self.expect(name, "number of planned images", metadata.planned, self.planned[number])
        self.expect(name, "grid", list(metadata.grid), list(self.manifest["grid"]))
        for what, found, expected in (
            ("codec", metadata.codec_config, identity["codec"]["config"]),
            ("preprocessing", metadata.preprocessing, identity["preprocessing"]),
            ("sampling", metadata.sampling or {}, identity.get("sampling", {})),
        ):
            for line in differences(expected, found) or contradictions(found, expected):
                self.problems.append(f"{name}: its {what} is not that of the plan: {line}")
        self.expect(name, "rows", shard.rows, self.listed[name]["rows"])
        self.expect(name, "images + rejects", metadata.images + metadata.rejects, metadata.planned)
        self.expect(name, "codebook size", metadata.codebook_size, len(self._histogram))
        self.expect(name, "rows", shard.rows, metadata.images * self._views())
        self.expect(name, "latents", list(metadata.latents or ()), list(identity.get(LATENTS, ())))
        ours = shard_schema(metadata.grid, metadata.codebook_size, latents=metadata.latents).names
        extra = [f"{field.name}: {field.type}" for field in shard.schema if field.name not in ours]
        self.expect(name, "further columns", extra, self.further_columns())

    def further_columns(self) -> list[str]:
        """Returns names and types of the columns that were passed through from the source."""
        return list(self.identity.fields("source").texts("columns", ()))

    def check_whole(self) -> None:
        if self.broken:
            return
        self.problems += key_problems(self.output, self.keys, [self.part])
        if self.manifest["codebook"]["histogram"] != self._histogram.tolist():
            self.problems.append("manifest.json: the codebook's histogram is not that of the tokens")

    def rebuild_manifest(self) -> dict[str, Any]:
        rebuilt = build_token_manifest(self.plan, self.totals, self.codec(), self.manifest["grid"])
        rebuilt["codebook"]["histogram"] = self.manifest["codebook"]["histogram"]  # compared above
        return rebuilt

    def summary(self) -> str:
        counts, rejected = self.manifest["counts"], len(self.manifest["rejects"])
        return (
            f"{counted(self.plan.slices, 'shard')}, {counted(rejected, 'rejects file')}: "
            f"{counts['planned']} planned, {counted(counts['images'], 'image')}, "
            f"{counted(counts['rows'], 'row')}, {counted(counts['rejects'], 'reject')}"
        )

    def _views(self) -> int:
        """Returns rows of each image; tokens drawn from a prior have one."""
        geometry = self.plan.identity["preprocessing"].get("geometry")
        where = f"{PLAN_FILE}, geometry"
        return 1 if geometry is None else count_views(from_dict(Geometry, geometry, where))


def key_problems(output: str, found: Sequence[pa.Table], parts: Iterable[int]) -> list[str]:
    """Returns what is wrong where not every planned key is an image or a reject, or a row occurs twice.

    Args:
      output: the data set.
      found: key and view of all rows, and of all rejects without a view.
      parts: whose plans have the entries.
    """
    table, problems = pa.concat_tables(found), []
    rows = table.group_by(["key", "view"]).aggregate([([], "count_all")])
    repeated = rows.filter(pc.greater(rows.column("count_all"), 1)).num_rows
    if repeated:
        problems.append(f"{repeated} rows occur more than once")
    digests = {hashlib.sha256(key.encode()).digest() for key in table.column("key").to_pylist()}
    planned = {
        hashlib.sha256(key.encode()).digest()
        for number in parts
        for part in read_slices(output, ["key"], number)
        for key in part.column("key").to_pylist()
    }
    if lost := len(planned - digests):
        problems.append(f"{lost} planned images are neither rows nor rejects")
    if extra := len(digests - planned):
        problems.append(f"{extra} keys were never planned")
    return problems


class SampleVerifier(TokenVerifier):
    """Tokens that were drawn from a prior, and their images, where those are beside them."""

    def further_columns(self) -> list[str]:
        return [f"{SEED_FIELD.name}: {SEED_FIELD.type}"]

    def check_whole(self) -> None:
        super().check_whole()
        has_images = filesystems.exists(filesystems.join(self.output, IMAGES_FOLDER))
        if not self.broken and self.plan.identity.get("pictures") and has_images:
            self._check_images()

    def _check_images(self) -> None:
        """Checks that each is the one of its line in their list, and is named by one."""
        try:
            listed = filesystems.read_bytes(filesystems.join(self.output, IMAGE_LIST)).splitlines(True)
            expected = list(image_lines(self.output, self.plan.slices))
        except (OSError, UserError) as error:
            self.problems.append(f"{IMAGE_LIST}: {first_line(error)}")
            return
        self.expect(IMAGE_LIST, "number of lines", len(listed), len(expected))
        pairs = enumerate(zip(listed, expected, strict=False), 1)
        if changed := [number for number, (found, wanted) in pairs if found != wanted]:
            first = f"such as line {changed[0]}"
            self.problems.append(f"{IMAGE_LIST}: {len(changed)} images are not those listed, {first}")
        names = filesystems.list_names(filesystems.join(self.output, IMAGES_FOLDER))
        if len(names) > len(expected) + 1:
            self.problems.append(f"{IMAGES_FOLDER}/: {len(names) - len(expected) - 1} files are of no sample")
        if not is_whole_image(filesystems.join(self.output, GRID_FILE)):
            self.problems.append(f"{GRID_FILE}: damaged")
