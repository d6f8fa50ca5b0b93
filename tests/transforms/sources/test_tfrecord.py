import gzip
import random
from pathlib import Path

import pyarrow as pa
import pytest

from transforms.sources import SourceConfig, open_source
from transforms.sources.records import TFRecordSource
from vqgan.errors import UserError


def _source(path: Path, **options) -> TFRecordSource:
    return TFRecordSource(SourceConfig(str(path), **options))


def _examples(photos: dict[str, bytes]) -> list[dict[str, list]]:
    return [
        {"image/encoded": [data], "image/class/label": [number], "name": [name.encode()]}
        for number, (name, data) in enumerate(photos.items())
    ]


@pytest.fixture
def records(tmp_path, photos, tfrecord_bytes):
    path = tmp_path / "x.tfrecord-00000-of-00001"
    path.write_bytes(tfrecord_bytes(_examples(photos)))
    return path


def test_reads_every_photo_unchanged(records, photos, read_all):
    source = _source(records)
    assert not source.shuffles
    results = read_all(source)
    assert list(results) == [f"{records.name}#{number}" for number in range(10)]
    assert [result.data for result in results.values()] == list(photos.values())
    assert all(result.label is None for result in results.values())


def test_keys_labels_and_columns(records, photos, read_all):
    options = {"key_column": "name", "label_column": "image/class/label", "columns": ("name",)}
    source = _source(records, **options)
    assert source.fields() == [pa.field("name", pa.string())]
    results = read_all(source)
    assert {key: result.data for key, result in results.items()} == photos
    assert [result.label for result in results.values()] == list(range(10))
    assert results["life.jpg"].columns == {"name": "life.jpg"}


def test_another_feature_can_be_the_image(tmp_path, tfrecord_bytes, read_all):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(tfrecord_bytes([{"image": [b"a"], "mask": [b"m"]}]))
    assert read_all(_source(path))["a.tfrecord#0"].data == b"a"
    assert read_all(_source(path, image_column="mask"))["a.tfrecord#0"].data == b"m"
    assert isinstance(read_all(_source(path, image_column="x"))["a.tfrecord#0"], ValueError)


def test_unknown_columns_are_refused(records):
    with pytest.raises(UserError, match="no feature caption; there are image/class/label"):
        _source(records, columns=("caption",)).fields()


def test_records_without_a_key(tmp_path, tfrecord_bytes):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(tfrecord_bytes([{"id": [5], "image": [b"a"]}, {"image": [b"a"]}]))
    entries = list(_source(path, key_column="id").list())
    assert [(entry.key, entry.error) for entry in entries] == [
        *(("5", None), ("a.tfrecord#1", "no key in feature id")),
    ]


def test_damaged_data_costs_one_record(records, photos, read_all):
    entries = list(_source(records).list())
    data = bytearray(records.read_bytes())
    data[entries[4].offset + 5000] ^= 1
    records.write_bytes(data)
    results = read_all(_source(records))
    wrong = results.pop(entries[4].key)
    assert "wrong checksum" in str(wrong)
    expected = [data for number, data in enumerate(photos.values()) if number != 4]
    assert [result.data for result in results.values()] == expected
    assert [bool(e.error) for e in _source(records, key_column="name").list()].count(True) == 1


def test_a_damaged_length_costs_the_remainder(records, tmp_path, read_all, tfrecord_bytes):
    entries = list(_source(records).list())
    start = entries[4].offset - 12
    data = bytearray(records.read_bytes())
    data[start] ^= 1
    records.write_bytes(data)
    (tmp_path / "y.tfrecord").write_bytes(tfrecord_bytes([{"image": [b"y"]}]))
    damaged = list(_source(tmp_path).list())
    assert [entry.key for entry in damaged] == [
        *(entry.key for entry in entries[:4]),
        f"{records.name}/#damaged-at-{start}",
        "y.tfrecord#0",
    ]
    assert len(read_all(_source(tmp_path))) == 5


def test_truncated_and_flipped_files_never_give_wrong_data(tmp_path, tfrecord_bytes, results_of):
    draw = random.Random(11)
    images = [draw.randbytes(draw.randrange(1, 60)) for _ in range(6)]
    data = tfrecord_bytes([{"image": [image]} for image in images])
    path = tmp_path / "a.tfrecord"
    for _ in range(100):
        place = draw.randrange(len(data))
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        for damaged in (data[:place], bytes(flipped)):
            path.write_bytes(damaged)
            entries = list(_source(path).list())
            good = [entry for entry in entries if not entry.error]
            results = results_of(_source(path), good)
            for result, image in zip(results, images, strict=False):
                assert isinstance(result, ValueError) or result.data == image


@pytest.mark.parametrize("contents", [b"", b"no record"])
def test_files_without_records(contents, tmp_path):
    (tmp_path / "a.tfrecord").write_bytes(contents)
    entries = list(_source(tmp_path / "a.tfrecord").list())
    assert [bool(entry.error) for entry in entries] == [True] * bool(contents)


def test_compressed_files_are_refused(tmp_path, tfrecord_bytes):
    path = tmp_path / "a.tfrecord.gz"
    path.write_bytes(gzip.compress(tfrecord_bytes([{"image": [b"a"]}])))
    with pytest.raises(UserError, match="gunzip"):
        list(open_source(SourceConfig(str(path))).list())
