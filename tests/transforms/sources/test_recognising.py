"""Containers beside other files, and files that no source reads: never taken for images."""

import gzip
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.images.decode import _FORMATS
from transforms.sources import SourceConfig, names, open_source
from transforms.sources.registry import left_out, recognise
from vqgan.errors import UserError

IMAGES = pa.table({"image": pa.array([b"a", b"b"], pa.binary())})
CAPTIONS = pa.table({"key": ["0"], "url": ["https://host/0.jpg"], "caption": ["x"]})


def _write(folder: Path, files: dict[str, bytes | pa.Table]) -> Path:
    for name, contents in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(contents, bytes):
            (folder / name).write_bytes(contents)
        else:
            pq.write_table(contents, folder / name)
    return folder


def _entries(path: Path, **options) -> tuple[list[str], dict[str, str]]:
    """Keys of the entries to read, and errors of the others."""
    entries = list(open_source(SourceConfig(str(path), **options)).list())
    good = [entry.key for entry in entries if not entry.error]
    return good, {entry.key: entry.error or "" for entry in entries if entry.error}


@pytest.mark.parametrize("stray", ["LICENSE", "load.py", "cover.jpg", "old.zip", "notes.docx", "x.tfrecord"])
def test_a_file_beside_tars_is_a_reject_of_its_own(stray, tmp_path, tar_bytes):
    tar = tar_bytes([("a.jpg", b"a")])
    folder = _write(tmp_path, {"0.tar": tar, "1.tar": tar, "2.tar": tar, "README.md": b"", stray: b"..."})
    if stray in ("old.zip", "x.tfrecord"):
        with pytest.raises(UserError, match="containers of several kinds"):
            recognise(str(folder))
        return
    assert recognise(str(folder)) == "tar"
    good, errors = _entries(folder)
    assert good == ["0.tar/a", "1.tar/a", "2.tar/a"]
    assert list(errors) == [f"{stray}/#damaged-at-0"]
    assert errors[f"{stray}/#damaged-at-0"].startswith("no tar file")
    assert stray in (left_out(str(folder), "tar") or "")


def test_what_spark_and_delta_leave_beside_parquet_is_left_out(tmp_path):
    leftovers = ["_SUCCESS", "_temporary/0/part-1.parquet", "_delta_log/0.checkpoint.parquet", "_metadata"]
    files = dict.fromkeys([*leftovers, "part-0.crc"], b"no Parquet")
    folder = _write(tmp_path, {**files, "part-0.snappy.parquet": IMAGES})
    assert _entries(folder) == (["part-0.snappy.parquet#0", "part-0.snappy.parquet#1"], {})
    assert "and 2 more" in (left_out(str(folder), "parquet") or "")
    assert left_out(str(folder / "part-0.snappy.parquet"), "parquet") is None


@pytest.mark.parametrize("kind", [None, "tar"])
def test_what_img2dataset_writes(kind, tmp_path, tar_bytes):
    files: dict[str, bytes | pa.Table] = {}
    for shard in ("00000", "00001"):
        files[f"{shard}.tar"] = tar_bytes([(f"{shard}0.jpg", b"a"), (f"{shard}0.txt", b"caption")])
        files[f"{shard}.parquet"] = CAPTIONS
        files[f"{shard}_stats.json"] = b"{}"
    folder = _write(tmp_path, files)
    assert _entries(folder, kind=kind) == (["00000.tar/000000", "00001.tar/000010"], {})


def test_two_kinds_that_both_hold_images_are_refused(tmp_path, tar_bytes):
    folder = _write(tmp_path, {"0.tar": tar_bytes([("a.jpg", b"a")]), "0.parquet": IMAGES})
    with pytest.raises(UserError, match=r"several kinds \(1 parquet, 1 tar\).*\*\.tar"):
        recognise(str(folder))
    assert recognise(f"{folder}/*.tar") == "tar"


def test_containers_without_names_are_told_by_their_first_bytes(tmp_path, tar_bytes):
    tar = tar_bytes([("a.jpg", b"a")])
    assert recognise(str(_write(tmp_path / "a", {"0": tar, "1": tar}))) == "tar"
    assert recognise(str(_write(tmp_path / "b", {"0": gzip.compress(tar)}))) == "tar"
    assert recognise(str(_write(tmp_path / "c", {"part-0": IMAGES, "part-1": IMAGES}))) == "parquet"
    assert recognise(str(_write(tmp_path / "d", {"0": tar, "1": b"..."}))) == "folder"


def test_a_container_among_images_says_what_it_is(tmp_path, photos):
    names_ = ["0.tar", "a.npz", "b.7z", "c.zip", "d.parquet", "e.arrow", "f.jpg.gz"]
    folder = _write(tmp_path, {f"{number}.jpg": b"x" for number in range(9)} | dict.fromkeys(names_, b"x"))
    good, errors = _entries(folder)
    assert good == [f"{number}.jpg" for number in range(9)]
    assert list(errors) == names_
    assert all("not an image" in error for error in errors.values())


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "contents", "what"),
    [
        ("a.npz", _npz(), "NumPy"),
        ("a.npy", b"\x93NUMPY...", "NumPy"),
        ("a.jpg", b"\x93NUMPY...", "NumPy"),
        ("noname", b"7z\xbc\xaf\x27\x1c", "7z"),
        ("a.rar", b"", "archive"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("a.mdb", b"", "database"),
        ("a.json", b"{}", "jsonl"),
        ("a.xlsx", b"PK\x03\x04", "CSV"),
        ("a.jpg.gz", gzip.compress(b"x", mtime=0), "decompress it"),
        ("noname", gzip.compress(b"x", mtime=0), "decompress it"),
        ("a.pkl", b"\x80\x04", "serialised data"),
    ],
)
def test_single_files_that_are_refused(name, contents, what, tmp_path):
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(UserError, match=f"not read.*{what}") as caught:
        recognise(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_folder_of_what_is_not_read_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"0\.npz.*not read"):
        recognise(str(_write(tmp_path, {"0.npz": b"", "1.npz": b"", "LICENSE": b""})))


def _arrow(table: pa.Table, is_file: bool) -> bytes:
    sink = pa.BufferOutputStream()
    make = pa.ipc.new_file if is_file else pa.ipc.new_stream
    with make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "contents", "kind"),
    [
        ("a.zip", b"PK\x05\x06" + bytes(18), "zip"),
        ("a.jpg", b"PK\x03\x04", "zip"),
        ("a.arrow", _arrow(IMAGES, False), "arrow"),
        ("noname", _arrow(IMAGES, True), "arrow"),
        ("a.jsonl", b'{"file_name": "a.jpg"}\n', "list"),
        ("a.csv.gz", gzip.compress(b"path\na.jpg\n", mtime=0), "list"),
        ("a.tar.zst", b"", "tar"),
    ],
)
def test_single_files_of_the_newer_kinds(name, contents, kind, tmp_path):
    (tmp_path / name).write_bytes(contents)
    assert recognise(str(tmp_path / name)) == kind


def test_the_decoder_s_extensions_are_known():
    from PIL import Image

    decoded = {name[1:] for name, form in Image.registered_extensions().items() if form in _FORMATS}
    assert decoded <= {*names.IMAGE_EXTENSIONS, *names.RARE_EXTENSIONS}


@pytest.mark.parametrize("is_file", [False, True])
def test_saved_to_disk(is_file, tmp_path, photos, read_all):
    few = dict(list(photos.items())[:3])
    info = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}}
    table = pa.table(
        {
            "image": pa.array([{"bytes": data, "path": None} for data in few.values()]),
            "label": pa.array([1, 0, None], pa.int64()),
            "caption": list(few),
        }
    ).replace_schema_metadata({"huggingface": json.dumps(info)})
    files = {"dataset_info.json": b"{}", "state.json": b"{}"}
    _write(tmp_path, {**files, "data-00000-of-00001.arrow": _arrow(table, is_file)})
    source = open_source(SourceConfig(str(tmp_path), label_column="label", columns=("caption",)))
    assert source.class_names() == ["cat", "dog"]
    results = read_all(source)
    assert list(results) == [f"data-00000-of-00001.arrow#{row}" for row in range(3)]
    assert [result.data for result in results.values()] == list(few.values())
    assert [result.label for result in results.values()] == [1, 0, None]
    assert [result.columns["caption"] for result in results.values()] == list(few)


def test_damaged_arrow_files_are_entries_with_errors(tmp_path, results_of):
    whole = _arrow(pa.table({"image": [b"abc" * 50] * 6}), False)
    for length in range(0, len(whole) - 8, 61):
        (tmp_path / "a.arrow").write_bytes(whole[:length])
        source = open_source(SourceConfig(str(tmp_path / "a.arrow")))
        entries = list(source.list())
        assert length == 0 or entries[-1:] == [] or entries[-1].error or len(entries) < 6
    draw = np.random.default_rng(1)
    for place in draw.integers(0, len(whole), 60):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(draw.integers(8))
        (tmp_path / "a.arrow").write_bytes(flipped)
        try:
            source = open_source(SourceConfig(str(tmp_path / "a.arrow"), kind="arrow"))
            good = [entry for entry in source.list() if not entry.error]
        except UserError:
            continue
        assert len(results_of(source, good)) == len(good)


def test_zip_members_that_claim_much(tmp_path, photos, read_all, monkeypatch):
    """By their declared size; and one that declares less than is in it gives no more than it declared."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.jpg", next(iter(photos.values())))
        archive.writestr("large.jpg", bytes(4 << 20))
        archive.writestr("liar.jpg", bytes(1 << 20))
    data = bytearray((tmp_path / "a.zip").read_bytes())
    directory = data.rindex(b"PK\x01\x02")  # the last entry: liar.jpg
    assert data[directory + 46 :].startswith(b"liar.jpg")
    data[directory + 24 : directory + 28] = (1000).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(data)
    monkeypatch.setattr("transforms.sources.reading.MAX_ITEM_BYTES", 2 << 20)
    results = read_all(open_source(SourceConfig(str(tmp_path / "a.zip"))))
    assert results["a.zip/good.jpg"].data == next(iter(photos.values()))
    assert "4,194,304 bytes are more than the 2,097,152" in str(results["a.zip/large.jpg"])
    assert isinstance(results["a.zip/liar.jpg"], ValueError)


def test_zip_archives(tmp_path, photos, read_all):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("p")
        for name, data in photos.items():
            archive.writestr(f"p/{name}", data)
        archive.writestr("__MACOSX/p/._x.jpg", b"x")
        archive.writestr("p/.hidden", b"x")
        archive.writestr("p/more.tar", b"x")
    source = open_source(SourceConfig(str(tmp_path / "a.zip")))
    assert {key: result.data for key, result in read_all(source).items()} == {
        f"a.zip/p/{name}": data for name, data in photos.items()
    }
    assert [entry.error for entry in source.list() if entry.error] == [
        "a container (tar), not an image; give it as an input of its own"
    ]


def test_damaged_zip_archives(tmp_path, results_of):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jpg", b"a" * 100)
        archive.writestr("b.jpg", b"b" * 100)
    whole = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(whole.replace(b"a" * 100, b"a" * 99 + b"x"))
    source = open_source(SourceConfig(str(tmp_path / "a.zip")))
    first, second = results_of(source, list(source.list()))
    assert "Bad CRC-32" in str(first)
    assert second.data == b"b" * 100
    (tmp_path / "a.zip").write_bytes(whole[:-30])
    (entry,) = source.list()
    assert "no whole zip archive" in (entry.error or "")
