import gzip
import pickle
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.sources import Entry, Example, SourceConfig, open_source
from transforms.sources.registry import SOURCES
from vqgan.errors import UserError

PARQUET_OF_IMAGES = pa.table({"image": pa.array([b"x"], pa.binary()), "path": ["x"]})
PARQUET_OF_PATHS = pa.table({"path": ["x.jpg"]})


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def contents(photos, tar_bytes, tfrecord_bytes):
    """What files of each kind hold."""
    tar = tar_bytes([("a.jpg", b"a")])
    return {
        "image": photos["umang.jpg"],
        "tar": tar,
        "tar.gz": gzip.compress(tar),
        "images.parquet": _parquet(PARQUET_OF_IMAGES),
        "paths.parquet": _parquet(PARQUET_OF_PATHS),
        "tfrecord": tfrecord_bytes([{"image": [b"a"]}]),
        "text": b"a.jpg\n",
        "empty": b"",
    }


def _kind(path: object) -> str:
    source = open_source(SourceConfig(str(path)))
    return next(kind for kind, cls in SOURCES.items() if type(source) is cls)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jpg", "image", "folder"),
        ("without-suffix", "image", "folder"),
        ("a.tar", "tar", "tar"),
        ("a.TAR", "empty", "tar"),
        ("noname", "tar", "tar"),
        ("a.tar.gz", "tar.gz", "tar"),
        ("a.tgz", "empty", "tar"),
        ("a.parquet", "images.parquet", "parquet"),
        ("noname", "images.parquet", "parquet"),
        ("a.parquet", "empty", "parquet"),
        ("a.parquet", "paths.parquet", "list"),
        ("a.tfrecord", "tfrecord", "tfrecord"),
        ("a.tfrecord-00000-of-00010", "empty", "tfrecord"),
        ("a-00000-of-00010", "tfrecord", "tfrecord"),
        ("noname", "tfrecord", "tfrecord"),
        ("a.csv", "text", "list"),
        ("a.tsv", "text", "list"),
        ("a.txt", "text", "list"),
        ("noname", "text", "folder"),
    ],
)
def test_single_files_are_recognised(name, content, kind, tmp_path, contents):
    (tmp_path / name).write_bytes(contents[content])
    assert _kind(tmp_path / name) == kind


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["a.jpg", "b.png", "c.txt"], "folder"),
        (["0.tar", "1.tar", "sizes.json", "README.md"], "tar"),
        (["0.tar.gz", "1.tar.gz"], "tar"),
        (["sub/0.parquet", "sub/1.parquet", "README.md"], "parquet"),
        (["x-00000-of-00002", "x-00001-of-00002", "dataset_info.json", "features.json"], "tfrecord"),
        (["0.tar", "a.jpg"], "folder"),
        ([*(f"{number}.tar" for number in range(19)), "stray"], "tar"),
        (["a.txt", "b.json"], "folder"),
        ([], "folder"),
    ],
)
def test_folders_and_globs_are_recognised(names, kind, tmp_path):
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    (tmp_path / "in").mkdir(exist_ok=True)
    assert _kind(tmp_path / "in") == kind
    if names:
        assert _kind(tmp_path / "in" / "**") == kind


def test_every_file_of_a_folder_of_containers_is_accounted_for(tmp_path, contents, read_all):
    for number in range(19):
        (tmp_path / f"{number:02}.tar").write_bytes(contents["tar"])
    shutil.copy(tmp_path / "00.tar", tmp_path / "README.md")
    (tmp_path / "stray.jpg").write_bytes(contents["image"])
    entries = list(open_source(SourceConfig(str(tmp_path))).list())
    assert [entry.key for entry in entries if entry.error] == ["stray.jpg/#damaged-at-0"]
    assert len(entries) == 20


def test_brace_ranges_of_shards(tmp_path, contents):
    for number in range(3):
        (tmp_path / f"shard-{number:03}.tar").write_bytes(contents["tar"])
    source = open_source(SourceConfig(f"{tmp_path}/shard-{{000..002}}.tar"))
    assert [entry.key for entry in source.list()] == [f"shard-{number:03}.tar/a" for number in range(3)]
    with pytest.raises(UserError, match=r"2 of 5 files cannot be found or read, the first is shard-003\.tar"):
        open_source(SourceConfig(f"{tmp_path}/shard-{{000..004}}.tar"))


def test_a_kind_can_be_named(tmp_path, contents):
    (tmp_path / "a.dat").write_bytes(contents["tar"])
    source = open_source(SourceConfig(str(tmp_path / "*.dat"), kind="tar"))
    assert [entry.key for entry in source.list()] == ["a.dat/a"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SourceConfig("{tmp}/imags"), "no such file or folder; did you mean .*/images?"),
        (SourceConfig("{tmp}/nothing-like-it"), "No such file or directory.*check the path"),
        (SourceConfig("{tmp}/images/*.png"), "no file matches"),
        (SourceConfig("{tmp}/images/{{a,b}}"), "2 of 2 files cannot be found"),
        (SourceConfig("nowhere://x/y"), "cannot open this location"),
        (SourceConfig("https://host/images"), "nothing is fetched from the web"),
        (
            SourceConfig("{tmp}/images", kind="rar"),
            "known are folder, list, tar, zip",
        ),
        (SourceConfig("{tmp}/images", columns=("txt",)), "columns cannot be used with .* 'folder'"),
        (SourceConfig("{tmp}/images", image_column="x", label_column="y"), "image_column, label_column"),
        (SourceConfig("{tmp}/a.tar", folder_labels=True), "folder_labels cannot be used with .* 'tar'"),
        (SourceConfig("{tmp}/a.tar", key_column="x"), "key_column cannot be used"),
        (SourceConfig("tfds:a/b", key_column="x"), "key_column cannot be used"),
        (SourceConfig("{tmp}/a.array_record"), "tfds:NAME/SPLIT"),
    ],
)
def test_mistakes_are_answered_in_one_line(config, message, tmp_path, contents):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(contents["image"])
    (tmp_path / "a.tar").write_bytes(contents["tar"])
    (tmp_path / "a.array_record").write_bytes(b"")
    config = config.__class__(
        **{
            **config.__dict__,
            "input": config.input.format(tmp=tmp_path) if "{tmp}" in config.input else config.input,
        }
    )
    with pytest.raises(UserError, match=message) as caught:
        open_source(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", SOURCES)
def test_sources_are_cheap_and_can_be_pickled(kind, tmp_path: Path):
    source = SOURCES[kind](SourceConfig(str(tmp_path / "not there yet")))
    assert pickle.loads(pickle.dumps(source)) == source
    assert isinstance(source.shuffles, bool)


def test_the_contract_is_reexported():
    assert Entry("key", "file").size == -1
    assert Example(b"", None, {}).label is None
