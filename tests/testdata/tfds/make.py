"""Prepares the tiny data set beside this file; see README.md. Needs TensorFlow."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

PHOTOS, OUTPUT = Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute()


def shrink(path: Path) -> bytes:
    """A thumbnail of a photograph as JPEG."""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((40, 40))
    small.save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


class TinyPhotos(tfds.core.GeneratorBasedBuilder):
    """Ten photographs; the classes mean nothing."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = OUTPUT

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=["indoors", "outdoors"]),
                    "name": tfds.features.Text(),
                }
            )
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        paths = sorted(PHOTOS.glob("*.jpg"))
        labelled = {path.stem: number % 2 for number, path in enumerate(paths[:7])}
        return {
            "train": self._generate_examples(paths[:7], labelled),
            "test": self._generate_examples(paths[7:], {}),
        }

    def _generate_examples(self, paths: list[Path], labels: dict[str, int]) -> Iterator[tuple[str, Any]]:
        for path in paths:
            image = io.BytesIO(shrink(path))
            yield path.stem, {"image": image, "label": labels.get(path.stem, -1), "name": path.stem}


for file_format in ("tfrecord", "array_record"):
    builder = TinyPhotos(data_dir=OUTPUT / file_format, file_format=file_format)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
