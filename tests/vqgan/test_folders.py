"""Folders of weights and single files: whole or not at all, put back, and checked."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqgan import folders
from vqgan.errors import UserError

THING = folders.FolderKind("thing", "thing.json", 3)
ARRAYS = {"a.kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float16)}
SHAPES = {name: value.shape for name, value in ARRAYS.items()}


def publish(path: Path, text: str) -> None:
    with folders.staging(THING, path) as staging:
        (staging / "text").write_text(text)
        folders.write_document(THING, staging, {"text": text})
        folders.replace_folder(staging, path)


def test_published_and_replaced(tmp_path: Path) -> None:
    for text in ("one", "two"):
        publish(tmp_path / "new" / "x", text)
        assert (tmp_path / "new" / "x" / "text").read_text() == text
        assert os.listdir(tmp_path / "new") == ["x"]
    assert folders.read_document(THING, tmp_path / "new" / "x").data == {"version": 3, "text": "two"}


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(28, "No space left on device"), UserError),
        (ValueError("Writing failed: No space left on device\nand so on"), UserError),
        (ValueError("a mistake of ours"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_failing_write_leaves_what_was_there(
    tmp_path: Path, error: BaseException, raised: type[BaseException]
) -> None:
    publish(tmp_path / "x", "before")

    def write_half() -> None:
        with folders.staging(THING, tmp_path / "x") as staging:
            (staging / "text").write_text("half")
            raise error

    with pytest.raises(raised) as caught:
        write_half()
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x" / "text").read_text() == "before"


def test_folder_in_a_file(tmp_path: Path, refused: Any) -> None:
    (tmp_path / "file").write_text("")
    with refused("file/x: something above it is a file and no folder; name another place$"):
        publish(tmp_path / "file" / "x", "one")


def test_failing_exchange_puts_the_old_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "x", "before")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError("cannot be renamed")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(UserError, match="cannot be renamed"):
        publish(tmp_path / "x", "after")
    assert (tmp_path / "x" / "text").read_text() == "before"
    assert os.listdir(tmp_path) == ["x"]


def test_recovery_takes_the_newest_and_clears_up(tmp_path: Path) -> None:
    for age, name in enumerate((".x.1.old", ".x.2.old", ".x.3.tmp", ".y.4.tmp")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
        os.utime(tmp_path / name, (age, age))
    folders.recover_folder(tmp_path / "x")
    assert sorted(os.listdir(tmp_path)) == [".y.4.tmp", "x"]
    assert (tmp_path / "x" / "name").read_text() == ".x.2.old"
    (tmp_path / ".x.5.old").mkdir()
    folders.recover_folder(tmp_path / "x")
    assert (tmp_path / "x" / "name").read_text() == ".x.2.old"
    assert sorted(os.listdir(tmp_path)) == [".y.4.tmp", "x"]


def test_place(tmp_path: Path, refused: Any) -> None:
    folders.check_place(THING, tmp_path / "nothing")
    folders.check_place(THING, tmp_path)
    (tmp_path / "other").write_text("")
    for path in (tmp_path, tmp_path / "other"):
        with refused("thing .*: there is something else than a thing; name a folder of its own"):
            folders.check_place(THING, path)
    (tmp_path / "thing.json").write_text("damaged, but a thing")
    folders.check_place(THING, tmp_path)


def test_another_version(tmp_path: Path, refused: Any) -> None:
    (tmp_path / "thing.json").write_text(json.dumps({"version": 4}))
    with refused(r"thing\.json has format version 4, this release reads 3; upgrade"):
        folders.read_document(THING, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[3]", "{}", '{"version": "3"}', '{"version": null}', "\\ud800"])
def test_damaged_document(tmp_path: Path, text: str, refused: Any) -> None:
    (tmp_path / "thing.json").write_text(text)
    with refused(r"thing\.json cannot be read .*; copy the thing again"):
        folders.read_document(THING, tmp_path)


@pytest.mark.parametrize("value", ["absent", None, 3, [], {"a": 1}, True])
def test_fields_that_are_not_as_expected(tmp_path: Path, value: Any, refused: Any) -> None:
    fields = {"version": 3} if value == "absent" else {"version": 3, "name": value}
    (tmp_path / "thing.json").write_text(json.dumps(fields))
    read = folders.read_document(THING, tmp_path)
    with refused(r"thing\.json cannot be read \(.*'name'.*\); copy the thing again"):
        read.text("name")


def test_arrays(tmp_path: Path, refused: Any) -> None:
    folders.write_arrays(tmp_path / "weights", ARRAYS)
    sizes = folders.folder_sizes(tmp_path)
    assert sizes
    assert all((tmp_path / name).stat().st_size == size for name, size in sizes.items())
    found = folders.read_arrays(THING, tmp_path, "weights", sizes, SHAPES)
    assert found.keys() == ARRAYS.keys()
    assert all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)
    assert {value.dtype for value in found.values()} == {np.dtype("float32")}
    name = max(sizes, key=lambda name: sizes[name])
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    with refused(rf"thing .*: \S+ is {sizes[name] - 1} bytes, expected {sizes[name]} bytes; copy the thing"):
        folders.read_arrays(THING, tmp_path, "weights", sizes, SHAPES)
    with refused(r"thing .*: the weights in others/ cannot be read .*; copy the thing again"):
        folders.read_arrays(THING, tmp_path, "others", sizes, SHAPES)


def forged(folder: Path, name: str, **fields: Any) -> None:
    """An array of the folder with other metadata: TensorStore writes them, and not one number."""
    import tensorstore as ts

    kvstore = {"driver": "ocdbt", "base": f"file://{folder.absolute()}/"}
    spec = {"driver": "zarr", "kvstore": {**kvstore, "path": name}}
    metadata = {"shape": [3], "chunks": [1], "dtype": "<f4", "compressor": None, **fields}
    ts.open(spec | {"metadata": metadata}, create=True, delete_existing=True).result()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"shape": [1 << 31], "chunks": [16]}, r"b is \[2147483648\], expected \[2\]"),
        ({"shape": [2], "chunks": [1 << 31]}, r"b has chunks of \[2147483648\]"),
        ({"shape": [2, 1 << 20]}, r"b is \[2, 1048576\], expected \[2\]"),
    ],
)
def test_arrays_that_claim_more(fields: dict[str, Any], says: str, tmp_path: Path, refused: Any) -> None:
    """Reading them would take gigabytes; what they claim is compared with the configuration first."""
    folders.write_arrays(tmp_path / "weights", ARRAYS)
    forged(tmp_path / "weights", "b", **{"chunks": [1] * len(fields["shape"]), **fields})
    with refused(rf"thing .*: the weights in weights/ do not fit thing\.json: {says}; copy the thing again"):
        folders.read_arrays(THING, tmp_path, "weights", {}, SHAPES)


def test_arrays_of_other_names(tmp_path: Path, refused: Any) -> None:
    folders.write_arrays(tmp_path / "weights", ARRAYS)
    for shapes, says in (({**SHAPES, "c": (2,)}, "c is missing"), ({"b": (2,)}, "a.kernel is unknown")):
        with refused(f"do not fit thing.json: {says}"):
            folders.read_arrays(THING, tmp_path, "weights", {}, shapes)


def test_weights_that_so_small_files_cannot_be(tmp_path: Path, refused: Any) -> None:
    """Zeros compress a thousandfold, trained weights do not."""
    zeros = {"a": np.zeros((5000, 5000), np.float32)}
    folders.write_arrays(tmp_path / "weights", zeros)
    with refused(r"100,000,000 bytes of weights are claimed by files of [\d,]+; copy the thing again"):
        folders.read_arrays(THING, tmp_path, "weights", {}, {"a": (5000, 5000)})
    folders.check_expansion(folders.FREE_BYTES, 1)
    folders.check_expansion(4 * 10**9, 2 * 10**9)


def test_long_documents(tmp_path: Path, refused: Any) -> None:
    for name, says in (("thing.json", r"thing\.json cannot be read \(its 16,777,217 bytes are more than"),):
        with (tmp_path / name).open("wb") as file:
            file.truncate((16 << 20) + 1)
        with refused(says):
            folders.read_document(THING, tmp_path)
    folders.write_arrays(tmp_path / "weights", ARRAYS)
    with (tmp_path / "weights" / "_METADATA").open("wb") as file:
        file.truncate((16 << 20) + 1)
    with refused("do not fit thing.json: their description has 16,777,217 bytes"):
        folders.read_arrays(THING, tmp_path, "weights", {}, SHAPES)


def test_sums() -> None:
    """The sum of one float32 zero named ``a``, computed from the bytes that it is defined over."""
    expected = hashlib.sha256(b'{"x":2}' + b"a[1]" + b"\0\0\0\0").hexdigest()
    fields, defaults = {"x": 2, "y": 1, "dropout": 0.5}, {"x": 1, "y": 1, "dropout": 0.0}
    assert folders.config_fingerprint(fields, defaults, {"a": np.zeros(1)}) == expected


def test_arrays_do_not_name_the_folder_that_they_were_written_in(tmp_path: Path) -> None:
    folders.write_arrays(tmp_path / "part", {"a": np.ones(3, np.float32)})
    files = [path for path in (tmp_path / "part").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if str(tmp_path).encode() in path.read_bytes()]
