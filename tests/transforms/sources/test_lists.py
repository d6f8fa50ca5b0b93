import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.sources import SourceConfig, open_source
from transforms.sources.lists import ListSource
from vqgan.errors import UserError


def _source(path: Path, **options) -> ListSource:
    return ListSource(SourceConfig(str(path), **options))


@pytest.fixture
def folder(tmp_path: Path, photos: dict[str, bytes]) -> Path:
    """The photographs in ``images``, to be listed from beside it."""
    (tmp_path / "images").mkdir()
    for name, data in photos.items():
        (tmp_path / "images" / name).write_bytes(data)
    return tmp_path


def test_reads_every_photo_unchanged(folder, photos, read_all):
    lines = ["# photographs", "", *(f"images/{name}" for name in photos)]
    (folder / "list.txt").write_text("\n".join(lines))
    source = open_source(SourceConfig(str(folder / "list.txt")))
    assert source.shuffles
    assert source.fields() == []
    results = read_all(source)
    assert {key: result.data for key, result in results.items()} == {
        f"images/{n}": d for n, d in photos.items()
    }


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_tables_with_a_header(suffix, delimiter, folder, photos, read_all):
    rows = [("id", "filename", "class", "caption")]
    rows += [(f"n{n}", f"images/{name}", str(n), f'"{name}{delimiter} ü"') for n, name in enumerate(photos)]
    rows[1] = ("n0", rows[1][1], "", "")
    path = folder / f"list.{suffix}"
    path.write_text("\ufeff" + "\r\n".join(delimiter.join(row) for row in rows))
    source = _source(path, key_column="id", label_column="class", columns=("caption",))
    assert source.fields() == [pa.field("caption", pa.string())]
    results = read_all(source)
    assert list(results) == [f"n{number}" for number in range(10)]
    assert [result.data for result in results.values()] == list(photos.values())
    assert [result.label for result in results.values()] == [None, *range(1, 10)]
    assert results["n2"].columns == {"caption": f"life.jpg{delimiter} ü"}


def test_parquet_keeps_types(folder, photos, read_all, results_of):
    table = pa.table(
        {
            "image_path": [f"images/{name}" for name in photos],
            "label": pa.array([None, *range(9)], pa.int16()),
            "tags": pa.array([["a", "b"]] * 10),
            "score": pa.array([0.25] * 10, pa.float32()),
        }
    )
    pq.write_table(table, folder / "list.parquet", row_group_size=3)
    source = open_source(
        SourceConfig(str(folder / "list.parquet"), label_column="label", columns=("tags", "score"))
    )
    assert isinstance(source, ListSource)
    assert [field.type for field in source.fields()] == [pa.list_(pa.string()), pa.float32()]
    results = read_all(source)
    assert [result.data for result in results.values()] == list(photos.values())
    assert [result.label for result in results.values()] == [None, *range(9)]
    assert results["images/wine.jpg"].columns == {"tags": ["a", "b"], "score": 0.25}
    entries = list(source.list())
    some = [entries[7], entries[0]]
    assert [r.data for r in results_of(source, some)] == [photos["sunset.jpg"], photos["aitzgorri.jpg"]]


def test_a_list_is_not_read_again_for_its_columns(folder, results_of, monkeypatch):
    """Each slice would read the whole list; only plans of earlier releases lack what listing has found."""
    names = [f"images/{path.name}" for path in sorted((folder / "images").iterdir())]
    lines = [json.dumps({"path": name, "text": f"of {name}"}) for name in names]
    (folder / "list.jsonl").write_text("\n".join(lines))
    source = _source(folder / "list.jsonl", columns=("text",))
    entries = list(source.list())
    assert [entry.columns for entry in entries] == [{"text": f"of {name}"} for name in names]
    old = results_of(source, [entry._replace(columns=None) for entry in entries])
    monkeypatch.setattr(ListSource, "_rows", None)
    assert results_of(source, entries) == old
    assert [result.columns["text"] for result in old] == [f"of {name}" for name in names]


def test_absolute_paths_and_uris(folder, photos, read_all):
    wine, life = folder / "images/wine.jpg", folder / "images/life.jpg"
    (folder / "list.txt").write_text(f"{wine}\nfile://{life}\n")
    results = read_all(_source(folder / "list.txt"))
    assert {key: result.data for key, result in results.items()} == {
        str(wine): photos["wine.jpg"],
        f"file://{life}": photos["life.jpg"],
    }


def test_names_that_are_not_unicode(tmp_path, read_all):
    with open(bytes(tmp_path) + b"/caf\xe9.jpg", "wb") as file:
        file.write(b"data")
    (tmp_path / "list.csv").write_bytes(b"path,note\ncaf\xe9.jpg,caf\xe9\n")
    results = read_all(_source(tmp_path / "list.csv", columns=("note",)))
    assert results == {"caf\\xe9.jpg": (b"data", None, {"note": "caf\\xe9"})}


def test_missing_files_fail_alone(folder, read_all):
    (folder / "list.txt").write_text("images/life.jpg\nimages/none.jpg\nimages\n")
    results = read_all(_source(folder / "list.txt"))
    assert isinstance(results["images/none.jpg"], FileNotFoundError)
    assert isinstance(results["images"], OSError)
    assert results["images/life.jpg"].data


def test_rows_out_of_step_are_errors(tmp_path):
    (tmp_path / "list.csv").write_text("path,caption\na.jpg,x, y\nb.jpg\n\n,z\nc.jpg,z\n")
    entries = list(_source(tmp_path / "list.csv").list())
    assert [(entry.key, entry.error) for entry in entries] == [
        ("#row-0", "3 values under a header of 2"),
        ("#row-1", "1 values under a header of 2"),
        ("#row-2", "no path or no key in this row"),
        ("c.jpg", None),
    ]


@pytest.mark.parametrize(
    ("name", "contents", "options", "message"),
    [
        ("a.csv", b"x,y\n1,2\n", {}, "image_column: there are x, y"),
        ("a.csv", b"path,y\n1,2\n", {"label_column": "z"}, "no column z; there are path, y"),
        ("a.csv", b"path,y\n0,7\n1,cat\n", {"label_column": "y"}, "'cat', which is no integer"),
        ("a.csv", b"path,y\n1,99999999999\n", {"label_column": "y"}, "no integer"),
        ("a.csv", b'path\n"1\n', {}, "list cannot be read"),
        ("a.csv", b"", {}, "image_column"),
        ("a.txt", b"x.jpg\nhttps://host/y.jpg\n", {}, "not fetched from the web"),
        ("a.parquet", b"PAR1 but no more", {}, "list cannot be read"),
        ("a.txt", b"x.jpg\n", {"key_column": "id"}, "no column id; there are path"),
    ],
)
def test_lists_that_are_refused(name, contents, options, message, tmp_path):
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(UserError, match=message) as caught:
        list(_source(tmp_path / name, **options).list())
    assert "\n" not in str(caught.value)


def test_parquet_labels_must_be_integers(tmp_path):
    pq.write_table(pa.table({"path": ["a"], "label": [0.5]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="label column label holds double"):
        list(_source(tmp_path / "a.parquet", label_column="label").list())


def test_a_list_is_one_file(folder):
    for path in (folder, folder / "images" / "*"):
        with pytest.raises(UserError, match="single file"):
            list(_source(path).list())
