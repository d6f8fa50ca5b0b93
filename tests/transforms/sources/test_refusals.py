"""Inputs that are nearly right: read as they are meant, or refused in one line that says why."""

import base64
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.sources import SourceConfig, open_source
from transforms.sources.registry import recognise
from vqgan.errors import UserError


def _entries(path: Path | str, **options: Any) -> dict[str, str | None]:
    """Errors of the entries by key."""
    return {entry.key: entry.error for entry in open_source(SourceConfig(str(path), **options)).list()}


def _labels(path: Path, **options: Any) -> list[int | None]:
    source = open_source(SourceConfig(str(path), label_column="label", **options))
    return [entry.label for entry in source.list()]


def _list(path: Path | str, options: dict[str, Any]) -> None:
    source = open_source(SourceConfig(str(path), **options))
    source.fields()
    list(source.list())


def _refusal(path: Path | str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        _list(path, options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("uri", ["foo://x/y", "az://c/x", "sftp://h/x", "memory://x"])
def test_schemes_that_nothing_opens(uri, tmp_path):
    scheme = uri.partition("://")[0].lower()
    said = (
        f"cannot open this location: {scheme}:// is not supported; local paths, gs://, s3:// and hdfs:// are"
    )
    assert _refusal(uri) == f"{uri}: {said}"
    (tmp_path / "l.txt").write_text(f"0.jpg\n{uri}\n")
    assert _refusal(tmp_path / "l.txt") == f"{tmp_path}/l.txt: row 1: {uri}: {said}"


@pytest.mark.parametrize("prefix", ["file:", "file://", "FILE://", "File:"])
def test_files_as_uris(prefix, tmp_path, photos):
    (tmp_path / "a.jpg").write_bytes(photos["life.jpg"])
    assert _entries(f"{prefix}{tmp_path}") == {"a.jpg": None}
    (tmp_path / "l.csv").write_text(f"path\n{prefix}{tmp_path}/a.jpg\n")
    source = open_source(SourceConfig(str(tmp_path / "l.csv")))
    (load,) = source.read(list(source.list()))
    assert load().data == photos["life.jpg"]


def test_a_folder_in_a_list_is_called_one(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "l.txt").write_text("d\n")
    source = open_source(SourceConfig(str(tmp_path / "l.txt")))
    (load,) = source.read(list(source.list()))
    with pytest.raises(IsADirectoryError, match=r"a folder, not a file$"):
        load()


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_what_divides_the_columns_of_csv(sign, tmp_path):
    rows = [["path", "label"], ["a b.jpg", "2"], ['"c, d.jpg"', "1"]]
    (tmp_path / "l.csv").write_text("\n".join(sign.join(row) for row in rows))
    assert list(_entries(tmp_path / "l.csv")) == ["a b.jpg", "c, d.jpg"]
    assert _labels(tmp_path / "l.csv") == [2, 1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            'a.jpg,x\nb.jpg,"open\nc.jpg,x\n',
            "the row that begins at line 3: a quotation mark that is never closed",
        ),
        ('a.jpg,"say \\"hi\\" now"\nb.jpg,x\n', "the row that begins at line 2: a stray quotation mark"),
    ],
)
def test_quotation_marks_that_make_no_field_name_their_line(rows, message, tmp_path):
    (tmp_path / "l.csv").write_text("path,caption\n" + rows)
    assert message in _refusal(tmp_path / "l.csv")


def test_long_fields_of_csv(tmp_path):
    (tmp_path / "l.csv").write_text(f"path,caption\na.jpg,{'x' * 200_000}\n")
    assert _entries(tmp_path / "l.csv", columns=("caption",)) == {"a.jpg": None}


def test_classes_as_pandas_writes_them_where_some_are_missing(tmp_path):
    (tmp_path / "l.csv").write_text("path,label\na.jpg,10.0\nb.jpg,\nc.jpg,2.\n")
    assert _labels(tmp_path / "l.csv") == [10, None, 2]
    (tmp_path / "l.csv").write_text("path,label\na.jpg,10.0\nb.jpg,2.5\n")
    assert "'2.5', which is no integer" in _refusal(tmp_path / "l.csv", label_column="label")


@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(90)).decode(),
        base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(90)).decode(),
        "data:image/png;base64,AAAA",
        "{'bytes': b'\\x89PNG', 'path': None}",
        "b'\\xff\\xd8'",
    ],
)
def test_images_as_text_are_no_paths(text, tmp_path):
    pq.write_table(pa.table({"image": ["a.jpg", text]}), tmp_path / "l.parquet")
    assert "row 1 holds an image itself in place of its path" in _refusal(tmp_path / "l.parquet")


PIXELS = pa.array([[1, 2, 3]], pa.list_(pa.uint8()))


@pytest.mark.parametrize(
    "column",
    [
        PIXELS,
        pa.array([[[b"a"]]]),
        pa.array([{"data": b"x", "format": "jpg"}]),
        pa.array([7]),
        pa.array([True]),
    ],
    ids=lambda column: str(column.type),
)
def test_columns_that_hold_neither_images_nor_paths(column, tmp_path):
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    assert "neither paths nor encoded images" in _refusal(tmp_path / "a.parquet")
    assert "image" in _refusal(tmp_path / "a.parquet", kind="parquet")


def test_columns_of_the_same_name(tmp_path):
    twice = pa.Table.from_arrays([pa.array([b"a"]), pa.array([b"b"])], names=["image", "image"])
    pq.write_table(twice, tmp_path / "a.parquet")
    assert "column image is there more than once" in _refusal(tmp_path / "a.parquet")
    (tmp_path / "l.csv").write_text("path,path\na.jpg,b.jpg\n")
    assert "column path is there more than once" in _refusal(tmp_path / "l.csv")


def test_the_first_file_may_have_no_image_at_all(tmp_path):
    pq.write_table(pa.table({"image": pa.nulls(2)}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "b.parquet")
    nothing = "no image in this row"
    assert _entries(tmp_path) == {"a.parquet#0": nothing, "a.parquet#1": nothing, "b.parquet#0": None}
    (tmp_path / "b.parquet").unlink()
    assert "image (null)" in _refusal(tmp_path)


@pytest.mark.parametrize("name", ["l.csv", "l.tsv", "l.jsonl"])
def test_text_that_is_not_utf_8_is_refused_and_not_escaped(name, tmp_path):
    rows = {
        "l.csv": b"path,caption\na.jpg,caf\xe9\n",
        "l.tsv": b"path\tcaption\na.jpg\tcaf\xe9\n",
        "l.jsonl": b'{"path": "a.jpg", "caption": ["caf\xe9"]}\n',
    }
    (tmp_path / name).write_bytes(rows[name])
    assert "row 0 is not UTF-8 in column caption" in _refusal(tmp_path / name, columns=("caption",))


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("metadata.csv", b"file_name,text\na.jpg,caf\xe9\n"),
        ("metadata.jsonl", b'{"file_name": "a.jpg", "text": "caf\xe9"}\n'),
    ],
)
def test_metadata_that_is_not_utf_8(name, rows, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / name).write_bytes(rows)
    assert f"({name}): row 0 is not UTF-8 in column text" in _refusal(tmp_path, columns=("text",))


def test_metadata_that_describes_an_image_twice(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.jpg,x\na.jpg,y\n")
    assert "two rows of metadata describe a.jpg" in _refusal(tmp_path, columns=("text",))


def test_what_windows_and_indexers_leave_beside_containers(tmp_path, tar_bytes):
    (tmp_path / "0.tar").write_bytes(tar_bytes([("a.jpg", b"a")]))
    for name in ("Thumbs.db", "desktop.ini", "0.tar.index", "0.idx"):
        (tmp_path / name).write_bytes(b"")
    assert _entries(tmp_path) == {"0.tar/a": None}


@pytest.mark.parametrize(
    ("name", "contents", "what"),
    [
        ("a.mp4", b"", "a video"),
        ("noname", b"\x1a\x45\xdf\xa3", "a video"),
        ("noname", bytes(16) + b"\xde\xc0\xef\xbe" + bytes(16), "a database"),
        ("noname", b"FEA1", "a Feather file"),
    ],
)
def test_more_files_that_are_refused(name, contents, what, tmp_path):
    (tmp_path / name).write_bytes(contents)
    assert f"not read, for it is {what}" in _refusal(tmp_path / name)


def test_videos_beside_images_are_rejects(tmp_path):
    for name in ("0.jpg", "0.mov", "1.mp4", "2.mp4"):
        (tmp_path / name).write_bytes(b"x")
    errors = _entries(tmp_path)
    assert recognise(str(tmp_path)) == "folder"
    assert errors.pop("0.jpg") is None
    assert all((error or "").startswith("a video, not an image") for error in errors.values())


def test_arrow_streams_of_old_writers(tmp_path):
    options = pa.ipc.IpcWriteOptions(use_legacy_format=True)
    table = pa.table({"image": [b"a", b"b"]})
    with (
        pa.OSFile(str(tmp_path / "a.ipc"), "wb") as file,
        pa.ipc.new_stream(file, table.schema, options=options) as out,
    ):
        out.write_table(table)
    assert _entries(tmp_path / "a.ipc") == {"a.ipc#0": None, "a.ipc#1": None}


def test_an_empty_zip_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w"):
        pass
    (error,) = _entries(tmp_path / "a.zip").values()
    assert "one without members" in (error or "")


def test_each_of_several_images_of_a_sample_is_a_reject(tmp_path):
    members = [f"frame.{number:04d}.png" for number in range(30)]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in members:
            archive.addfile(tarfile.TarInfo(name))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    errors = _entries(tmp_path / "a.tar")
    assert list(errors) == [f"a.tar/{name.removesuffix('.png')}" for name in members]
    (message,) = set(errors.values())
    assert "--whole-names" in (message or "")
    assert "and 20 more" in (message or "")
    assert set(_entries(tmp_path / "a.tar", whole_names=True).values()) == {None}


def test_an_input_forced_to_a_kind_names_what_it_is(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (error,) = _entries(tmp_path, kind="tar").values()
    assert error == "no tar file, but an image; give it as an input of its own"
