import os
from collections import Counter
from pathlib import Path

import pytest
from pyarrow import fs

from transforms.sources import (
    SourceConfig,
    locations,
    open_source,
)
from transforms.sources.folder import FolderSource
from vqgan.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, photos: dict[str, bytes]) -> Path:
    """Two classes, a nested folder, a file in the root and things that are hidden."""
    files = {
        "b/life.jpg": photos["life.jpg"],
        "a/wine.jpg": photos["wine.jpg"],
        "a/deep/er/umang.jpg": photos["umang.jpg"],
        "sunset.jpg": photos["sunset.jpg"],
        "a/README": b"no image",
        ".git/config": b"hidden",
        "a/.DS_Store": b"hidden",
    }
    for name, data in files.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)
    return tmp_path / "set"


def _source(path: object, folder_labels: bool = False) -> FolderSource:
    return FolderSource(SourceConfig(str(path), folder_labels=folder_labels))


def _keys(path: object) -> list[str]:
    return [entry.key for entry in _source(path).list()]


def test_reads_every_photo_unchanged(photos, read_all):
    source = open_source(SourceConfig(str(Path(__file__).parents[2] / "testdata/photos")))
    results = read_all(source)
    assert source.shuffles
    assert results.pop("ATTRIBUTION.md").data.startswith(b"#")
    assert {key: result.data for key, result in results.items()} == photos


def test_lists_all_that_is_not_hidden(folder):
    entries = list(_source(folder).list())
    keys = [entry.key for entry in entries]
    assert keys == ["a/README", "a/deep/er/umang.jpg", "a/wine.jpg", "b/life.jpg", "sunset.jpg"]
    assert all(entry.size == (folder / entry.key).stat().st_size for entry in entries)
    assert all(entry.label is None and entry.error is None for entry in entries)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_metadata_of_an_imagefolder_is_no_image(folder, ending):
    """Decoded images lie beside such a file, and so do many data sets of the Hub."""
    before = _keys(folder)
    (folder / f"metadata.{ending}").write_text("x")
    (folder / "a" / f"metadata.{ending}").write_text("x")
    (folder / f"my-metadata.{ending}").write_text("x")
    assert _keys(folder) == sorted([*before, f"my-metadata.{ending}"])


def test_keys_do_not_depend_on_where_the_folder_is(folder, tmp_path, monkeypatch):
    expected = _keys(folder)
    folder.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert _keys("elsewhere") == _keys("./elsewhere/") == expected


def test_labels_are_numbers_of_the_first_level_folders(folder):
    source = _source(folder, folder_labels=True)
    assert source.class_names() == ["a", "b"]
    assert {entry.key: entry.label for entry in source.list()} == {
        "a/README": 0,
        "a/deep/er/umang.jpg": 0,
        "a/wine.jpg": 0,
        "b/life.jpg": 1,
        "sunset.jpg": None,
    }
    assert _source(folder).class_names() is None


def test_a_glob_keeps_the_numbers_of_all_classes(folder):
    source = _source(folder / "b*" / "*.jpg", folder_labels=True)
    assert [(entry.key, entry.label) for entry in source.list()] == [("b/life.jpg", 1)]


def test_labels_need_subfolders(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="no subfolders"):
        list(_source(tmp_path, folder_labels=True).list())


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [
        ("*.jpg", ["sunset.jpg"]),
        ("*/*.jpg", ["a/wine.jpg", "b/life.jpg"]),
        ("**/*.jpg", ["a/deep/er/umang.jpg", "a/wine.jpg", "b/life.jpg", "sunset.jpg"]),
        ("a/**", ["README", "deep/er/umang.jpg", "wine.jpg"]),
        ("[ab]/*.jpg", ["a/wine.jpg", "b/life.jpg"]),
        ("{b,a}/*.jpg", ["a/wine.jpg", "b/life.jpg"]),
        ("{b,a}", ["b/life.jpg", "a/README", "a/deep/er/umang.jpg", "a/wine.jpg"]),
        ("{sunset,a/wine}.jpg", ["sunset.jpg", "a/wine.jpg"]),
        ("{a,a/deep}", ["a/README", "a/deep/er/umang.jpg", "a/wine.jpg"]),
        ("a/w?ne.jpg", ["wine.jpg"]),
    ],
)
def test_globs(folder, pattern, keys):
    assert _keys(folder / pattern) == keys


def test_one_image_is_an_input_too(folder, read_all, photos):
    results = read_all(_source(folder / "a" / "wine.jpg"))
    assert {key: result.data for key, result in results.items()} == {"wine.jpg": photos["wine.jpg"]}


def test_a_name_with_glob_characters_is_taken_as_it_is(tmp_path):
    (tmp_path / "pic[1]{a,b}.jpg").write_bytes(b"x")
    assert _keys(tmp_path / "pic[1]{a,b}.jpg") == ["pic[1]{a,b}.jpg"]


def test_an_empty_folder_yields_nothing(tmp_path):
    assert list(open_source(SourceConfig(str(tmp_path))).list()) == []


def test_names_that_are_not_unicode(tmp_path, read_all):
    names = [b"caf\xe9.jpg", "café.jpg".encode(), b"caf\\xe9.jpg", b"%:caf%E9.jpg", b"new\nline.jpg"]
    for name in names:
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(name)
    results = read_all(_source(tmp_path))
    assert Counter(result.data for result in results.values()) == Counter(names)
    assert results["caf\\xe9.jpg"].data == b"caf\xe9.jpg"
    for entry in _source(tmp_path).list():
        assert (entry.key + entry.file).encode()  # Parquet can store it


def test_links_are_followed_without_looping(folder):
    (folder / "a" / "back").symlink_to(folder)
    (folder / "a" / "self").symlink_to(".")
    (folder / "again").symlink_to("b")
    (folder / "one.jpg").symlink_to("sunset.jpg")
    keys = _keys(folder)
    assert "again/life.jpg" in keys
    assert "one.jpg" in keys
    assert len(keys) == 7
    assert len(_keys(folder / "**")) == 7


def test_what_cannot_be_read_is_an_entry_with_an_error(folder):
    (folder / "broken.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe")
    errors = {entry.key: entry.error for entry in _source(folder).list() if entry.error}
    assert errors == {
        "broken.jpg": "cannot be read (No such file or directory)",
        "pipe": "neither a file nor a folder",
    }


def test_a_folder_without_permission_is_an_entry_with_an_error(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    entries = {entry.key: entry.error for entry in _source(folder).list()}
    assert entries == {
        "a": "folder cannot be read (Permission denied)",
        "b/life.jpg": None,
        "sunset.jpg": None,
    }


def test_a_file_that_went_away_fails_alone(folder, results_of):
    source = _source(folder)
    entries = list(source.list())
    (folder / "a/wine.jpg").unlink()
    results = dict(zip((entry.key for entry in entries), results_of(source, entries), strict=True))
    assert isinstance(results.pop("a/wine.jpg"), FileNotFoundError)
    assert not any(isinstance(result, Exception) for result in results.values())


def test_remote_folders(folder, monkeypatch, read_all, photos):
    remote = fs.SubTreeFileSystem(str(folder.parent), fs.LocalFileSystem())
    local = [(e.key, e.size, e.label) for e in _source(folder, folder_labels=True).list()]
    monkeypatch.setattr(locations, "resolve", lambda path: (remote, path.removeprefix("mem://").rstrip("/")))
    source = FolderSource(SourceConfig("mem://set", folder_labels=True))
    assert source.class_names() == ["a", "b"]
    assert [(e.key, e.size, e.label) for e in source.list()] == local
    assert read_all(source)["b/life.jpg"].data == photos["life.jpg"]
    assert _keys("mem://set/*/*.jpg") == ["a/wine.jpg", "b/life.jpg"]
    assert _keys("mem://set/sunset.jpg") == ["sunset.jpg"]
    with pytest.raises(UserError, match=r"did you mean set/sunset\.jpg"):
        _keys("mem://set/sunrise.jpg")


def test_columns_are_refused(folder):
    with pytest.raises(UserError, match="columns"):
        FolderSource(SourceConfig(str(folder), columns=("txt",))).fields()
    assert _source(folder).fields() == []
