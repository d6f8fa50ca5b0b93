import contextlib
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.sources import SourceConfig, open_source
from transforms.sources.columnar import ParquetSource
from transforms.sources.reading import ChangedError
from vqgan.errors import UserError

HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _source(path: Path, **options) -> ParquetSource:
    return ParquetSource(SourceConfig(str(path), **options))


def _table(photos: dict[str, bytes], image_type: pa.DataType = HF_IMAGE) -> pa.Table:
    is_struct = pa.types.is_struct(image_type)
    images = [{"bytes": data, "path": name} if is_struct else data for name, data in photos.items()]
    return pa.table(
        {
            "id": pa.array(list(photos), pa.string()),
            "image": pa.array(images, image_type),
            "label": pa.array([None, *range(1, len(photos))], pa.uint8()),
            "score": pa.array([0.5] * len(photos), pa.float16()),
        }
    )


@pytest.fixture
def parquet(tmp_path, photos):
    path = tmp_path / "data.parquet"
    pq.write_table(_table(photos), path, row_group_size=4)
    return path


@pytest.mark.parametrize("kind", [HF_IMAGE, pa.binary(), pa.large_binary()])
def test_reads_every_photo_unchanged(kind, tmp_path, photos, read_all):
    pq.write_table(_table(photos, kind), tmp_path / "a.parquet", row_group_size=3)
    source = _source(tmp_path / "a.parquet")
    results = read_all(source)
    assert not source.shuffles
    assert source.fields() == []
    assert list(results) == [f"a.parquet#{row}" for row in range(10)]
    assert [result.data for result in results.values()] == list(photos.values())
    assert all(result.label is None and result.columns == {} for result in results.values())


def test_keys_labels_and_columns(parquet, photos, read_all):
    source = _source(parquet, key_column="id", label_column="label", columns=("score", "id"))
    assert source.fields() == [pa.field("score", pa.float16()), pa.field("id", pa.string())]
    results = read_all(source)
    assert {key: result.data for key, result in results.items()} == photos
    assert [result.label for result in results.values()] == [None, *range(1, 10)]
    assert results["life.jpg"].columns == {"score": 0.5, "id": "life.jpg"}


def test_many_files_and_any_order(tmp_path, photos, results_of):
    for number in range(2):
        pq.write_table(_table(photos), tmp_path / f"{number}.parquet", row_group_size=3)
    source = _source(tmp_path)
    entries = list(source.list())
    assert len(entries) == 20
    some = [entries[place] for place in (19, 0, 5, 5, 2, 11, 12, 4)]
    data = [result.data for result in results_of(source, some)]
    assert data == [list(photos.values())[entry.offset] for entry in some]


def test_rows_without_an_image(tmp_path, photos, read_all):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "wine.jpg").write_bytes(photos["wine.jpg"])
    (tmp_path.parent / "secret.jpg").write_bytes(b"secret")
    rows = [
        {"bytes": b"whole", "path": None},
        {"bytes": None, "path": "below/wine.jpg"},
        {"bytes": None, "path": "../secret.jpg"},
        {"bytes": None, "path": "below/../../secret.jpg"},
        {"bytes": None, "path": str(tmp_path.parent / "secret.jpg")},
        {"bytes": None, "path": "file:///etc/hostname"},
        {"bytes": None, "path": "missing.jpg"},
        {"bytes": b"", "path": None},
        {"bytes": None, "path": None},
        None,
    ]
    pq.write_table(pa.table({"image": pa.array(rows, HF_IMAGE)}), tmp_path / "a.parquet")
    results = list(read_all(_source(tmp_path / "a.parquet")).values())
    assert [result.data for result in results[:2]] == [b"whole", photos["wine.jpg"]]
    assert all("leads out of" in str(result) for result in results[2:6])
    assert isinstance(results[6], FileNotFoundError)
    assert str(results[7]) == "the image in this row is empty"
    assert [str(result) for result in results[8:]] == ["no image in this row"] * 2


@pytest.mark.parametrize(
    ("columns", "options", "found"),
    [
        ({"x": pa.binary()}, {}, True),
        ({"thumb": pa.binary(), "image": HF_IMAGE}, {}, True),
        ({"thumb": pa.binary(), "img": pa.binary(), "x": pa.string()}, {}, True),
        ({"a": pa.binary(), "b": pa.binary()}, {}, False),
        ({"a": pa.binary(), "b": pa.binary()}, {"image_column": "b"}, True),
        ({"image": pa.string()}, {}, False),
        ({"image": pa.string()}, {"image_column": "image"}, False),
        ({"image": pa.binary()}, {"image_column": "b"}, False),
        ({"image": pa.binary()}, {"key_column": "b"}, False),
        ({"image": pa.binary()}, {"columns": ("b",)}, False),
        ({"image": pa.binary(), "l": pa.string()}, {"label_column": "l"}, True),
        ({"image": pa.binary(), "l": pa.float32()}, {"label_column": "l"}, False),
    ],
)
def test_columns_are_chosen_or_refused(columns, options, found, tmp_path):
    table = pa.table({name: pa.array([None], kind) for name, kind in columns.items()})
    pq.write_table(table, tmp_path / "a.parquet")
    source = _source(tmp_path / "a.parquet", **options)
    if found:
        assert len(list(source.list())) == 1
        return
    for ask in (source.fields, lambda: list(source.list())):
        with pytest.raises(UserError) as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_files_that_are_damaged_or_different(tmp_path, photos, parquet, read_all):
    whole = parquet.read_bytes()
    parquet.rename(tmp_path / "2.parquet")
    (tmp_path / "0.parquet").write_bytes(whole[:-100])
    (tmp_path / "1.parquet").write_bytes(b"")
    pq.write_table(pa.table({"other": [1]}), tmp_path / "3.parquet")
    pq.write_table(_table(photos), tmp_path / "4.parquet")
    source = _source(tmp_path)
    errors = {entry.key: entry.error for entry in source.list() if entry.error}
    assert list(errors) == [f"{number}.parquet/#damaged-at-0" for number in (0, 1, 3)]
    assert "no whole Parquet file" in errors["0.parquet/#damaged-at-0"]
    assert "column image is missing here" in errors["3.parquet/#damaged-at-0"]
    assert len(read_all(source)) == 20


def _damage(path: Path, group: int, column: str) -> None:
    """Overwrites the middle of one column of one row group."""
    metadata = pq.read_metadata(path)
    chunks = [metadata.row_group(group).column(number) for number in range(metadata.num_columns)]
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema == column)
    data = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    middle = start + chunk.total_compressed_size // 2
    data[middle : middle + 8] = bytes(byte ^ 0xFF for byte in data[middle : middle + 8])
    path.write_bytes(data)


def test_a_damaged_page_costs_its_row_group_only(tmp_path, photos, read_all):
    path = tmp_path / "a.parquet"
    pq.write_table(_table(photos), path, row_group_size=4, write_page_checksum=True)
    _damage(path, 1, "image.bytes")
    results = list(read_all(_source(path)).values())
    assert [result.data for result in results[:4]] == list(photos.values())[:4]
    assert all("row group 1 is damaged" in str(result) for result in results[4:8])
    assert [result.data for result in results[8:]] == list(photos.values())[8:]


def test_damaged_keys_cost_their_row_group_only(tmp_path, photos):
    path = tmp_path / "a.parquet"
    pq.write_table(_table(photos), path, row_group_size=4, write_page_checksum=True, use_dictionary=False)
    _damage(path, 1, "id")
    entries = list(_source(path, key_column="id").list())
    assert [bool(entry.error) for entry in entries] == [False] * 4 + [True] * 4 + [False] * 2
    assert [entry.key for entry in entries[4:8]] == [f"a.parquet#{row}" for row in range(4, 8)]
    assert [entry.key for entry in entries[8:]] == list(photos)[8:]


def test_odd_keys_and_labels(tmp_path):
    table = pa.table({"image": [b"x"] * 3, "k": pa.array([7, None, 9]), "l": pa.array([1, 2, 1 << 40])})
    pq.write_table(table, tmp_path / "a.parquet")
    entries = list(_source(tmp_path / "a.parquet", key_column="k", label_column="l").list())
    assert [entry.key for entry in entries] == ["7", "a.parquet#1", "9"]
    assert [bool(entry.error) for entry in entries] == [False, True, True]


def test_a_file_truncated_after_listing_fails_in_the_loaders(parquet, results_of):
    source = _source(parquet)
    entries = list(source.list())
    parquet.write_bytes(parquet.read_bytes()[:-50])
    assert all(isinstance(result, ChangedError) for result in results_of(source, entries))
    unseen = [entry.unseen() for entry in entries]
    assert all(isinstance(result, ValueError) for result in results_of(source, unseen))


def test_memory_does_not_grow_with_the_row_group(tmp_path):
    """One row group of 64 MB in pages of 1 MB: reading it holds a few pages."""
    path = tmp_path / "big.parquet"
    schema = pa.schema([("image", pa.binary())])
    rows = [b"%07d" % number + b"x" * 250_000 for number in range(256)]
    with pq.ParquetWriter(
        path, schema, compression="none", use_dictionary=False, data_page_size=1 << 20, write_batch_size=4
    ) as writer:
        writer.write_table(pa.table({"image": rows}, schema))
    assert pq.read_metadata(path).num_row_groups == 1
    source = _source(path)
    entries = list(source.list())
    before = pa.default_memory_pool().bytes_allocated()
    peak = 0
    for entry, loader in zip(entries, source.read(entries), strict=True):
        assert loader().data == rows[entry.offset]
        peak = max(peak, pa.default_memory_pool().bytes_allocated() - before)
    assert peak < 24 << 20


def test_flipped_bits_never_crash(tmp_path, photos):
    draw = random.Random(2)
    rows = [draw.randbytes(200) for _ in range(40)]
    path = tmp_path / "a.parquet"
    table = pa.table({"image": rows, "id": [str(number) for number in range(40)]})
    pq.write_table(table, path, row_group_size=10, write_page_checksum=True)
    data = path.read_bytes()
    for turn in range(150):
        flipped = bytearray(data)
        flipped[draw.choice([draw.randrange(len(data)), draw.randrange(len(data) - 2500, len(data))])] ^= (
            1 << turn % 8
        )
        path.write_bytes(flipped)
        source = _source(path, image_column="image", key_column="id" if turn % 2 else None)
        with contextlib.suppress(UserError):
            entries = [entry for entry in source.list() if not entry.error]
            for loader in source.read(entries):
                with contextlib.suppress(ValueError, OSError):
                    loader()


def test_a_footer_that_contradicts_itself(parquet, monkeypatch):
    monkeypatch.setattr("transforms.sources.columnar._group_sizes", lambda parquet: [1 << 60])
    (entry,) = _source(parquet).list()
    assert "contradicts itself" in (entry.error or "")


@pytest.mark.parametrize(
    "kind", [pa.dictionary(pa.int32(), pa.binary()), pa.binary_view(), pa.large_binary(), pa.binary()]
)
def test_layouts_of_binary_columns(kind, tmp_path, photos, read_all):
    table = pa.table({"image": pa.array(list(photos.values()), pa.binary()).cast(kind), "path": list(photos)})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(SourceConfig(str(tmp_path / "a.parquet")))
    assert isinstance(source, ParquetSource)
    assert [result.data for result in read_all(source).values()] == list(photos.values())


@pytest.mark.parametrize("element", [pa.binary(), HF_IMAGE])
@pytest.mark.parametrize("make", [pa.list_, pa.large_list])
def test_a_list_of_images_gives_a_row_each_if_asked(make, element, tmp_path, read_all):
    wrapped = [b"a", b"b", b"c"]
    a, b, c = ({"bytes": data, "path": "x"} for data in wrapped) if element == HF_IMAGE else wrapped
    table = pa.table({"id": list("wxyz"), "images": pa.array([[a], [b, c], [], None], make(element))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    with pytest.raises(UserError, match="image_column images makes a row of each"):
        list(open_source(SourceConfig(str(tmp_path / "a.parquet"))).list())
    source = _source(tmp_path / "a.parquet", image_column="images", key_column="id")
    assert {key: result.data for key, result in read_all(source).items()} == {
        "w.0": b"a",
        "x.0": b"b",
        "x.1": b"c",
    }
    assert [entry.key for entry in source.list() if entry.error] == ["y", "z"]


def test_types_that_differ_between_files(tmp_path, read_all):
    kinds = [(pa.binary(), pa.null(), pa.int32()), (pa.large_binary(), pa.int64(), pa.int64())]
    kinds += [(HF_IMAGE, pa.int32(), pa.null())]
    for number, (image, label, score) in enumerate(kinds):
        data = {"bytes": b"x", "path": None} if image == HF_IMAGE else b"x"
        columns = {"image": pa.array([data], image), "label": pa.array([number or None], pa.int64())}
        columns["label"] = pa.nulls(1) if label == pa.null() else columns["label"].cast(label)
        columns["score"] = pa.nulls(1) if score == pa.null() else pa.array([1 << (16 * number)], score)
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet")
    source = _source(tmp_path, label_column="label", columns=("score",))
    assert [field.type for field in source.fields()] == [pa.int64()]
    results = list(read_all(source).values())
    assert [result.label for result in results] == [None, 1, 2]
    assert [result.columns["score"] for result in results] == [1, 1 << 16, None]


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        ("label", {"label_column": "label"}, "column label holds string, but int64 elsewhere"),
        ("label", {"columns": ("label",)}, "column label holds string, but int64 elsewhere"),
        ("image", {}, "column image holds string, but binary elsewhere"),
    ],
)
def test_types_that_contradict_each_other_are_refused(column, options, message, tmp_path):
    table = pa.table({"image": [b"x"], "label": [1]})
    pq.write_table(table, tmp_path / "0.parquet")
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(["x"])), tmp_path / "1.parquet")
    source = _source(tmp_path, image_column="image", **options)
    with pytest.raises(UserError, match=message):
        list(source.list())


def test_names_of_classes(tmp_path):
    for number, names in enumerate((["dog", None], ["cat", "dog"])):
        table = pa.table({"image": [b"x"] * 2, "label": pa.array(names).dictionary_encode()})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    source = _source(tmp_path, label_column="label")
    assert source.class_names() == ["cat", "dog"]
    assert [entry.label for entry in source.list()] == [1, None, 0, 1]


def test_classes_in_the_names_of_folders(tmp_path, read_all):
    for folder in ("kind=dog/year=2024", "kind=a%20cat/year=__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(pa.table({"image": [b"x"]}), tmp_path / folder / "0.parquet")
    source = _source(tmp_path, label_column="kind", columns=("year",))
    assert source.class_names() == ["a cat", "dog"]
    results = read_all(source)
    assert [(result.label, result.columns["year"]) for result in results.values()] == [(0, None), (1, "2024")]
