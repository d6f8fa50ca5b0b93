"""The safe reader: number types, views, both torch formats, and files that are damaged or hostile."""

import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from vqgan import UserError
from vqgan.importers import import_checkpoint
from vqgan.importers.containers import READERS
from vqgan.importers.torch_files import read_plain_pickle, read_torch_legacy, read_torch_zip

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("legacy", [False, True])
def test_number_types(dtype: Any, legacy: bool, foreign: Any, tmp_path: Path) -> None:
    array = np.arange(-6, 6).reshape(3, 4).astype(dtype)
    write, read = (
        (foreign.write_torch_legacy, read_torch_legacy)
        if legacy
        else (foreign.write_torch_zip, read_torch_zip)
    )
    write(tmp_path / "x.pt", {"a": array, "b": {"c": array[:0]}, "step": 3})
    tree = read(tmp_path / "x.pt")
    assert tree["step"] == 3
    assert tree["a"].dtype == array.dtype
    np.testing.assert_array_equal(tree["a"].read(), array)
    assert tree["b"]["c"].read().shape == (0, 4)


def test_shared_and_strided_storages(foreign: Any, tmp_path: Path) -> None:
    base = np.arange(24, dtype=np.float32)
    storages = foreign.Storages()
    key = storages.add(base)
    tree = {
        "transposed": storages.view(key, 0, (6, 4), (1, 6)),
        "middle": storages.view(key, 5, (3,), (2,)),
        "expanded": storages.view(key, 7, (2, 3), (0, 1)),
        "scalar": storages.view(key, 23, (), ()),
    }
    foreign.write_torch_zip(tmp_path / "x.pt", tree, storages)
    found = {name: tensor.read() for name, tensor in read_torch_zip(tmp_path / "x.pt").items()}
    np.testing.assert_array_equal(found["transposed"], base.reshape(4, 6).T)
    np.testing.assert_array_equal(found["middle"], base[5:11:2])
    np.testing.assert_array_equal(found["expanded"], np.stack([base[7:10]] * 2))
    assert found["scalar"] == 23


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (25,), (1,)), (20, (5,), (1,)), (-1, (2,), (1,)), (0, (2, 2), (1,)), (0, (1 << 40,), (0,))],
)
def test_views_outside_of_their_storage_are_refused(
    offset: int, shape: Any, strides: Any, foreign: Any, tmp_path: Path
) -> None:
    storages = foreign.Storages()
    key = storages.add(np.arange(24, dtype=np.float32))
    foreign.write_torch_zip(tmp_path / "x.pt", {"a": storages.view(key, offset, shape, strides)}, storages)
    with pytest.raises(UserError, match="damaged"):
        read_torch_zip(tmp_path / "x.pt")


def test_unknown_classes_are_inert(foreign: Any, tmp_path: Path) -> None:
    unknown = foreign.Call(foreign.Ref("argparse", "Namespace"), ())
    tree = {"args": unknown, "a": np.ones(2, np.float32), foreign.Ref("pytorch_lightning.x", "Y"): 1}
    foreign.write_torch_zip(tmp_path / "x.pt", tree)
    found = read_torch_zip(tmp_path / "x.pt")
    assert repr(found["args"]) == "<argparse.Namespace>"
    np.testing.assert_array_equal(found["a"].read(), [1, 1])


class _Attack:
    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


ATTACKS = {
    "posix.system": (os.system, "touch HACKED"),
    "eval": (eval, "open('HACKED', 'w')"),
    "exec": (exec, "open('HACKED', 'w')"),
    "Popen": (subprocess.Popen, ["touch", "HACKED"]),
    "open": (open, "HACKED", "w"),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("container", ["pickle", "zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_is_refused_by_name(
    name: str, container: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    payload = pickle.dumps({"params": _Attack(*ATTACKS[name])}, protocol)
    path = tmp_path / "attack.ckpt"
    if container == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", payload)
    else:
        head = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
        path.write_bytes(payload if container == "pickle" else head + payload)
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as error:
        import_checkpoint(str(path))
    assert "can run code" in str(error.value)
    assert not (tmp_path / "HACKED").exists()


def test_indirect_calls_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import functools
    import operator

    monkeypatch.chdir(tmp_path)
    attack = _Attack(functools.reduce, _Attack(getattr, "x", "upper"), _Attack(operator.attrgetter, "y"))
    (tmp_path / "p").write_bytes(pickle.dumps({"a": attack}, 2))
    assert repr(read_plain_pickle(tmp_path / "p")["a"]) in ("<_functools.reduce>", "<__builtin__.reduce>")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numpy_pickles(protocol: int, tmp_path: Path) -> None:
    from vqgan.importers.pickle_constructors import flatten_tensors

    arrays = {
        "c": np.arange(6, dtype=np.float32).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)),
        "big": np.arange(3, dtype=">f8"),
        "bf": np.arange(4).astype(ml_dtypes.bfloat16),
    }
    if protocol == 5:
        del arrays["bf"]  # its buffer has no format that NumPy could pickle in this protocol
    (tmp_path / "p").write_bytes(pickle.dumps({"x": arrays, "n": np.float32(2)}, protocol))
    found = flatten_tensors(read_plain_pickle(tmp_path / "p"))
    assert found.keys() == {f"x.{name}" for name in arrays}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[f"x.{name}"].read(), array)


def test_bombs_end_quickly(tmp_path: Path) -> None:
    nested = b"\x80\x02" + b"}q\x00X\x01\x00\x00\x00ah\x00s."  # a dictionary inside itself
    hashes = b"\x80\x02}" + b")" + b"2\x86" * 60 + b"Ns."  # a key whose hash takes 2**60 steps
    forged = b"\x80\x04B\xff\xff\xff\x7fabc."  # two gigabytes announced
    memo = b"\x80\x02}r\xff\xff\xff\x7f."
    for data in (nested, hashes, forged, memo, b"\x80\x02" + b"(" * 100000 + b"."):
        (tmp_path / "p").write_bytes(data)
        with pytest.raises(UserError):
            import_checkpoint(str(tmp_path / "p"))


@pytest.mark.parametrize("kind", ["taming", "legacy", "lwm", "diffusers", "maskgit", "open-magvit2", "janus"])
def test_damaged_files_give_an_error_or_load(kind: str, foreign: Any, tmp_path: Path) -> None:
    path, *_ = foreign.write("taming" if kind == "legacy" else kind, tmp_path)
    if kind == "legacy":
        config = foreign.config_for("taming")
        tensors = foreign.foreign_tensors("taming", config, foreign.random_weights(config))
        foreign.write_torch_legacy(path, {"state_dict": tensors})
    original = path.read_bytes()
    rng = random.Random(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes, lines = [0, 0], 0
    for _ in range(40):
        path.write_bytes(_mutated(original, rng))
        try:
            import_checkpoint(str(path))
            outcomes[0] += 1
        except UserError as error:
            outcomes[1] += 1
            lines = max(lines, str(error).count("\n"))
    assert outcomes[1] > 0
    assert lines == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def _mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes cut short, or with flipped bits anywhere or near either end, where structure stands."""
    size = len(data)
    choice = rng.randrange(4)
    if choice == 0:
        return data[: rng.randrange(size)]
    mutated = bytearray(data)
    span = size if choice == 1 else min(size, 20_000)
    for _ in range(rng.choice([1, 1, 3, 20])):
        position = rng.randrange(span)
        position = size - 1 - position if choice == 3 else position
        mutated[position] ^= 1 << rng.randrange(8)
    return bytes(mutated)


def test_flipped_bits_in_the_weights_of_a_zip_are_noticed(foreign: Any, tmp_path: Path) -> None:
    path, *_ = foreign.write("llamagen", tmp_path)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("archive/data/4").header_offset + 100
    data[offset] ^= 4
    path.write_bytes(data)
    with pytest.raises(UserError, match="check sum"):
        import_checkpoint(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"PK\x03\x04 and no more", "damaged"),
        (b"\x80\x04}\x94.", "without tensors"),
        (struct.pack("<Q", 100) + b"{", "first bytes"),
        (b"hello world, I am a text", "first bytes are 68 65"),
    ],
)
def test_files_that_are_no_checkpoint(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        import_checkpoint(str(tmp_path / "x.ckpt"))


MEASURE = """
import resource, sys
from vqgan.importers import import_checkpoint
from vqgan.importers.containers import READERS
from vqgan.importers.containers import sniff
import yaml, msgpack, safetensors.numpy
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = import_checkpoint(sys.argv[1])
assert "jax" not in sys.modules
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("kind", ["taming", "lwm", "diffusers", "vqgan-jax"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_peak_memory(kind: str, dtype: Any, foreign: Any, tmp_path: Path) -> None:
    config = foreign.ModelConfig(
        **{**foreign.BASE, **foreign.CONFIGS[kind], "ch": 128, "stem_channels": None}
    )
    weights = foreign.random_weights(config)
    tensors = {n: t.astype(dtype) for n, t in foreign.foreign_tensors(kind, config, weights).items()}
    path = tmp_path / "file"
    if kind == "taming":
        foreign.write_torch_zip(path, {"state_dict": tensors})
    elif kind == "diffusers":
        foreign.write_safetensors(path, tensors)
    else:
        data = pickle.dumps if kind == "lwm" else foreign.msgpack_bytes
        path.write_bytes(data(foreign.nest(tensors)))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert int(done.stdout) < 2.5 * path.stat().st_size + (8 << 20)


# A fault of ours is not the file's


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle", "msgpack", "safetensors"])
@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), ValueError("x"), IndexError("x")])
def test_a_mistake_of_ours_shows_as_what_it_is(
    container: str, error: Exception, foreign: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise error

    path, tree = tmp_path / "x", {"a": np.ones((2, 3), np.float32)}
    if container == "zip":
        foreign.write_torch_zip(path, tree)
    elif container == "legacy":
        foreign.write_torch_legacy(path, tree)
    elif container == "safetensors":
        foreign.write_safetensors(path, tree)
    else:
        path.write_bytes(pickle.dumps(tree, 2) if container == "pickle" else foreign.msgpack_bytes(tree))
    if container in ("zip", "legacy"):
        monkeypatch.setattr("vqgan.importers.pickle_constructors.check_repeats", broken)
    elif container == "pickle":
        monkeypatch.setattr("vqgan.importers.pickle_constructors._array", broken)
    else:
        monkeypatch.setattr("vqgan.importers.containers.dtype_named", broken)
    name = {"zip": "torch zip", "legacy": "torch legacy"}.get(container, container)
    with pytest.raises(type(error)) as caught:
        READERS[name](path)
    assert caught.value is error


def _pickled(*instructions: bytes) -> bytes:
    return b"\x80\x02" + b"".join(instructions) + b"."


_NAME = b"cnumpy\ndtype\n"
_ARRAY = b"cnumpy\nndarray\n)R"


@pytest.mark.parametrize(
    "data",
    [
        _pickled(),
        _pickled(b"0"),
        _pickled(b"1"),
        _pickled(b"t"),
        _pickled(b"q\x00"),
        _pickled(b"h\x07"),
        _pickled(b"(o"),
        _pickled(b"NR"),
        _pickled(_NAME, b")R"),  # too few arguments
        _pickled(_NAME, b"K\x01\x85R"),
        _pickled(_NAME, b"X\x02\x00\x00\x00f9\x85R"),
        _pickled(_NAME, b"X\x05\x00\x00\x00(2,3f\x85R"),
        _pickled(_ARRAY, b"Nb"),
        _pickled(_ARRAY, b"(K\x01K\x02NNNtb"),
        _pickled(_ARRAY, b"(K\x01K\x02", _NAME, b"X\x02\x00\x00\x00f4\x85RNC\x03abctb"),
        _pickled(b"c_codecs\nencode\n", b"X\x02\x00\x00\x00\xc4\x80\x85R"),
        _pickled(b"ccollections\nOrderedDict\n", b"]K\x01a\x85R"),
        _pickled(b"ctorch._utils\n_rebuild_tensor_v2\n", b"(NNNNtR"),
    ],
)
def test_pickles_that_say_what_no_checkpoint_says(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(data)
    with pytest.raises(UserError, match="the checkpoint is damaged") as caught:
        read_plain_pickle(tmp_path / "p")
    assert "\n" not in str(caught.value)


def test_wrappers_within_wrappers_are_refused(tmp_path: Path) -> None:
    wrap = b"ctorch._tensor\n_rebuild_from_type_v2\n"
    for depth in (1, 3000):
        arguments = (b"(" + wrap + b"N") * depth + b")" + b"Nt" * depth
        data = _pickled(wrap, arguments, b"R")
        (tmp_path / "p").write_bytes(data)
        with pytest.raises(UserError, match="damaged"):
            import_checkpoint(str(tmp_path / "p"))


@pytest.mark.parametrize(
    "tree",
    [
        {"shape": {"0": 3}, "chunks": {"0": np.ones(2, np.float32)}},
        {"shape": {"1": 3}, "chunks": {"0": np.ones(3, np.float32)}},
        {"shape": {"0": 3}, "chunks": {"0": "text"}},
        {"shape": {"0": "3"}, "chunks": {"0": np.ones(3, np.float32)}},
        {"shape": {"0": 3}},
    ],
)
def test_arrays_in_parts_that_do_not_fit(tree: Any, foreign: Any, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(foreign.msgpack_bytes({"a": {"__msgpack_chunked_array__": True, **tree}}))
    with pytest.raises(UserError, match="the checkpoint is damaged"):
        READERS["msgpack"](tmp_path / "x")
