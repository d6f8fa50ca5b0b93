"""Checking decoded images against their indices, and the sum of every one of them."""

import hashlib

from pyarrow import fs

from transforms.decoding.image_files import stored_images
from transforms.decoding.index import (
    IMAGES_FOLDER,
    METADATA_FILE,
    IndexMetadata,
    archive_name,
    index_name,
    open_index,
)
from transforms.decoding.manifest import metadata_lines
from transforms.sharded.verify import Verifier
from vqgan import filesystems
from vqgan.errors import UserError, counted


class ImageVerifier(Verifier):
    """Files, footers, counts, and the images behind them in whatever container."""

    lists = ("shards", "archives", "metadata", "rejects")
    endings = (".parquet", ".tar")
    planned_unit = "rows"

    @property
    def container(self) -> str:
        """``files``, ``tar`` or ``parquet``."""
        return str(self.plan.identity["form"]["container"])

    def files_of(self, number: int) -> list[str]:
        index = index_name(number, self.plan.slices, self.container)
        return [index, archive_name(number, self.plan.slices)] if self.container == "tar" else [index]

    def files_of_all(self) -> list[str]:
        return [METADATA_FILE] if self.container == "files" else []

    def check_slice(self, number: int, name: str) -> None:
        try:
            with open_index(self.output, name) as index:
                metadata, rows = index.metadata, index.rows
            self._check_footer(number, name, metadata, rows)
            self._check_images(name)
        except UserError as error:
            self.problems.append(str(error))
            return
        self.check_rejects(number, name, metadata.rejects)

    def check_whole(self) -> None:
        self.expect("manifest.json", "number of images", self.manifest["counts"]["images"], self._rows())
        if self.container != "files":
            return
        indices = [self.files_of(number)[0] for number in range(self.plan.slices)]
        needed = {*indices, METADATA_FILE}
        if needed <= self.listed.keys() and not self.broken & needed:
            self._check_metadata(indices)
        self._check_strays()

    def summary(self) -> str:
        counts, rejected = self.manifest["counts"], len(self.manifest["rejects"])
        return (
            f"{counted(self.plan.slices, 'slice')} of images ({self.container}), "
            f"{counted(rejected, 'rejects file')}: {counts['planned']} planned, "
            f"{counted(counts['images'], 'image')}, {counted(counts['rejects'], 'reject')}"
        )

    def _rows(self) -> int:
        return sum(entry["rows"] for entry in self.manifest["shards"])

    def _check_footer(self, number: int, name: str, metadata: IndexMetadata, rows: int) -> None:
        codec = self.manifest["codec"]
        self.expect(name, "plan hash", metadata.plan_hash, self.manifest["plan_hash"])
        self.expect(name, "codec", metadata.fingerprint, codec["fingerprint"])
        self.expect(name, "decoder", metadata.decoder_sha256, codec["decoder_sha256"])
        self.expect(name, "slice number", metadata.slice_number, number)
        self.expect(name, "rows", rows, self.listed[name]["rows"])
        self.expect(name, "rows", rows, metadata.images)
        self.expect(name, "images + rejects", metadata.images + metadata.rejects, metadata.planned)
        if metadata.archive is not None:
            archive = self.listed.get(metadata.archive["name"], {})
            self.expect(name, "sha256 of its tar", archive.get("sha256"), metadata.archive["sha256"])

    def _check_images(self, name: str) -> None:
        """Checks that every image has the sum that the index tells, and none is named twice."""
        changed = [
            row.file
            for row, data in stored_images(self.output, name)
            if hashlib.sha256(data).hexdigest() != row.sha256
        ]
        if changed:
            self.problems.append(f"{name}: {len(changed)} images have changed, such as {changed[0]}")
        with open_index(self.output, name) as index:
            rows = [(row.key, row.view) for row, _ in index.read()]
        if len(set(rows)) < len(rows):
            self.problems.append(f"{name}: {len(rows) - len(set(rows))} rows occur more than once")

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
            self.problems.append(f"{IMAGES_FOLDER}/: {found - images} files belong to no index")
