"""``vqgan verify --repair`` makes damaged shards again, to the same bytes; ``vqgan merge`` joins sets."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines import cli
from pipelines.data_sets import merging, repair
from tests.pipelines.test_tokenize_images import everything, shards
from transforms.tokenizing import shard
from vqgan.data.tokens import open_tokens

from .conftest import Vqgan

Manifest = Callable[[Path], dict[str, Any]]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, photos: Path, codec_path: str) -> Path:
    """A folder with an input and its data set of three parts: one appended, one retried; do not change it."""
    root = tmp_path_factory.mktemp("parts")
    (root / "in").mkdir()
    found = sorted(photos.iterdir())
    for path in found[:6]:
        shutil.copy(path, root / "in")
    (root / "in" / "mended.jpg").write_bytes(b"no image")
    (root / "in" / "broken.jpg").write_bytes(b"no image")
    where = ["--input", root / "in", "--output", root / "out", "--codec", codec_path, "--slice-size", 4]
    argv = ["tokenize", *where, "--batch-size", 4, "--no-report", "--quiet"]
    assert cli.main([str(word) for word in argv]) == 0
    shutil.copy(found[6], root / "in")
    assert cli.main([str(word) for word in (*argv, "--append")]) == 0
    shutil.copy(found[7], root / "in" / "mended.jpg")
    assert cli.main(["retry", str(root / "out"), "--quiet"]) == 0
    return root


@pytest.fixture
def damaged(parts: Path, tmp_path: Path) -> Path:
    """A copy of the data set, to be damaged."""
    shutil.copytree(parts / "out", tmp_path / "out")
    return tmp_path / "out"


def test_shards_are_made_again(damaged: Path, vqgan: Vqgan) -> None:
    before = shards(damaged)
    assert any("rejects/" in name for name in before)
    for number, name in enumerate(sorted(before)):
        if number % 2:
            (damaged / name).unlink()
        else:
            flip(damaged / name)
    repaired = vqgan("verify", "--repair", damaged)
    assert repaired.out.splitlines()[-1] == "ok"
    assert shards(damaged) == before
    state = everything(damaged)
    assert vqgan("verify", "--repair", damaged).code == 0
    assert everything(damaged) == state  # nothing is written where nothing is wrong


def test_an_image_that_was_mended_does_not_enter_its_old_shard(damaged: Path, vqgan: Vqgan) -> None:
    """Its former reject holds, though it can be read now."""
    names = [name for name in shards(damaged) if "-part-" not in name]
    before = shards(damaged)
    for name in names:
        (damaged / name).unlink()
    assert vqgan("verify", "--repair", damaged).code == 0
    assert shards(damaged) == before


def test_a_repair_says_what_came_out_otherwise(
    damaged: Path, vqgan: Vqgan, tmp_path: Path, parts: Path
) -> None:
    shutil.copytree(parts / "in", tmp_path / "in")
    lost = damaged / "data" / "tokens-00000-of-00002.parquet"
    (key, *_) = pq.read_table(lost).column("key").to_pylist()
    others = sorted(path for path in (tmp_path / "in").iterdir() if path.name not in (key, "broken.jpg"))
    data = (tmp_path / "in" / key).read_bytes()
    replacement = others[0].read_bytes()[: len(data)].ljust(len(data), b"\0")  # of the same size
    (tmp_path / "in" / key).write_bytes(replacement)
    lost.unlink()
    found = vqgan("verify", "--repair", damaged, "--input", tmp_path / "in")
    assert found.code == 1
    assert "data/tokens-00000-of-00002.parquet: made again, but not to the same bytes" in found.out


@pytest.fixture
def without_rejects(tokenize: Vqgan, few: Path, tmp_path: Path) -> tuple[Path, str]:
    """A data set that has lost a file of rejects, and that file's name."""
    (few / "broken.jpg").write_bytes(b"no image".ljust(5000))
    assert tokenize(few).code == 0
    (lost,) = (name for name in shards(tmp_path / "out") if name.startswith("rejects/"))
    (tmp_path / "out" / lost).unlink()
    return tmp_path / "out", lost


def test_a_shard_that_lost_nothing_stays(without_rejects: tuple[Path, str], vqgan: Vqgan, few: Path) -> None:
    """Whatever has become of the input."""
    out, lost = without_rejects
    before = shards(out)
    few.rename(few.with_name("elsewhere"))
    assert "check the path of the input" in vqgan("verify", "--repair", out).err
    assert shards(out) == before
    few.with_name("elsewhere").rename(few)
    for path in few.iterdir():
        path.write_bytes(path.read_bytes() if path.name == "broken.jpg" else b"\0" * path.stat().st_size)
    assert vqgan("verify", "--repair", out).code == 0
    assert shards(out).keys() - before.keys() == {lost}
    assert before.items() <= shards(out).items()


def test_a_reject_that_is_mended_is_not_lost(
    without_rejects: tuple[Path, str], vqgan: Vqgan, few: Path, photos: Path
) -> None:
    out, _ = without_rejects
    before = shards(out)
    (few / "broken.jpg").write_bytes(sorted(photos.iterdir())[3].read_bytes().ljust(5000))
    assert "'broken.jpg' was rejected, and can be read now" in vqgan("verify", "--repair", out).err
    assert shards(out) == before


def test_a_repair_from_another_input(damaged: Path, vqgan: Vqgan, tmp_path: Path, parts: Path) -> None:
    """Nothing takes the place of a damaged shard that would have other images."""
    shutil.copytree(parts / "in", tmp_path / "in")
    for path in (tmp_path / "in").iterdir():
        path.write_bytes(b"\0" * path.stat().st_size)
    for name in shards(damaged):
        flip(damaged / name)
    before = shards(damaged)
    said = vqgan("verify", "--repair", damaged, "--input", tmp_path / "in").err
    assert "3 rejects where there were" in said or "4 rejects where there were" in said
    assert shards(damaged) == before
    assert vqgan("verify", "--repair", damaged).code == 0


def test_a_repair_is_continued(
    damaged: Path, parts: Path, vqgan: Vqgan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in shards(damaged):
        flip(damaged / name)
    names = shards(damaged).keys()
    with monkeypatch.context() as patched:
        patched.setattr(shard, "_check_rejects", lambda *_: 1 / 0)  # just before anything is in place
        with pytest.raises(ZeroDivisionError):
            vqgan("verify", "--repair", damaged)
    assert names == shards(damaged).keys()
    with monkeypatch.context() as patched:
        patched.setattr(repair, "delete_superseded", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            vqgan("verify", "--repair", damaged)
    assert "belongs to no manifest entry" in vqgan("verify", damaged).out
    assert vqgan("verify", "--repair", damaged).code == 0
    assert shards(damaged) == shards(parts / "out")


def test_what_cannot_be_repaired(damaged: Path, vqgan: Vqgan, other_codec: str) -> None:
    (damaged / "data" / "tokens-00000-of-00002.parquet").unlink()
    assert "codec.fingerprint" in vqgan("verify", "--repair", damaged, "--codec", other_codec).line
    (damaged / "plan" / "run.yaml").unlink()
    assert "no plan/run.yaml that tells how it was made" in vqgan("verify", "--repair", damaged).line
    flip(damaged / "plan" / "keys-00000.parquet")
    assert "has changed since it was written" in vqgan("verify", "--repair", damaged).line
    (damaged / "manifest.json").unlink()
    assert "not finished" in vqgan("verify", "--repair", damaged).line


@pytest.fixture
def other(tokenize: Vqgan, photos: Path, tmp_path: Path) -> Path:
    """Another data set of the same codec."""
    (tmp_path / "other-in").mkdir()
    for path in sorted(photos.iterdir())[20:24]:
        shutil.copy(path, tmp_path / "other-in")
    assert tokenize(tmp_path / "other-in", output=tmp_path / "other").code == 0
    return tmp_path / "other"


def test_data_sets_are_merged(
    parts: Path, other: Path, vqgan: Vqgan, tmp_path: Path, manifest: Manifest
) -> None:
    joined = tmp_path / "joined"
    assert vqgan("merge", parts / "out", other, "--output", joined, "--quiet").code == 0
    assert vqgan("verify", joined).out.splitlines()[-1] == "ok"
    sources = [data for folder in (parts / "out", other) for data in shards(folder).values()]
    assert sorted(shards(joined).values()) == sorted(sources)
    first, second, whole = (manifest(folder) for folder in (parts / "out", other, joined))
    assert whole["counts"] == {
        name: first["counts"][name] + second["counts"][name] for name in whole["counts"]
    }
    assert [part["made"] for part in whole["parts"]] == ["tokenize", "append", "retry", "tokenize"]
    assert len(open_tokens(str(joined))) == 12
    decode = ("decode", "--tokens", joined, "--output", tmp_path / "images", "--quiet", "--no-report")
    assert vqgan(*decode).code == 0
    assert vqgan("verify", tmp_path / "images").code == 0
    state = everything(joined)
    assert "is complete" in vqgan("merge", parts / "out", other, "--output", joined).err
    assert everything(joined) == state
    assert "merged data sets have none" in vqgan("retry", joined).line
    twice = tmp_path / "twice"
    assert "taken once" in vqgan("merge", other, joined, "--output", twice).err
    assert json.loads((twice / "manifest.json").read_text())["plan_hash"] == whole["plan_hash"]


def test_a_merged_data_set_is_mended_by_merging_again(
    parts: Path, other: Path, vqgan: Vqgan, tmp_path: Path
) -> None:
    argv = ("merge", parts / "out", other, "--output", tmp_path / "joined", "--quiet")
    assert vqgan(*argv).code == 0
    before = shards(tmp_path / "joined")
    flipped, lost = sorted(before)[:2]
    flip(tmp_path / "joined" / flipped)
    (tmp_path / "joined" / lost).unlink()
    said = vqgan("verify", "--repair", tmp_path / "joined").line
    assert "do this with those that were merged, remove what is damaged here, and merge again" in said
    (tmp_path / "joined" / flipped).unlink()
    assert vqgan(*argv).code == 0
    assert shards(tmp_path / "joined") == before
    assert vqgan("verify", tmp_path / "joined").code == 0


def test_a_merge_is_continued(
    parts: Path, other: Path, vqgan: Vqgan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("merge", parts / "out", other, "--output", tmp_path / "joined", "--quiet")
    monkeypatch.setattr(merging, "join_manifests", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        vqgan(*argv)
    monkeypatch.undo()
    times = {name: time for name, (time, _) in everything(tmp_path / "joined").items()}
    assert "belongs to another run" in vqgan("merge", other, parts / "out", *argv[3:]).line
    assert vqgan(*argv).code == 0
    assert (
        times.items() <= {name: time for name, (time, _) in everything(tmp_path / "joined").items()}.items()
    )
    assert vqgan("verify", tmp_path / "joined").code == 0


def test_merges_that_are_refused(
    parts: Path, other: Path, tokenize: Vqgan, vqgan: Vqgan, other_codec: str, tmp_path: Path
) -> None:
    joined = tmp_path / "joined"
    source, out = tmp_path / "other-in", parts / "out"
    assert "two data sets at least" in vqgan("merge", other, "--output", joined).line
    assert "there is something else in it" in vqgan("merge", out, other, "--output", source).line
    tokenize(source, "--codec", other_codec, output=tmp_path / "b")
    assert "codec.fingerprint" in vqgan("merge", other, tmp_path / "b", "--output", joined).line
    tokenize(source, "--slice-size", 3, output=tmp_path / "c")
    said = vqgan("merge", other, tmp_path / "c", "--output", joined).line
    assert "4 keys in more than one of them" in said
    assert "of the same image" in said
    (path, *_) = sorted(source.iterdir())
    path.write_bytes(path.read_bytes() + b"\0")
    tokenize(source, output=tmp_path / "d")
    assert "of different images" in vqgan("merge", other, tmp_path / "d", "--output", joined).line
    (other / "data" / "tokens-00000-of-00001.parquet").unlink()
    assert "run vqgan verify --repair first" in vqgan("merge", out, other, "--output", joined).line
    assert not joined.exists()
