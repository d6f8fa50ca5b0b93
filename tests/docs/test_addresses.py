"""The inputs that README's table of sources names, each with the flags beside it; and addresses of stores."""

import csv
import gzip
import io
import json
import re
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import fs

from pipelines.cli import build_parser
from pipelines.options.flags import given_options
from pipelines.options.run_options import TokenizeOptions
from tests.docs.reading import ROOT, shell_words
from tests.docs.standins import make_photos
from transforms.sources import locations, open_source
from transforms.sources.example_proto import build_example
from transforms.sources.records import frame


def table() -> list[tuple[str, str, list[str]]]:
    """Kind, address and flags, as they stand in the table of README's sources."""
    text = (ROOT / "README.md").read_text().partition("\n## Sources\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("|")][2:]
    found = []
    for kind, examples in rows:
        spans = re.findall(r"`([^`]+)`", examples)
        flags = [span for span in spans if span.startswith("--")]
        addresses = [span for span in spans if re.search(r"[/.:*]", span) and span[:2] != "--"]
        found += [(kind.strip(), address, flags) for address in addresses]
    return found


TABLE = table()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the table names."""
    folder = tmp_path_factory.mktemp("sources")
    photos = make_photos(folder / "photos")
    (photos / "aitzgorri" / "broken.jpg").unlink()
    paths = [str(path.relative_to(folder)) for path in sorted(photos.rglob("*.jpg"))]
    images = [(folder / path).read_bytes() for path in paths]
    (folder / "paths.txt").write_text("\n".join(paths) + "\n")
    with (folder / "paths.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *([path, 3] for path in paths)])
    pq.write_table(pa.table({"path": paths}), folder / "paths.parquet")
    (folder / "paths.csv.gz").write_bytes(gzip.compress((folder / "paths.csv").read_bytes()))
    (folder / "paths.jsonl").write_text("".join(json.dumps({"path": path}) + "\n" for path in paths))
    (folder / "captioned").mkdir()
    for number, image in enumerate(images[:2]):
        (folder / "captioned" / f"{number}.jpg").write_bytes(image)
    described = [{"file_name": f"{number}.jpg", "text": "a photograph", "label": number} for number in (0, 1)]
    (folder / "captioned" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in described))
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for path in paths:
            archive.write(folder / path, path)
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "JPEG")
    (folder / "shards").mkdir()
    for number in range(128):
        members = {"txt": b"a caption", "json": b'{"a": 1}', "jpg": small.getvalue()}
        write_tar(
            folder / "shards" / f"{number:03d}.tar", {f"{number}.{end}": m for end, m in members.items()}
        )
    (folder / "laion").mkdir()
    for number in range(2):
        samples = {f"{number}{n:03d}.{end}": m for n in range(64) for end, m in members.items()}
        write_tar(folder / "laion" / f"0000{number}.tar", samples)
        (folder / "laion" / f"0000{number}_stats.json").write_text("{}")
    (folder / "data" / "cifar10").mkdir(parents=True)
    structs = [{"bytes": image, "path": None} for image in images[:5]]
    pq.write_table(pa.table({"image": structs}), folder / "data" / "a.parquet")
    pq.write_table(pa.table({"image": structs}), folder / "data" / "b.parquet")
    (folder / "dataset").mkdir()  # as `datasets` saves it to disk
    saved = pa.table({"image": structs, "label": list(range(5))})
    with pa.ipc.new_stream(folder / "dataset" / "data-00000-of-00001.arrow", saved.schema) as stream:
        stream.write_table(saved)
    for name in ("dataset_info.json", "state.json"):
        (folder / "dataset" / name).write_text("{}")
    for number in range(2):
        records = [frame(build_example({"image/encoded": [image]})) for image in images[:3]]
        (folder / f"train.tfrecord-0000{number}-of-00002").write_bytes(b"".join(records))
    tfds = ROOT / "tests" / "testdata" / "tfds" / "tiny_photos" / "1.0.0"
    shutil.copytree(tfds, folder / "data" / "cifar10" / "1.0.0")
    return folder


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


EXPECTED = {
    "folder, glob": 20,
    "folder with `metadata.jsonl`": 2,
    "list": 20,
    "webdataset tar, img2dataset's output": 128,
    "zip": 20,
    "Parquet": 10,
    "`save_to_disk`, Arrow": 5,
    "TFRecord": 6,
    "TFDS": 7,
}


def test_every_kind_is_named() -> None:
    assert {kind for kind, _, _ in TABLE} == set(EXPECTED)
    assert len(TABLE) >= 14


@pytest.mark.parametrize(("kind", "address", "flags"), TABLE, ids=[address for _, address, _ in TABLE])
def test_readme_sources(
    kind: str, address: str, flags: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    where = address.replace("data_dir=/data", f"data_dir={folder}/data")
    assert len(read(where, *flags)) == EXPECTED[kind]
    if "tar" not in kind and "TFRecord" not in kind:
        assert len(read(where)) == EXPECTED[kind]


def test_plain_binary_columns(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image = next((folder / "photos").rglob("*.jpg")).read_bytes()
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"image": [image] * 3}), tmp_path / "data" / "a.parquet")
    assert read("'data/*.parquet'") == [image] * 3


def read(address: str, *flags: str) -> list[bytes]:
    """The bytes of all images that ``vqgan tokenize --input ADDRESS FLAGS`` would take, with no error."""
    line = f"vqgan tokenize --input {address} {' '.join(flags)} --codec tiny --output tokens/"
    args = build_parser().parse_args(shell_words(line)[1:])
    options = TokenizeOptions(**given_options(TokenizeOptions, args))
    source = open_source(options.source(options.input))
    source.fields()
    entries = list(source.list())
    assert [entry.error for entry in entries if entry.error] == []
    return [loader().data for loader in source.read(entries)]


QUERIES = st.sampled_from(
    [
        *("", "?region=eu-west-1", "?endpoint_override=localhost:9000&scheme=http"),
        "?endpoint_override=http://localhost:9000&region=us-east-1",
    ]
)


@given(st.sampled_from(["s3", "gs", "hdfs"]), st.booleans(), QUERIES)
def test_options_of_stores(scheme: str, is_pattern: bool, query: str) -> None:
    """They reach the store as they were given, whatever stands before them."""
    with pytest.MonkeyPatch.context() as patch:
        asked: list[str] = []

        def resolve(path: str) -> tuple[Any, str]:
            asked.append(path)
            return fs.SubTreeFileSystem(str(ROOT), fs.LocalFileSystem()), ""

        patch.setattr(locations, "resolve", resolve)
        location = locations.locate(f"{scheme}://b/p{'/*.jpg' if is_pattern else ''}{query}")
    assert asked == [f"{scheme}://b/p{query}"]
    assert location.globs.patterns == ((("*.jpg",),) if is_pattern else ())
