"""Documents of ours with any field missing, null, of another type or huge: one line, or a correct result."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqgan import codec_checkpoint
from vqgan.codec_checkpoint import read_info, save_codec
from vqgan.documents import Fields, parse_document
from vqgan.errors import UserError
from vqgan.manifest import FORMAT_VERSION, TokenManifest, check_parts, load_token_manifest, manifest_fields
from vqgan.model.parameters import codec_parameter_count
from vqgan.prior import checkpoint as prior_checkpoint
from vqgan.prior.checkpoint import read_prior
from vqgan.prior.config import prior_parameter_count
from vqgan.shards import ShardMetadata, shard_schema

REPLACEMENTS = [
    None,
    True,
    -1,
    0,
    1.5,
    float("nan"),
    10**30,
    10**400,
    "",
    "x\ny",
    "\ud800",
    [],
    [[]],
    {},
    {"": 0},
]
PATHS = {"a": {"b": 1}, "c": [1, {"d": "x"}]}
PRIOR = {
    "version": 1,
    "config": {"layers": 1, "heads": 1, "width": 8, "grid": [2, 2], "codebook_size": 4},
    "fingerprint": "f" * 64,
    "codec": {"fingerprint": "c" * 64, "name": "toy", "config": {"ch": 8}, "image_size": 4},
    "class_names": ["cat"],
    "card": {"origin": {"file": "x"}},
    "files": {"weights/a": 3},
}
SHARD = {
    "version": FORMAT_VERSION,
    "fingerprint": "f" * 64,
    "codec_config": {"ch": 8},
    "codec_origin": {},
    "grid": [2, 3],
    "codebook_size": 16,
    "preprocessing": {"geometry": {"image_size": 8}},
    "plan_hash": "p" * 64,
    "slice_number": 0,
    "slices": 1,
    "planned": 1,
    "images": 1,
    "rejects": 0,
    "sampling": {"seed": 0},
}
FILE = {"name": "tokens-0.parquet", "rows": 2, "bytes": 10, "sha256": "s" * 64}
MANIFEST = {
    "version": FORMAT_VERSION,
    "plan_hash": "p" * 64,
    "identity": {
        "preprocessing": {},
        "source": {"kind": "folder", "class_names": ["cat"]},
        "dtype": "float32",
    },
    "codec": {"name": "toy", "fingerprint": "f" * 64, "config": {}, "card": {}},
    "grid": [1, 2],
    "counts": {"planned": 2, "images": 2, "rejects": 0, "rows": 2, "tokens": 4},
    "shards": [FILE],
    "rejects": [],
    "reject_reasons": {"decode: Damaged": 1},
    "codebook": {"size": 2, "used": 2, "entropy_bits": 1.0, "perplexity": 2.0, "histogram": [3, 1]},
    "storage": {"bytes": 10, "token_bytes": 4, "bits_per_token": 8.0},
    "throughput": {"images": 2},
    "versions": {"python": "3"},
    "finished": "2026-01-01",
}


def damaged(document: Any) -> Iterator[Any]:
    """The document with each of its fields taken out or replaced, however deep it lies."""
    items = list(document.items()) if isinstance(document, dict) else list(enumerate(document))
    for place, value in items:
        for replacement in REPLACEMENTS:
            yield _with(document, place, replacement)
        if isinstance(document, dict):
            yield {name: kept for name, kept in document.items() if name != place}
        if isinstance(value, dict | list):
            yield from (_with(document, place, changed) for changed in damaged(value))


def _with(document: Any, place: Any, value: Any) -> Any:
    copy = document.copy()
    copy[place] = value
    return copy


def refusals(documents: Iterator[Any], read: Callable[[Any], Any]) -> int:
    """How many are refused; every refusal is one printable line, and nothing else is raised."""
    count = 0
    for document in documents:
        said = ""
        try:
            read(document)
        except UserError as error:
            said = str(error)
        assert len(said.splitlines()) <= 1, said
        assert len(said.encode()) < 2000
        count += bool(said)
    return count


def test_codec(toy_path: Path, tmp_path: Path) -> None:
    shutil.copy(toy_path / "codec.json", tmp_path)
    document = json.loads((tmp_path / "codec.json").read_text())
    document["files"] = dict(list(document["files"].items())[:1])

    def read(changed: Any) -> None:
        (tmp_path / "codec.json").write_text(json.dumps(changed))
        info = read_info(tmp_path)
        codec_parameter_count(info.config)
        info.card.get("origin"), info.files.items()

    read(document)
    assert refusals(damaged(document), read) > 200


def test_prior(tmp_path: Path) -> None:
    def read(changed: Any) -> None:
        (tmp_path / "prior.json").write_text(json.dumps(changed))
        info = read_prior(tmp_path)
        prior_parameter_count(info.config)

    read(PRIOR)
    assert refusals(damaged(PRIOR), read) > 150


def test_footer() -> None:
    def read(changed: Any) -> None:
        metadata = ShardMetadata.from_json(json.dumps(changed).encode(), "shard")
        shard_schema(metadata.grid, metadata.codebook_size)

    read(SHARD)
    assert refusals(damaged(SHARD), read) > 120


def test_manifest(tmp_path: Path) -> None:
    def read(changed: Any) -> TokenManifest | None:
        (tmp_path / "manifest.json").write_text(json.dumps(changed))
        manifest = load_token_manifest(str(tmp_path))
        check_parts(str(tmp_path), manifest.document)
        return manifest

    manifest = read(MANIFEST)
    assert manifest is not None
    assert manifest.histogram.tolist() == [3, 1]
    assert refusals(damaged(MANIFEST), read) > 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
READERS = ["text", "boolean", "integer", "number", "integers", "texts", "mapping", "fields", "items", "sizes"]


@given(JSON, st.sampled_from(READERS))
def test_readers_give_their_type_or_refuse(value: Any, reader: str) -> None:
    kinds = {"text": str, "boolean": bool, "integer": int, "number": float, "fields": Fields}
    kinds |= {"integers": tuple, "texts": tuple, "mapping": dict, "items": list, "sizes": dict}
    fields = Fields({"a": value}, lambda reason: UserError(f"file: {reason}"))
    with contextlib.suppress(UserError):
        assert type(getattr(fields, reader)("a")) is kinds[reader]


@given(st.binary(max_size=40))
def test_bytes_that_are_no_document(data: bytes) -> None:
    with contextlib.suppress(UserError):
        assert isinstance(parse_document(data, UserError).data, dict)


def test_messages_name_the_field() -> None:
    fields = Fields(PATHS, UserError)
    for read, message in (
        (lambda: fields.text("x"), "no 'x'"),
        (lambda: fields.fields("a").text("b"), "'a.b' is 1, expected text"),
        (lambda: fields.items("c"), "'c.0' is 1, expected an object"),
        (
            lambda: fields.fields("a").integer("b", least=2, most=3),
            "'a.b' is 1, expected a whole number from 2 to 3",
        ),
        (lambda: fields.only({"a"}), "unknown 'c'"),
        (lambda: Fields([], UserError), "it is a list of 0, expected an object"),
    ):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value) == message


# A fault of ours is not the user's


@pytest.mark.parametrize(
    "error", [KeyError("name"), TypeError("ours"), ValueError("ours"), AttributeError("ours")]
)
def test_a_mistake_of_ours_shows_as_what_it_is(
    error: Exception, toy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise error

    (tmp_path / "prior.json").write_text(json.dumps(PRIOR))
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    monkeypatch.setattr(codec_checkpoint, "from_dict", broken)
    monkeypatch.setattr(prior_checkpoint, "from_dict", broken)
    monkeypatch.setattr(ShardMetadata, "__init__", broken)
    monkeypatch.setattr(TokenManifest, "__init__", broken)
    for read in (
        lambda: read_info(toy_path),
        lambda: read_prior(tmp_path),
        lambda: load_token_manifest(str(tmp_path)),
        lambda: ShardMetadata.from_json(json.dumps(SHARD).encode(), "shard"),
    ):
        with pytest.raises(type(error)) as caught:
            read()
        assert caught.value is error


def test_fields_of_a_manifest_name_its_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json: damaged \(no 'grid'\); restore it"):
        manifest_fields(str(tmp_path), {}).integers("grid")


def test_saved_codec_is_read_back(tmp_path: Path, toy_config: Any, toy_weights: Any) -> None:
    saved = save_codec(tmp_path / "x", toy_config, toy_weights, card={"name": "é\u2028"})
    assert read_info(tmp_path / "x") == saved
