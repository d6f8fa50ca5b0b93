"""Checking decoded images against their indices, and the sum of every one of them."""

import dataclasses
import hashlib
from collections import Counter
from typing import Any

from pyarrow import fs

from transforms.decoding.image_files import stored_images
from transforms.decoding.image_format import CONTAINERS
from transforms.decoding.index import (
    IMAGES_FOLDER,
    METADATA_FILE,
    IndexMetadata,
    archive_name,
    index_name,
    open_index,
)
from transforms.decoding.manifest import ImageSlice, ImageTotals, build_image_manifest, metadata_lines
from transforms.decoding.plan import TokenInput, make_decode_plan, read_parts
from transforms.sharded.plan import PLAN_FILE, Plan
from transforms.sharded.verify import Verifier, reasons_of
from vqgan import filesystems
from vqgan.errors import UserError, counted


class ImageVerifier(Verifier):
    """Files, footers, counts, and the images behind them in whatever container."""

    lists = ("shards", "archives", "metadata", "rejects")
    endings = (".parquet", ".tar")
    totals: ImageTotals

    @property
    def container(self) -> str:
        """``files``, ``tar`` or ``parquet``."""
        return str(self.plan.identity["form"]["container"])

    def empty_totals(self) -> ImageTotals:
        return ImageTotals()

    def check_identity(self) -> None:
        codec, form = self.identity.fields("codec"), self.identity.fields("form")
        codec.text("fingerprint")
        codec.text("decoder_sha256")
        self.identity.fields("tokens").text("plan_hash")
        form.text("encoding")
        if form.text("container") not in CONTAINERS:
            raise UserError(f"{PLAN_FILE}: unknown container {self.container!r}; upgrade vqgan-pipelines")

    def rebuild_plan(self) -> Plan:
        parts = read_parts(self.output)
        self.planned = [part.planned for part in parts]
        identity = self.plan.identity
        settings = {name: part for name, part in identity.items() if name not in ("version", "tokens")}
        return make_decode_plan(parts, settings, identity["tokens"]["plan_hash"])

    def files_of(self, number: int) -> list[str]:
        index = index_name(number, self.plan.slices, self.container)
        return [index, archive_name(number, self.plan.slices)] if self.container == "tar" else [index]

    def files_of_all(self) -> list[str]:
        return [METADATA_FILE] if self.container == "files" else []

    def check_slice(self, number: int, name: str) -> None:
        with open_index(self.output, name) as index:
            metadata, rows = index.metadata, index.rows
        self._check_footer(number, name, metadata, rows)
        image_bytes = self._check_images(name)
        reject_file, rejected = self.check_rejects(number, name, metadata.rejects)
        found = ImageSlice(
            number=number,
            planned=metadata.planned,
            images=metadata.images,
            shard=dataclasses.replace(self.found[name], rows=rows),
            reject_file=reject_file,
            reject_reasons=reasons_of(rejected),
            seconds=None,
            archive=metadata.archive,
            image_bytes=image_bytes,
        )
        self.totals.add(found)

    def check_whole(self) -> None:
        if self.container != "files":
            return
        indices = [self.files_of(number)[0] for number in range(self.plan.slices)]
        needed = {*indices, METADATA_FILE}
        if needed <= self.listed.keys() and not self.broken & needed:
            self._check_metadata(indices)
        self._check_strays()

    def rebuild_manifest(self) -> dict[str, Any]:
        manifest, identity = self.manifest, self.plan.identity
        described = self.found.get(METADATA_FILE)
        metadata = None if described is None else dataclasses.replace(described, rows=self.totals.images)
        tokens = TokenInput(**{name: manifest["tokens"].get(name) for name in TokenInput._fields})
        expected = tokens._replace(
            plan_hash=identity["tokens"]["plan_hash"],
            fingerprint=identity["codec"]["fingerprint"],
            grid=manifest["grid"],
            slices=max(tokens.slices, self.plan.slices),
        )
        return build_image_manifest(self.plan, self.totals, self.codec(), expected, metadata)

    def summary(self) -> str:
        counts, rejected = self.manifest["counts"], len(self.manifest["rejects"])
        return (
            f"{counted(self.plan.slices, 'slice')} of images ({self.container}), "
            f"{counted(rejected, 'rejects file')}: {counts['planned']} planned, "
            f"{counted(counts['images'], 'image')}, {counted(counts['rejects'], 'reject')}"
        )

    def _check_footer(self, number: int, name: str, metadata: IndexMetadata, rows: int) -> None:
        codec, form = self.manifest["codec"], self.plan.identity["form"]
        self.expect(name, "plan hash", metadata.plan_hash, self.manifest["plan_hash"])
        self.expect(name, "codec", metadata.fingerprint, codec["fingerprint"])
        self.expect(name, "decoder", metadata.decoder_sha256, codec["decoder_sha256"])
        self.expect(name, "slice number", metadata.slice_number, number)
        self.expect(name, "number of slices", metadata.slices, self.plan.slices)
        self.expect(name, "container", metadata.container, form["container"])
        self.expect(name, "encoding", metadata.encoding, form["encoding"])
        self.expect(name, "number of planned rows", metadata.planned, self.planned[number])
        self.expect(name, "rows", rows, self.listed[name]["rows"])
        self.expect(name, "rows", rows, metadata.images)
        self.expect(name, "images + rejects", metadata.images + metadata.rejects, metadata.planned)
        if metadata.archive is not None:
            archive = self.listed.get(metadata.archive["name"], {})
            self.expect(name, "sha256 of its tar", archive.get("sha256"), metadata.archive["sha256"])

    def _check_images(self, name: str) -> int:
        """Checks that every image has the sum that its index tells, and none is twice; returns all bytes."""
        changed, rows, total = [], Counter[tuple[str, int]](), 0
        for row, data in stored_images(self.output, name):
            if hashlib.sha256(data).hexdigest() != row.sha256 or len(data) != row.bytes:
                changed.append(row.file)
            rows[row.key, row.view] += 1
            total += row.bytes
        if changed:
            self.problems.append(f"{name}: {counted(len(changed), 'image')} changed, such as {changed[0]}")
        if len(rows) < rows.total():
            self.problems.append(f"{name}: {rows.total() - len(rows)} rows occur more than once")
        return total

    def _check_metadata(self, indices: list[str]) -> None:
        """Checks that ``metadata.jsonl`` says what the indices say."""
        digest = hashlib.sha256()
        try:
            for line in metadata_lines(self.output, indices):
                digest.update(line)
        except UserError:
            return  # a damaged index, which has been told already
        if digest.hexdigest() != self.listed[METADATA_FILE]["sha256"]:
            self.problems.append(f"{METADATA_FILE}: does not say what the indices say")

    def _check_strays(self) -> None:
        filesystem, inner = filesystems.resolve(filesystems.join(self.output, IMAGES_FOLDER))
        selector = fs.FileSelector(inner, recursive=True, allow_not_found=True)
        metadata = 1
        found = sum(info.is_file for info in filesystem.get_file_info(selector)) - metadata
        if found > (images := self.manifest["counts"]["images"]):
            self.problems.append(f"{IMAGES_FOLDER}/: {counted(found - images, 'file')} in no index")
