"""Checking a data set of tokens, tokenized or sampled, against its shards."""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.images.crops import Geometry, count_views
from transforms.sharded.plan import all_keys, differences
from transforms.sharded.verify import Verifier
from vqgan import filesystems
from vqgan.config import from_dict
from vqgan.errors import counted
from vqgan.shards import open_shard, shard_name

_KEYS = pa.schema([pa.field("key", pa.string()), pa.field("view", pa.uint8())])


class TokenVerifier(Verifier):
    """Footers, keys, counts and token range; the histogram is that of all tokens."""

    def __init__(self, *data_set: Any) -> None:
        super().__init__(*data_set)
        self._histogram = np.zeros(self.manifest["codebook"]["size"], np.int64)
        self._keys = [_KEYS.empty_table()]

    def files_of(self, number: int) -> list[str]:
        return [shard_name(number, self.plan.slices)]

    def check_slice(self, number: int, name: str) -> None:
        codes, identity = len(self._histogram), self.plan.identity
        with open_shard(filesystems.join(self.output, name), name) as shard:
            metadata = shard.metadata
            self.expect(name, "plan hash", metadata.plan_hash, self.manifest["plan_hash"])
            self.expect(name, "codec", metadata.fingerprint, self.manifest["codec"]["fingerprint"])
            self.expect(name, "slice number", metadata.slice_number, number)
            self.expect(name, "number of slices", metadata.slices, self.plan.slices)
            self.expect(name, "grid", list(metadata.grid), list(self.manifest["grid"]))
            for what, found in (("codec", metadata.codec_config), ("preprocessing", metadata.preprocessing)):
                expected = identity["codec"]["config"] if what == "codec" else identity["preprocessing"]
                for line in differences(expected, found):
                    self.problems.append(f"{name}: its {what} is not that of the plan: {line}")
            self.expect(name, "rows", shard.rows, self.listed[name]["rows"])
            self.expect(name, "images + rejects", metadata.images + metadata.rejects, metadata.planned)
            self.expect(name, "codebook size", metadata.codebook_size, codes)
            self.expect(name, "rows", shard.rows, metadata.images * self._views())
            for batch in shard.batches(["key", "view", "tokens"]):
                tokens = shard.tokens(batch)
                valid = tokens[(tokens >= 0) & (tokens < codes)]
                if valid.size < tokens.size:
                    self.problems.append(f"{name}: tokens outside of [0, {codes})")
                self._histogram += np.bincount(valid, minlength=codes)
                self._keys.append(pa.table([batch.column("key"), batch.column("view")], schema=_KEYS))
        keys = self.check_rejects(number, name, metadata.rejects)
        self._keys.append(pa.table({"key": keys, "view": [None] * len(keys)}, schema=_KEYS))

    def check_whole(self) -> None:
        if self.broken:
            return
        self._check_keys()
        rows = sum(entry["rows"] for entry in self.manifest["shards"])
        tokens = rows * int(np.prod(self.manifest["grid"]))
        self.expect("manifest.json", "number of tokens", self.manifest["counts"]["tokens"], tokens)
        if self.manifest["codebook"]["histogram"] != self._histogram.tolist():
            self.problems.append("manifest.json: the codebook's histogram is not that of the tokens")

    def summary(self) -> str:
        counts, rejected = self.manifest["counts"], len(self.manifest["rejects"])
        return (
            f"{counted(self.plan.slices, 'shard')}, {counted(rejected, 'rejects file')}: "
            f"{counts['planned']} planned, {counted(counts['images'], 'image')}, "
            f"{counted(counts['rows'], 'row')}, {counted(counts['rejects'], 'reject')}"
        )

    def _views(self) -> int:
        """Returns rows of each image; tokens drawn from a prior have one."""
        geometry = self.manifest["identity"]["preprocessing"].get("geometry")
        return 1 if geometry is None else count_views(from_dict(Geometry, geometry))

    def _check_keys(self) -> None:
        """Checks that every planned key is an image or a reject, and no row occurs twice."""
        found = pa.concat_tables(self._keys)
        rows = found.group_by(["key", "view"]).aggregate([([], "count_all")])
        repeated = rows.filter(pc.greater(rows.column("count_all"), 1)).num_rows
        if repeated:
            self.problems.append(f"{repeated} rows occur more than once")
        digests = {hashlib.sha256(key.encode()).digest() for key in found.column("key").to_pylist()}
        planned = {
            hashlib.sha256(key.encode()).digest()
            for batch in all_keys(self.output)
            for key in batch.column("key").to_pylist()
        }
        if lost := len(planned - digests):
            self.problems.append(f"{lost} planned images are neither rows nor rejects")
        if extra := len(digests - planned):
            self.problems.append(f"{extra} keys were never planned")
