import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from transforms.sources import SourceConfig, locations, open_source
from transforms.sources.tfds import TFDSSource, load_metadata, parse_address
from vqgan.errors import UserError

FORMATS = ("tfrecord", "array_record")


@pytest.fixture
def data_dir(tmp_path, tfds_folder):
    """``data_dir(file_format)``: a copy of the prepared data set, in ``tiny_photos/1.0.0``."""

    def unpack(file_format: str) -> Path:
        folder = tmp_path / file_format
        if file_format == "tfrecord":
            shutil.copytree(tfds_folder / "tiny_photos", folder / "tiny_photos")
        else:
            with zipfile.ZipFile(tfds_folder / "array_record.zip") as archive:
                archive.extractall(folder)
        return folder

    return unpack


@pytest.fixture
def originals(tfds_folder):
    return {path.stem: path.read_bytes() for path in sorted((tfds_folder / "originals").glob("*.jpg"))}


def _source(data_dir: Path | str, split: str = "train", name: str = "tiny_photos", **options) -> TFDSSource:
    return TFDSSource(SourceConfig(f"tfds:{name}/{split}?data_dir={data_dir}", **options))


@pytest.mark.parametrize("file_format", FORMATS)
def test_reads_every_image_unchanged(file_format, data_dir, originals, read_all):
    folder = data_dir(file_format)
    source = open_source(_source(folder, "train", columns=("name",)).config)
    assert isinstance(source, TFDSSource)
    assert not source.shuffles
    assert source.fields() == [pa.field("name", pa.string())]
    assert source.class_names() == ["indoors", "outdoors"]
    results = read_all(source)
    shard = f"tiny_photos-train.{file_format}-0000%d-of-00002"
    assert list(results) == [f"{shard % 0}#{n}" for n in range(4)] + [f"{shard % 1}#{n}" for n in range(3)]
    assert {r.columns["name"]: r.data for r in results.values()} == dict(list(originals.items())[:7])
    names = list(originals)
    assert all(r.label == names.index(r.columns["name"]) % 2 for r in results.values())


@pytest.mark.parametrize("file_format", FORMATS)
def test_parts_of_splits_keep_their_keys(file_format, data_dir, read_all):
    folder = data_dir(file_format)
    whole = read_all(_source(folder))
    part = read_all(_source(folder, "train[40%:80%]"))
    assert list(part.items()) == list(whole.items())[3:6]
    assert len(read_all(_source(folder, "train[:1]+train[6:]"))) == 2
    assert len(read_all(_source(folder, "train+test"))) == 10


@pytest.mark.parametrize("file_format", FORMATS)
def test_labels_that_are_not_known(file_format, data_dir, read_all):
    results = read_all(_source(data_dir(file_format), "test"))
    assert [result.label for result in results.values()] == [None] * 3


@pytest.mark.parametrize("file_format", FORMATS)
def test_damaged_and_missing_shards(file_format, data_dir, read_all):
    folder = data_dir(file_format)
    first, second = sorted((folder / "tiny_photos/1.0.0").glob("*-train.*"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-100])
    entries = list(_source(folder).list())
    assert entries[0].error == "cannot be read (No such file or directory)"
    assert entries[-1].error
    assert len(read_all(_source(folder))) == (2 if file_format == "tfrecord" else 0)


def test_a_damaged_array_record_fails_alone(data_dir, read_all):
    folder = data_dir("array_record")
    expected = list(read_all(_source(folder)).values())
    path = next((folder / "tiny_photos/1.0.0").glob("*-train.*-00000-*"))
    data = bytearray(path.read_bytes())
    data[len(expected[0].data) + len(expected[1].data) // 2] ^= 1  # records lie one after the other
    path.write_bytes(data)
    results = list(read_all(_source(folder)).values())
    assert isinstance(results.pop(1), ValueError)
    expected.pop(1)
    assert results == expected


def test_a_shard_of_another_length_is_an_error(data_dir):
    folder = data_dir("tfrecord")
    first, second = sorted((folder / "tiny_photos/1.0.0").glob("*-train.*"))
    shutil.copyfile(second, first)
    assert [bool(entry.error) for entry in _source(folder).list()] == [False] * 3 + [True] + [False] * 3


def test_the_newest_version_is_taken(data_dir):
    folder = data_dir("tfrecord") / "tiny_photos"
    shutil.copytree(folder / "1.0.0", folder / "0.9.10")
    assert load_metadata(_source(folder.parent).config.input).location.root.endswith("/1.0.0")
    old = _source(folder.parent, name="tiny_photos:0.9.10")
    assert load_metadata(old.config.input).location.root.endswith("/0.9.10")


def test_configurations(data_dir, read_all):
    folder = data_dir("tfrecord") / "tiny_photos"
    (folder / "small").mkdir()
    (folder / "1.0.0").rename(folder / "small" / "1.0.0")
    assert len(read_all(_source(folder.parent))) == 7
    assert len(read_all(_source(folder.parent, name="tiny_photos/small:1.0.0"))) == 7
    (folder / "large").mkdir()
    with pytest.raises(UserError, match="there is large, small"):
        list(_source(folder.parent, "test").list())


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("tiny_photo", "train", "no data set tiny_photo in .*; there is tiny_photos"),
        ("tiny_photos:2.0.0", "train", "no version 2.0.0 in .*; there is 1.0.0"),
        ("tiny_photos/big", "train", "no configuration big"),
        ("tiny_photos", "validation", "no split validation .*there is train, test"),
        ("tiny_photos", "train[:x]", "no split train"),
    ],
)
def test_what_is_not_there_is_named(name, split, message, data_dir):
    with pytest.raises(UserError, match=message) as caught:
        list(_source(data_dir("tfrecord"), split, name).list())
    assert "\n" not in str(caught.value)


def test_a_data_dir_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        list(TFDSSource(SourceConfig("tfds:mnist/train")).list())


def test_broken_metadata(data_dir):
    folder = data_dir("tfrecord")
    (folder / "tiny_photos/1.0.0/dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="prepare it again") as caught:
        list(_source(folder).list())
    assert "\n" not in str(caught.value)


def test_unknown_columns_are_refused(data_dir):
    with pytest.raises(UserError, match="no feature caption; there are image, label, name"):
        _source(data_dir("tfrecord"), columns=("caption",)).fields()


NAME = st.from_regex(r"[a-z]\w{0,9}", fullmatch=True)
VERSION = st.from_regex(r"\d\.\d\.\d", fullmatch=True)
SPLIT = st.sampled_from(["train", "test[:10%]", "train[2:7]+test", "train[50%:]", "a-b"])
DATA_DIR = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20),
    st.lists(st.sampled_from(["", ".", "..", "~", "a b", "c", "d?e=f", "[g]", "h:1"]), min_size=1).map(
        "/".join
    ),
    st.sampled_from(
        ["/data", "~/x", "./TF", "c/TF", "/", "gs://b/c", "s3://b/p?endpoint_override=http://h:1"]
    ),
).filter(bool)


@given(NAME, st.none() | NAME, st.none() | VERSION, SPLIT, st.none() | DATA_DIR)
def test_addresses(name, config, version, split, data_dir):
    """Every part comes back, whatever slashes and marks the folder holds."""
    middle = (f"/{config}" if config else "") + (f":{version}" if version else "")
    query = f"?data_dir={data_dir}" if data_dir else ""
    parsed = parse_address(f"tfds:{name}{middle}/{split}{query}")
    assert parsed == (name, config, version, split, data_dir)


def test_the_address_in_the_readme():
    parsed = parse_address("tfds:cifar10/train?data_dir=/data")
    assert parsed == ("cifar10", None, None, "train", "/data")


@pytest.mark.parametrize("data_dir", ["{here}", "{here}/", "TF", "./TF", "../{name}/TF", "a/../TF", "~/TF"])
def test_folders_in_all_their_forms(data_dir, tmp_path, tfds_folder, monkeypatch, read_all):
    shutil.copytree(tfds_folder / "tiny_photos", tmp_path / "TF" / "tiny_photos")
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    where = data_dir.format(here=tmp_path / "TF", name=tmp_path.name)
    assert len(read_all(_source(where))) == 7


def test_a_data_dir_that_is_remote(tmp_path, tfds_folder, monkeypatch, results_of):
    """TFDS itself would need a library of its own for each store."""
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    shutil.copytree(tfds_folder / "tiny_photos", tmp_path / "bucket" / "tiny_photos")
    monkeypatch.setattr(locations, "resolve", lambda path: (store, path.partition("://")[2]))
    load_metadata.cache_clear()
    source = _source("s3://bucket")
    entries = list(source.list())
    results = results_of(source, entries)
    assert [len(result.data) > 100 for result in results] == [True] * 7
    assert source.class_names() == ["indoors", "outdoors"]


@pytest.mark.parametrize(
    "text",
    [
        *("tfds:mnist", "tfds:", "tfds:a/b/c/d", "tfds:mnist/", "tfds:mnist/train?dir=x"),
        *(
            "tfds:mnist/train?",
            "tfds:mnist/train?data_dir=",
            "tfds:mnist/train?data_dir",
            "tfds:?data_dir=/a/b",
        ),
    ],
)
def test_addresses_of_another_form(text):
    with pytest.raises(UserError, match="write it as"):
        open_source(SourceConfig(text))


@pytest.mark.parametrize("missing", ["tensorflow_datasets", "array_record"])
def test_packages_that_are_not_installed(missing, data_dir, monkeypatch):
    load_metadata.cache_clear()
    source = _source(data_dir("array_record"))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"needs {missing} .* pip install 'tensorflow-datasets>=4\.9\.9'"):
        list(source.list())


def test_neither_tensorflow_nor_jax_is_imported(tfds_folder):
    code = (
        "import sys; from transforms.sources import SourceConfig, open_source\n"
        "assert not {'tensorflow_datasets', 'array_record'} & set(sys.modules)\n"
        f"source = open_source(SourceConfig('tfds:tiny_photos/train?data_dir={tfds_folder}'))\n"
        "entries = list(source.list())\n"
        "assert len([load() for load in source.read(entries)]) == 7\n"
        "print(sorted({'tensorflow', 'jax'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


IMAGE = {
    "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
    "image": {"dtype": "uint8", "encodingFormat": "png", "shape": {"dimensions": ["-1", "-1", "3"]}},
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"dtype": "float32", "shape": {"dimensions": ["-1", "-1", "1"]}},
            "float32 is stored as the channels of a PNG",
        ),
        ({"shape": {"dimensions": ["-1", "-1", "2"]}}, "shape"),
        ({"dtype": "uint16"}, None),
        ({"shape": {"dimensions": ["-1", "-1", "4"]}}, None),
    ],
)
def test_type_and_shape_of_an_image_are_obeyed(data_dir, changes, reason):
    folder = data_dir("tfrecord")
    path = folder / "tiny_photos/1.0.0/features.json"
    document = json.loads(path.read_text())
    image = {**IMAGE, "image": {**IMAGE["image"], **changes}}
    document["featuresDict"]["features"]["image"] = image
    path.write_text(json.dumps(document))
    load_metadata.cache_clear()
    if reason is None:
        assert len(list(_source(folder).list())) == 7
        return
    with pytest.raises(UserError, match=reason) as caught:
        list(_source(folder).list())
    assert "\n" not in str(caught.value)


def test_number_is_no_image(data_dir):
    with pytest.raises(UserError, match="ClassLabel"):
        list(_source(data_dir("tfrecord"), image_column="label").list())
