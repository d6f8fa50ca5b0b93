"""Lists as people have them: quotation marks, blanks, encodings, compression, JSON lines, classes."""

import bz2
import csv
import gzip
import io
import lzma
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.sources import SourceConfig, open_source, text
from transforms.sources.folder import FolderSource
from transforms.sources.text import split_tabs
from vqgan.errors import UserError


def _open(path: Path, **options):
    return open_source(SourceConfig(str(path), **options))


def _keys(path: Path, **options) -> list[str]:
    return [entry.key for entry in _open(path, **options).list()]


def test_a_quotation_mark_in_tsv_is_just_that(tmp_path, read_all):
    captions = ['"hello', 'world"', '5" x 7" print', "plain", '"', '"a" b', '"open']
    rows = ["path\tcaption", *(f"{number}.jpg\t{caption}" for number, caption in enumerate(captions))]
    (tmp_path / "l.tsv").write_text("\n".join(rows))
    for number in range(len(captions)):
        (tmp_path / f"{number}.jpg").write_bytes(b"x")
    results = read_all(_open(tmp_path / "l.tsv", columns=("caption",)))
    assert [result.columns["caption"] for result in results.values()] == captions


FIELDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=6)
RAW = st.lists(st.tuples(FIELDS.filter(bool), st.text('"ab ', max_size=6)), min_size=1, max_size=8)
QUOTED = st.lists(st.tuples(FIELDS, st.text('a"\t b', max_size=6), FIELDS), min_size=1, max_size=8)


@given(rows=RAW)
def test_rows_of_raw_tsv_are_never_lost(rows):
    lines = ["path\tcaption\n", *(f"{path}\t{caption}\n" for path, caption in rows)]
    split = list(split_tabs(iter(lines)))
    assert len(split) == len(lines)
    assert all(len(row) == 2 for row in split)


@given(rows=QUOTED)
def test_rows_of_quoted_tsv_are_read_as_they_were_written(rows):
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t").writerows([("path", "caption", "more"), *rows])
    lines = [f"{line}\n" for line in buffer.getvalue().split("\n")[:-1]]
    assert [tuple(row) for row in split_tabs(iter(lines))][1:] == rows


def test_newlines_in_quoted_fields_of_tsv():
    lines = ["path\tcaption\n", 'a\t"one\n', "\n", 'two"\n', 'b\t"open\n', "c\td\n"]
    assert list(split_tabs(iter(lines)))[1:] == [["a", "one\n\ntwo"], ["b", '"open'], ["c", "d"]]


def test_names_with_blanks_and_number_signs(tmp_path, read_all):
    for name in (" lead.jpg", "trail.jpg ", "#tag.jpg", "# 1.jpg", "plain.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    lines = [
        " lead.jpg",
        "trail.jpg ",
        "#tag.jpg",
        "# 1.jpg",
        "# a comment",
        "##",
        "  plain.jpg",
        "",
        "#no.jpg",
    ]
    (tmp_path / "l.txt").write_text("\r\n".join(lines))
    results = read_all(_open(tmp_path / "l.txt"))
    assert isinstance(results.pop("#no.jpg"), FileNotFoundError)
    assert {key: result.data.decode() for key, result in results.items()} == {
        name: name for name in (" lead.jpg", "trail.jpg ", "#tag.jpg", "# 1.jpg", "plain.jpg")
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["l.csv", "l.tsv", "l.txt"])
def test_encodings(encoding, name, tmp_path, read_all):
    header = "" if name == "l.txt" else "path\r\n"
    (tmp_path / name).write_bytes(f"{header}a.jpg\r\nbé.jpg\r\n".encode(encoding))
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "bé.jpg").write_bytes(b"b")
    assert {key: result.data for key, result in read_all(_open(tmp_path / name)).items()} == {
        "a.jpg": b"a",
        "bé.jpg": b"b",
    }


def test_latin_1(tmp_path, read_all):
    (tmp_path / "bé.jpg").write_bytes(b"b")
    (tmp_path / "l.txt").write_bytes("bé.jpg\ncé.jpg\n".encode("latin-1"))
    results = read_all(_open(tmp_path / "l.txt"))
    assert results["b\\xe9.jpg"].data == b"b"
    assert "Latin-1" in str(results["c\\xe9.jpg"])
    (tmp_path / "l.csv").write_bytes("path,caption\na.jpg,café\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"row 0 is not UTF-8 in column caption.*Latin-1"):
        _keys(tmp_path / "l.csv", columns=("caption",))
    assert _keys(tmp_path / "l.csv") == ["a.jpg"]


def test_what_is_no_text_is_refused(tmp_path, monkeypatch):
    (tmp_path / "l.txt").write_bytes(b"a\0b" * 9)
    with pytest.raises(UserError, match="zero bytes"):
        _keys(tmp_path / "l.txt")
    monkeypatch.setattr(text, "MAX_LINE", 100)
    (tmp_path / "l.txt").write_bytes(b"a" * 101)
    with pytest.raises(UserError, match="more than 100 characters"):
        _keys(tmp_path / "l.txt")


@pytest.mark.parametrize(
    ("name", "before", "start"),
    [
        ("l.txt", "a.jpg\nb.jpg\r\n", ""),
        ("l.csv", "path,x\na.jpg,\n", "b.jpg,"),
        ("l.tsv", "path\ta\n\n", '"'),
        ("l.jsonl", '{"path": "a.jpg"}\n\n', '{"path": "'),
    ],
)
def test_a_line_without_end_is_named(name, before, start, tmp_path):
    """128 MB of it, compressed to some kilobytes, of which no more than a line is unpacked."""
    packed = gzip.compress(before.encode() + start.encode()) + 128 * gzip.compress(b"x" * (1 << 20))
    (tmp_path / f"{name}.gz").write_bytes(packed)
    tracemalloc.start()
    with pytest.raises(UserError, match=rf"{name}.*line 3 has more than 1,048,576 characters") as caught:
        _keys(tmp_path / f"{name}.gz")
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("ending", "pack"),
    [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", None)],
)
def test_compressed_lists(ending, pack, tmp_path):
    contents = b"path,caption\na.jpg,x\n"
    data = pack(contents) if pack else pa.compress(contents, "zstd", asbytes=True)
    (tmp_path / f"l.csv.{ending}").write_bytes(data)
    assert _keys(tmp_path / f"l.csv.{ending}") == ["a.jpg"]
    (tmp_path / f"l.csv.{ending}").write_bytes(data[:-6])
    with pytest.raises(UserError, match="list cannot be read"):
        _keys(tmp_path / f"l.csv.{ending}")


def test_percent_escapes_in_addresses(tmp_path, read_all):
    (tmp_path / "a b.jpg").write_bytes(b"1")
    (tmp_path / "c%20d.jpg").write_bytes(b"2")
    names = ["a%20b.jpg", "a b.jpg", "c%20d.jpg"]
    lines = [f"file://{tmp_path}/{name}" for name in names] + [f"file://localhost{tmp_path}/a%20b.jpg"]
    (tmp_path / "l.txt").write_text("\n".join(lines))
    assert [result.data for result in read_all(_open(tmp_path / "l.txt")).values()] == [
        b"1",
        b"1",
        b"2",
        b"1",
    ]


def test_addresses_of_the_web_point_to_img2dataset(tmp_path):
    (tmp_path / "l.txt").write_text("HTTPS://host/a.jpg\n")
    with pytest.raises(UserError, match="img2dataset"):
        _keys(tmp_path / "l.txt")


def test_json_lines(tmp_path, read_all):
    (tmp_path / "im").mkdir()
    (tmp_path / "im" / "0.jpg").write_bytes(b"x")
    lines = [
        '{"file_name": "im/0.jpg", "text": "a", "n": 1, "tags": ["x"], "box": {"a": 1}}',
        "",
        "[1]",
        "no",
    ]
    lines += ['{"file_name": "im/1.jpg", "text": "b", "n": "many"}']
    (tmp_path / "l.jsonl").write_text("\n".join(lines))
    source = _open(tmp_path / "l.jsonl", columns=("text", "tags", "box"))
    assert [str(field.type) for field in source.fields()] == ["string", "list<item: string>", "string"]
    assert read_all(source)["im/0.jpg"].columns == {"text": "a", "tags": ["x"], "box": '{"a": 1}'}
    errors = [entry.error for entry in source.list()]
    assert errors[1] == "no JSON object"
    assert "no JSON (" in (errors[2] or "")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.int8()])
def test_labels_of_parquet_lists(kind, tmp_path):
    labels = (
        pa.array(["1", "2", None]).cast(pa.int8()) if kind == pa.int8() else pa.array(["1", "2", None], kind)
    )
    paths = pa.array(["a", "b", "c"], pa.large_string())
    pq.write_table(pa.table({"path": paths, "label": labels}), tmp_path / "l.parquet")
    source = _open(tmp_path / "l.parquet", label_column="label")
    assert [entry.label for entry in source.list()] == [1, 2, None]
    assert source.class_names() is None


def test_names_of_classes_are_numbered_in_sorted_order(tmp_path):
    (tmp_path / "l.csv").write_text("path,class\na,dog\nb,cat\nc,\nd,dog\n")
    source = _open(tmp_path / "l.csv", label_column="class")
    assert source.class_names() == ["cat", "dog"]
    assert [entry.label for entry in source.list()] == [1, 0, None, 1]
    assert _open(tmp_path / "l.csv").class_names() is None


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """Images in two folders, one with a file that describes them."""
    for name in ("a/0.jpg", "a/1.jpg", "b/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_metadata_beside_images(described, read_all):
    lines = [
        '{"file_name": "1.jpg", "text": "one", "kind": "z"}',
        '{"file_name": "9.jpg", "text": "", "kind": "y"}',
    ]
    (described / "a" / "metadata.jsonl").write_text("\n".join(lines))
    source = _open(described, columns=("text",), label_column="kind")
    assert source.class_names() == ["y", "z"]
    results = read_all(source)
    assert {key: (result.label, result.columns) for key, result in results.items()} == {
        "a/0.jpg": (None, {"text": None}),
        "a/1.jpg": (1, {"text": "one"}),
        "b/2.jpg": (None, {"text": None}),
    }
    assert [entry.key for entry in source.list() if entry.error] == ["a/9.jpg/#not-there"]
    assert [entry.error for entry in _open(described).list()] == [None] * 3


def test_metadata_leaves_the_classes_of_folders(described, read_all):
    (described / "a" / "metadata.jsonl").write_text('{"file_name": "1.jpg", "text": "one"}')
    source = _open(described, columns=("text",), folder_labels=True)
    results = read_all(source)
    assert {key: (result.label, result.columns["text"]) for key, result in results.items()} == {
        "a/0.jpg": (0, None),
        "a/1.jpg": (0, "one"),
        "b/2.jpg": (1, None),
    }


def test_metadata_is_read_once(described, read_all, monkeypatch):
    (described / "a" / "metadata.jsonl").write_text('{"file_name": "1.jpg", "text": "one"}')
    source = _open(described, columns=("text",))
    entries = list(source.list())
    old = [load() for load in source.read([entry._replace(columns=None) for entry in entries])]
    monkeypatch.setattr(FolderSource, "_columns", None)
    assert [load() for load in source.read(entries)] == old


def test_metadata_that_is_refused(described):
    (described / "metadata.csv").write_text("file_name,class\na/0.jpg,1\na/1.jpg,cat\n")
    with pytest.raises(UserError, match="'cat', which is no integer"):
        list(_open(described, label_column="class").list())
    with pytest.raises(UserError, match="no column text; there are file_name, class"):
        _open(described, columns=("text",)).fields()
