"""Decoded images are folders that other tools open with one call: imagefolder, WebDataset, Parquet."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

ROWS = 22
Decode = Callable[..., Path]
LoadDataset = Callable[..., Any]


@pytest.fixture
def decode(vqgan: Any, labelled: Path, tmp_path: Path) -> Decode:
    """Decodes the labelled data set in a form, and returns the folder of the images."""

    def decode(form: str, *flags: Any, tokens: Path = labelled) -> Path:
        where = ["--tokens", tokens, "--output", tmp_path / form, "--format", form]
        result = vqgan("decode", *where, "--batch-size", 4, "--no-report", "--quiet", *flags)
        assert result.code == 0, result.err
        return tmp_path / form

    return decode


def rows_of(output: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The index's rows by key and view."""
    paths = sorted(output.glob("*/images-*.parquet"))
    rows = [row for path in paths for row in pq.ParquetFile(path).read().to_pylist()]
    return {(row["key"], row["view"]): row for row in rows}


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def pixels_of_file(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return pixels(image)


def check_rows(loaded: Any, output: Path, columns: set[str]) -> list[tuple[str, int]]:
    """Every image once, with its columns; returns keys and views in their order."""
    expected = rows_of(output)
    found = [(row["key"], row["view"]) for row in loaded]
    assert sorted(found) == sorted(expected)
    for row in loaded:
        stored = expected[row["key"], row["view"]]
        assert {name: row[name] for name in columns} == {name: stored[name] for name in columns}
        assert row["image"].size == (stored["width"], stored["height"])
    return found


COLUMNS = {"label", "width", "height", "bytes", "sha256"}


@pytest.mark.parametrize(
    ("form", "extension"), [("png", "png"), ("webp", "webp"), ("jpeg", "jpg")], ids=["png", "webp", "jpeg"]
)
def test_files_with_their_card(
    decode: Decode, load_dataset: LoadDataset, loading: Any, form: str, extension: str
) -> None:
    """The card names one pattern, so that folders called train and test are no splits."""
    output = decode(form)
    loaded = load_dataset(output)
    assert list(loaded) == ["train"]
    assert loaded["train"].features["image"] == loading.Image()
    found = check_rows(loaded["train"], output, COLUMNS)
    assert found == list(rows_of(output)), "in the order of the shards"
    row = loaded["train"][0]
    file = output / "images" / f"{row['key']}.{extension}"
    np.testing.assert_array_equal(pixels(row["image"]), pixels_of_file(file))
    assert hashlib.sha256(file.read_bytes()).hexdigest() == row["sha256"]


@pytest.mark.parametrize("form", ["png", "webp", "jpeg"])
def test_imagefolder(
    vqgan: Any, tokenize: Any, decode: Decode, few: Path, load_dataset: LoadDataset, tmp_path: Path, form: str
) -> None:
    """Without the card, by the folder of images alone; keys and classes bear no names of splits here."""
    (few / "more").mkdir()
    for path in sorted(few.glob("*.jpg"))[:4]:
        path.rename(few / "more" / path.name)
    assert tokenize(few, "--folder-labels").code == 0
    output = decode(form, tokens=tmp_path / "out")
    loaded = load_dataset("imagefolder", data_dir=output / "images")
    assert list(loaded) == ["train"]
    check_rows(loaded["train"], output, COLUMNS)
    assert loaded["train"]["label"][:].count(0) == 4
    assert loaded["train"]["label"][:].count(None) == 6
    stream = load_dataset("imagefolder", data_dir=output / "images", streaming=True)["train"]
    check_rows(list(stream), output, COLUMNS)


def test_metadata(decode: Decode) -> None:
    """One line for each image, in the order of the shards, of the same columns."""
    output = decode("png")
    lines = [json.loads(line) for line in (output / "images" / "metadata.jsonl").read_text().splitlines()]
    assert [(line["key"], line["view"]) for line in lines] == list(rows_of(output))
    for line in lines:
        assert set(line) == {"file_name", "key", "view", *COLUMNS}
        assert (output / "images" / line["file_name"]).stat().st_size == line["bytes"]
    (entry,) = json.loads((output / "manifest.json").read_text())["metadata"]
    assert (entry["name"], entry["rows"]) == ("images/metadata.jsonl", ROWS)


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_parquet_gives_images(decode: Decode, load_dataset: LoadDataset, loading: Any, encoding: str) -> None:
    output = decode("parquet", "--image-format", encoding)
    by_card, by_files = (
        load_dataset(output),
        load_dataset("parquet", data_files=output / "data" / "*.parquet"),
    )
    for loaded in (by_card, by_files):
        assert list(loaded) == ["train"]
        assert loaded["train"].features["image"] == loading.Image()
        check_rows(loaded["train"], output, {*COLUMNS, "file"})
    stored = rows_of(output)
    for row in by_card["train"]:
        with Image.open(io.BytesIO(stored[row["key"], row["view"]]["image"]["bytes"])) as image:
            np.testing.assert_array_equal(pixels(row["image"]), pixels(image))
    stream = load_dataset(output, streaming=True)["train"]
    check_rows(list(stream), output, {*COLUMNS, "file"})


def test_parquet_column_is_the_one_that_datasets_writes(decode: Decode, loading: Any) -> None:
    """Equal with all that is nullable, or it would be taken for a struct of bytes."""
    (path, *_) = sorted(decode("parquet", "--limit", 2).glob("data/*.parquet"))
    schema = pq.read_schema(path)
    theirs = loading.Features({"image": loading.Image()}).arrow_schema
    assert schema.field("image") == theirs.field("image")
    assert schema.field("image").nullable
    assert [schema.field("image").type.field(n).nullable for n in range(2)] == [True, True]
    read = loading.Features.from_arrow_schema(schema)
    assert read["image"] == loading.Image()
    assert read.arrow_schema.types == schema.types
    required = pa.field("image", schema.field("image").type, nullable=False)
    damaged = schema.set(schema.get_field_index("image"), required)
    assert loading.Features.from_arrow_schema(damaged)["image"] != loading.Image(), "what this test is for"


@pytest.mark.parametrize("form", ["png", "tar", "parquet"])
def test_card_takes_nothing_else(decode: Decode, load_dataset: LoadDataset, form: str) -> None:
    """Index, plan and rejects are Parquet as well; a file that is put beside them is not loaded."""
    output = decode(form, "--limit", 5)
    for folder in ("index", "rejects", "plan"):
        (output / folder).mkdir(exist_ok=True)
        pq.write_table(pa.table({"key": ["other"]}), output / folder / "train.parquet")
    assert load_dataset(output)["train"].num_rows == 5


NASTY = [
    "part#1.parquet#17",
    "IMG 1.JPG",
    "猫/001.jpg",
    "__pycache__/__x__/a.jpg",
    "metadata.jsonl/a.jpg",
    "a=b,@.x",
]


@pytest.fixture
def nasty(tokenize: Any, few: Path, tmp_path: Path) -> Path:
    """Tokens of images with names that loaders of folders, globs or tars may stumble over."""
    for path, name in zip(sorted(few.glob("*.jpg")), NASTY, strict=False):
        (few / name).parent.mkdir(parents=True, exist_ok=True)
        path.rename(few / name)
    assert tokenize(few).code == 0
    return tmp_path / "out"


def test_nasty_names_in_files(decode: Decode, load_dataset: LoadDataset, nasty: Path) -> None:
    output = decode("png", tokens=nasty)
    for loaded in (load_dataset(output), load_dataset("imagefolder", data_dir=output / "images")):
        found = check_rows(loaded["train"], output, COLUMNS)
        assert {(name, 0) for name in NASTY} <= set(found)


@pytest.mark.filterwarnings(r"ignore:unclosed file <_io\.BufferedReader name='.*\.tar'>:ResourceWarning")
def test_nasty_names_in_tars(decode: Decode, nasty: Path) -> None:
    output = decode("tar", tokens=nasty)
    urls = [str(path) for path in sorted((output / "data").glob("*.tar"))]
    samples = webdataset.WebDataset(urls, shardshuffle=False).decode()
    assert [(sample["json"]["key"], sample["json"]["view"]) for sample in samples] == list(rows_of(output))


# The library leaves a tar to the garbage collector when it goes on to the next.
@pytest.mark.filterwarnings(r"ignore:unclosed file <_io\.BufferedReader name='.*\.tar'>:ResourceWarning")
@pytest.mark.parametrize(("encoding", "extension"), [("png", "png"), ("webp", "webp"), ("jpeg", "jpg")])
def test_tar_opens_with_webdataset(decode: Decode, encoding: str, extension: str) -> None:
    output = decode("tar", "--image-format", encoding)
    expected = rows_of(output)
    urls = [str(path) for path in sorted((output / "data").glob("*.tar"))]
    assert len(urls) == 3
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert len(samples) == ROWS
    assert len({sample["__key__"] for sample in samples}) == ROWS
    for sample, ((key, view), row) in zip(samples, expected.items(), strict=True):
        check_sample(sample, key, view, row, extension)


def check_sample(
    sample: Mapping[str, Any], key: str, view: int, row: Mapping[str, Any], extension: str
) -> None:
    assert sample["json"] == {"key": key, "view": view, "label": row["label"], "sha256": row["sha256"]}
    assert sample["cls"] == row["label"]
    assert f"{sample['__key__']}.{extension}" == row["file"]
    assert sample[extension].shape == (row["height"], row["width"], 3)
    assert sample[extension].dtype == np.uint8


def test_tar_opens_with_datasets(decode: Decode, load_dataset: LoadDataset, loading: Any) -> None:
    output = decode("tar")
    loaded = load_dataset(output)
    assert list(loaded) == ["train"]
    assert loaded["train"].features["png"] == loading.Image()
    assert [(row["json"]["key"], row["json"]["view"]) for row in loaded["train"]] == list(rows_of(output))
