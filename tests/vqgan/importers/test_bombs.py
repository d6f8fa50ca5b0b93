"""Small files that claim much: each is refused before memory or time is spent on it."""

import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqgan import UserError
from vqgan.config_json import to_dict
from vqgan.importers import import_checkpoint
from vqgan.importers.torch_files import read_plain_pickle

MEMORY = 768 << 20  # beyond what the imported modules take: a tenth of what the least of the bombs would fill


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def global_(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def pickled(*instructions: bytes) -> bytes:
    return b"\x80\x04" + b"".join(instructions) + b"."


def in_zip(structure: bytes, *storages: bytes) -> dict[str, bytes]:
    members = {f"archive/data/{number}": data for number, data in enumerate(storages)}
    return {"archive/data.pkl": structure, **members}


def storage_id(key: bytes, count: int) -> bytes:
    """The reference to a storage of float32, and the tensor that is the whole of it."""
    kind = global_("torch", "FloatStorage")
    identity = b"(" + text("storage") + kind + key + text("cpu") + b"J" + struct.pack("<i", count) + b"tQ"
    size = b"J" + struct.pack("<i", count)
    return (
        global_("torch._utils", "_rebuild_tensor_v2") + b"(" + identity + b"K\x00" + size + b"\x85K\x01\x85"
        b"\x89" + global_("collections", "OrderedDict") + b")RtR"
    )


def many(count: int, start: bytes, end: bytes, key: Any = lambda n: b"J" + struct.pack("<i", n)) -> bytes:
    """A mapping of many numbers, in the memo as 0."""
    return start + b"q\x00(" + b"".join(key(number) + b"N" for number in range(count)) + end


GET = b"h\x00"
MAPPING = many(50_000, b"}", b"u")
LIST = many(100_000, b"]", b"e")
TEXT = text("x" * 1_000_000) + b"q\x00"
NESTED = b"}q\x00" + b"".join(
    b"}("
    + b"".join(text(str(part)) + b"h" + bytes([depth]) for part in range(20))
    + b"uq"
    + bytes([depth + 1])
    for depth in range(20)
)
PICKLES = {
    "many instructions": (pickled(b"}0" * 600_000), "more than 1,000,000 instructions"),
    "copies of a mapping": (
        pickled(MAPPING, (global_("builtins", "dict") + GET + b"\x85R") * 20_000),
        "it makes much more than it holds",
    ),
    "copies of a list": (
        pickled(LIST, (global_("builtins", "tuple") + GET + b"\x85R") * 20_000),
        "it makes much more than it holds",
    ),
    "copies of a text": (
        pickled(TEXT, (global_("_codecs", "encode") + GET + text("latin1") + b"\x86R") * 20_000),
        "it makes much more than it holds",
    ),
    "copies in arrays": (
        pickled(
            TEXT,
            global_("numpy", "dtype") + text("u1") + b"\x85Rq\x01",
            global_("numpy", "ndarray") + b")R",
            (b"(K\x01J" + struct.pack("<i", 1_000_000) + b"\x85h\x01\x89h\x00tb") * 20_000,
        ),
        "it makes much more than it holds",
    ),
    "mappings in mappings": (pickled(NESTED), "nested without end"),
    "a long name": (pickled(text("x" * 100_000), text("y"), b"\x93"), "a name of 100,001 characters"),
    "a long key": (pickled(b"}(", text("k" * 5000), b"}uq\x00"), "a key of 5,000 characters"),
    "a long number": (pickled(b"\x8b" + struct.pack("<i", 1 << 20), b"\x7f" * (1 << 20)), "8,388,607 bits"),
}
ZIPS = {
    "a long structure": (in_zip(pickled(b"}0" * (40 << 20))), "its structure claims 83,886,083 bytes"),
    "many instructions, compressed": (in_zip(pickled(b"}0" * (10 << 20))), "1,000,000 instructions"),
    "zeros": (
        in_zip(pickled(b"}", text("a"), storage_id(text("0"), 25 << 20), b"s"), bytes(100 << 20)),
        r"104,857,\d+ bytes of weights are claimed by files of",
    ),
    "a long key of a storage": (in_zip(pickled(storage_id(text("0" * 300), 1))), "a storage without a key"),
}


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, each a file of a few megabytes at most."""
    folder = tmp_path_factory.mktemp("bombs")
    for name, (data, _) in PICKLES.items():
        (folder / name).write_bytes(data)
    for name, (members, _) in ZIPS.items():
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
    with (folder / "a long header").open("wb") as file:
        file.write(struct.pack("<Q", 90 << 20) + b"{")
        file.truncate(100 << 20)
    (folder / "many lists").write_bytes(b"\x82\xa1a" + _lists(600_000) + b"\xa1b" + _lists(600_000))
    assert all(path.stat().st_blocks * 512 < 8 << 20 for path in folder.iterdir())
    return folder


def _lists(count: int) -> bytes:
    return b"\xdd" + struct.pack(">I", count) + b"\x90" * count


READ = """
import json, resource, sys
from pathlib import Path
import ml_dtypes, msgpack, safetensors, yaml
from vqgan import UserError
from vqgan.config_json import to_dict
from vqgan.importers import import_checkpoint
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
found = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        import_checkpoint(str(path))
        found[path.name] = "imported"
    except UserError as error:
        found[path.name] = str(error)
    except BaseException as error:
        found[path.name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""
EXPECTED = {name: says for name, (_, says) in {**PICKLES, **ZIPS}.items()} | {
    "a long header": "its header claims 94,371,840 bytes",
    "many lists": "it has more than 1,000,000 mappings or lists",
}


@pytest.fixture(scope="module")
def answers(bombs: Path) -> dict[str, str]:
    """What reading each says, in a process that cannot have much memory."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(bombs), str(MEMORY)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", EXPECTED)
def test_bomb(name: str, answers: dict[str, str], bombs: Path) -> None:
    assert answers.keys() == EXPECTED.keys()
    assert answers[name].startswith(f"{bombs / name}: ")
    assert re.search(EXPECTED[name], answers[name]), answers[name]
    assert len(answers[name].splitlines()) == 1
    assert len(answers[name]) < 1000


def test_what_real_files_do_is_within_the_limits(tmp_path: Path) -> None:
    """Arrays that are stored as text, as protocol 2 has them, are copied once each."""
    arrays = {str(number): np.arange(500_000, dtype=np.float32) + number for number in range(40)}
    (tmp_path / "x").write_bytes(pickle.dumps(arrays, protocol=2))
    found = read_plain_pickle(tmp_path / "x")
    assert all(np.array_equal(found[name].array, arrays[name]) for name in arrays)


# Configurations beside weights

ANCHORS = "a0: &a0 [1, 1]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}]}}\n" for level in range(1, 12)
)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (ANCHORS, "its anchors stand for more values"),
        (MERGES, "its anchors stand for more values"),
        ("a: &a [*a]\n", "its anchors stand for more values|recursive"),
        ("# " + "x" * 300_000, "too large for a configuration"),
        ("[" * 50_000, "config.yaml: cannot be read as a configuration"),
    ],
)
def test_yaml(config: str, says: str, foreign: Any, tmp_path: Path) -> None:
    weights, _, _ = foreign.write("taming", tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(UserError, match=says) as caught:
        import_checkpoint(str(weights))
    assert "\n" not in str(caught.value)


def test_anchors_as_people_use_them(foreign: Any, tmp_path: Path) -> None:
    path, _, _ = foreign.write("taming", tmp_path)
    (tmp_path / "config.json").unlink()
    expected = import_checkpoint(str(path)).config
    (tmp_path / "config.yaml").write_text("a: &a {k: [1, 2, 3]}\nb: {<<: *a, other: 2}\nc: *a\n")
    assert import_checkpoint(str(path)).config == expected


@pytest.mark.parametrize("name", ["ch", "z_channels", "embed_dim", "codebook_size", "resolution"])
def test_an_architecture_that_the_file_cannot_hold(name: str, foreign: Any, tmp_path: Path) -> None:
    """What a file says of itself: our export's metadata here."""
    config = foreign.config_for("taming")
    tensors = foreign.foreign_tensors("taming", config, foreign.random_weights(config))
    fields = {**to_dict(config), "norm_groups": 1, name: 1 << 40}
    _write_safetensors(tmp_path / "x.safetensors", tensors, {"vqgan": json.dumps({"config": fields})})
    with pytest.raises(UserError, match=r"at most|tokens are int32"):
        import_checkpoint(str(tmp_path / "x.safetensors"))


def _write_safetensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, metadata)
