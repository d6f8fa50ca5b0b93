"""``vqgan tokenize --append`` and ``vqgan retry``: further shards, and nothing else touched."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.data_sets import additions
from tests.pipelines.test_tokenize_images import rejects_of, rows_of, shards
from transforms.tokenizing import parts, report
from vqgan.data.tokens import open_tokens
from vqgan.errors import UserError

from .conftest import Vqgan

Manifest = Callable[[Path], dict[str, Any]]


def keys_of(folder: Path) -> list[str]:
    return sorted(rows_of(folder).column("key").to_pylist())


def in_second_part(folder: Path) -> set[str]:
    return {name for name in shards(folder) if "-part-001" in name}


@pytest.fixture
def grown(tokenize: Vqgan, few: Path, photos: Path, tmp_path: Path) -> Path:
    """A data set of ten photographs and a reject, whose input has got two more photographs and a reject."""
    (few / "broken.jpg").write_bytes(b"no image")
    assert tokenize(few).code == 0
    for path in sorted(photos.iterdir())[1:3]:
        shutil.copy(path, few)
    (few / "broken-too.jpg").write_bytes(b"no image either")
    return tmp_path / "out"


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has the manifest's writing fail, as a kill just before it would; called again, it does not."""

    def refuse(output: str, manifest: Any) -> None:
        raise UserError("stopped before the manifest")

    def toggle() -> None:
        monkeypatch.setattr("transforms.tokenizing.parts.publish_token_manifest", refuse)

    return toggle


def test_a_grown_source(
    grown: Path, tokenize: Vqgan, vqgan: Vqgan, few: Path, tmp_path: Path, manifest: Manifest
) -> None:
    before = shards(grown)
    assert tokenize(few, "--append").code == 0
    after = shards(grown)
    assert before.items() <= after.items()
    assert in_second_part(grown) == {
        "data/tokens-00000-of-00001-part-001.parquet",
        "rejects/rejects-00000-of-00001-part-001.parquet",
    }
    assert manifest(grown)["counts"] == {
        "planned": 14,
        "images": 12,
        "rejects": 2,
        "rows": 12,
        "tokens": 12 * 256,
    }
    assert [part["made"] for part in manifest(grown)["parts"]] == ["tokenize", "append"]
    assert vqgan("verify", grown).code == 0
    assert "['tokenize', 'append']" in vqgan("inspect", grown).out
    assert len(open_tokens(str(grown))) == 12
    tokenize(few, output=tmp_path / "at-once")
    assert keys_of(grown) == keys_of(tmp_path / "at-once")
    ours, theirs = (
        dict(zip(t.column("key").to_pylist(), t.column("tokens").to_pylist(), strict=True))
        for t in (rows_of(grown), rows_of(tmp_path / "at-once"))
    )
    assert ours == theirs
    finished = (grown / "manifest.json").read_bytes()
    assert tokenize(few, "--append").code == 0  # nothing is new
    assert (grown / "manifest.json").read_bytes() == finished
    assert shards(grown) == after


def test_the_report_is_of_all_parts(
    grown: Path, tokenize: Vqgan, few: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, before = manifest(grown)["throughput"], set(keys_of(grown))
    monkeypatch.setattr(report, "SHARE_OF_RUN", 1)
    assert tokenize(few, "--append", "--report").code == 0
    page = (grown / "report.html").read_text()
    new = set(keys_of(grown)) - before
    shown = {key for key in keys_of(grown) if f"original of {key}" in page}
    assert shown & new
    assert shown - new
    after = manifest(grown)["throughput"]
    assert after["images"] == first["images"] + 2
    assert after["worker_seconds"] > first["worker_seconds"]


def test_an_append_is_continued(
    grown: Path, tokenize: Vqgan, vqgan: Vqgan, few: Path, stopped: Callable[[], None], monkeypatch: Any
) -> None:
    before = (grown / "manifest.json").read_bytes()
    with monkeypatch.context():
        stopped()
        assert tokenize(few, "--append").line.endswith("stopped before the manifest")
    monkeypatch.undo()
    assert (grown / "manifest.json").read_bytes() == before
    assert len(open_tokens(str(grown))) == 10  # as it was
    assert "plan/part-001 was begun and is not finished" in vqgan("verify", grown).out
    made = shards(grown)
    assert "begun by another vqgan tokenize --append" in tokenize(few, "--append", "--slice-size", 3).line
    (few / "later.jpg").write_bytes(b"x")
    assert tokenize(few, "--append").code == 0  # what was begun, and then what is new since
    assert made.items() <= shards(grown).items()
    assert {name for name in shards(grown) if "-part-002" in name} == shards(grown).keys() - made.keys()
    assert {row.key for row in rejects_of(grown).values()} == {"broken.jpg", "broken-too.jpg", "later.jpg"}
    assert vqgan("verify", grown).code == 0


def test_an_append_is_estimated(grown: Path, tokenize: Vqgan, few: Path) -> None:
    assert "images: 3\n" in tokenize(few, "--append", "--dry-run").out
    assert tokenize(few, "--append").code == 0
    assert tokenize(few, "--append", "--dry-run").out == "images: 0\n"


def test_a_retry_from_another_folder(grown: Path, vqgan: Vqgan, few: Path, tmp_path: Path) -> None:
    before = shards(grown)
    few.rename(tmp_path / "moved")
    (tmp_path / "moved" / "broken.jpg").rename(tmp_path / "broken.jpg")
    assert "its rejects are what they were" in vqgan("retry", grown, "--input", tmp_path / "moved").line
    assert shards(grown) == before
    shutil.copy(sorted((tmp_path / "moved").iterdir())[0], tmp_path / "moved" / "broken.jpg")
    assert vqgan("retry", f"file://{grown}", "--input", tmp_path / "moved", "--quiet").code == 0
    assert "broken.jpg" in keys_of(grown)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--image-size", 16), "preprocessing.geometry.image_size: 32, now 16"),
        (("--views", "hflip"), "preprocessing.geometry.views: none, now hflip"),
    ],
)
def test_other_settings_are_refused(
    grown: Path, tokenize: Vqgan, few: Path, flags: tuple[Any, ...], said: str
) -> None:
    before = shards(grown)
    assert said in tokenize(few, "--append", *flags).line
    assert shards(grown) == before
    assert not (grown / "plan" / "part-001").exists()


def test_an_image_that_is_there_under_another_key(
    tokenize: Vqgan, vqgan: Vqgan, few: Path, tmp_path: Path
) -> None:
    assert tokenize(few, "--dedupe").code == 0
    before, keys = shards(tmp_path / "out"), keys_of(tmp_path / "out")
    shutil.copy(few / keys[3], few / "0-lesser-key.jpg")
    shutil.copy(few / keys[4], few / "z-greater-key.jpg")
    assert "dedupe: true, now false" in tokenize(few, "--append").line
    assert tokenize(few, "--append", "--dedupe").code == 0
    assert keys_of(tmp_path / "out") == keys
    assert before.items() <= shards(tmp_path / "out").items()
    assert {row.key: row.message for row in rejects_of(tmp_path / "out").values()} == {
        "0-lesser-key.jpg": f"same bytes as {keys[3]}",
        "z-greater-key.jpg": f"same bytes as {keys[4]}",
    }
    assert vqgan("verify", tmp_path / "out").code == 0


def test_nothing_is_left_beside_an_appended_part(grown: Path, tokenize: Vqgan, few: Path) -> None:
    there = {path.name for path in grown.iterdir()}
    assert tokenize(few, "--append").code == 0
    assert {path.name for path in grown.iterdir()} == there


def test_a_data_set_that_another_command_changes_meanwhile(
    grown: Path, tokenize: Vqgan, vqgan: Vqgan, few: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It planned for a data set that is no longer the one that is there."""
    shutil.copy(sorted(photos.iterdir())[3], few / "broken.jpg")
    plan = additions.make_plan

    def slow(*args: Any) -> Any:
        monkeypatch.undo()
        assert vqgan("retry", grown, "--quiet").code == 0
        return plan(*args)

    monkeypatch.setattr(additions, "make_plan", slow)
    assert "another command has changed it meanwhile" in tokenize(few, "--append").line
    assert vqgan("verify", grown).code == 0
    assert tokenize(few, "--append").code == 0
    assert vqgan("verify", grown).code == 0


def test_what_is_not_to_be_appended_to(tokenize: Vqgan, few: Path, grown: Path, tmp_path: Path) -> None:
    assert "no finished data set there" in tokenize(few, "--append", output=tmp_path / "none").line
    (few / sorted(path.name for path in few.iterdir())[-1]).write_bytes(b"another image")
    assert "has changed since it was planned" in tokenize(few, "--append").line
    (grown / "data" / "tokens-00000-of-00003.parquet").unlink()
    assert "run vqgan verify --repair first" in tokenize(few, "--append").line


def test_the_first_command_leaves_added_parts(grown: Path, tokenize: Vqgan, few: Path, photos: Path) -> None:
    assert tokenize(few, "--append").code == 0
    kept = {path.name for path in sorted(photos.iterdir())[::4]} | {"broken.jpg"}
    for path in few.iterdir():
        if path.name not in kept:
            path.unlink()
    after = shards(grown)
    assert tokenize(few).code == 0  # complete
    (grown / "data" / "tokens-00000-of-00003.parquet").unlink()
    assert "run vqgan verify --repair" in tokenize(few).line
    assert len(shards(grown)) == len(after) - 1


def test_rejects_that_can_be_read_now(
    grown: Path, tokenize: Vqgan, vqgan: Vqgan, few: Path, photos: Path, manifest: Manifest
) -> None:
    assert tokenize(few, "--append").code == 0
    before = {name: data for name, data in shards(grown).items() if name.startswith("data/")}
    shutil.copy(sorted(photos.iterdir())[3], few / "broken.jpg")
    (few / "broken-too.jpg").write_bytes(b"")
    assert vqgan("retry", grown, "--quiet").code == 0
    assert before.items() <= shards(grown).items()
    (left,) = rejects_of(grown).values()
    assert (left.key, left.size) == ("broken-too.jpg", 0)  # with the newest reason
    assert "broken.jpg" in keys_of(grown)
    counts, parts = manifest(grown)["counts"], manifest(grown)["parts"]
    assert (counts["planned"], counts["images"], counts["rejects"]) == (14, 13, 1)
    assert [(part["made"], part["retries"]) for part in parts] == [
        ("tokenize", 0),
        ("append", 0),
        ("retry", 2),
    ]
    assert manifest(grown)["reject_reasons"] == {f"{left.stage}: {left.error}": 1}
    assert vqgan("verify", grown).code == 0
    finished = (grown / "manifest.json").read_bytes()
    assert "its rejects are what they were" in vqgan("retry", grown).err
    assert tokenize(few, "--append").code == 0  # a mended image is not a new one
    assert (grown / "manifest.json").read_bytes() == finished
    (few / "broken-too.jpg").unlink()
    shutil.copy(sorted(photos.iterdir())[5], few / "broken-too.jpg")
    assert vqgan("retry", grown, "--quiet").code == 0
    assert rejects_of(grown) == {}
    assert vqgan("verify", grown).code == 0
    assert "nothing was rejected" in vqgan("retry", grown).err


def test_a_retry_is_continued(
    grown: Path, vqgan: Vqgan, few: Path, photos: Path, stopped: Callable[[], None], monkeypatch: Any
) -> None:
    shutil.copy(sorted(photos.iterdir())[3], few / "broken.jpg")
    stopped()
    assert vqgan("retry", grown, "--quiet").line.endswith("stopped before the manifest")
    monkeypatch.undo()
    assert set(rejects_of(grown)) == {"broken.jpg"}  # as it was
    made = {name: data for name, data in shards(grown).items() if name.startswith("data/")}
    assert vqgan("retry", grown, "--quiet").code == 0
    assert rejects_of(grown) == {}
    assert shards(grown) == made
    assert vqgan("verify", grown).code == 0


def test_a_retry_that_was_killed_at_its_end(
    grown: Path, vqgan: Vqgan, few: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest was there, the old rejects were, too."""
    shutil.copy(sorted(photos.iterdir())[3], few / "broken.jpg")
    with monkeypatch.context() as patched:
        patched.setattr(parts, "delete_superseded", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            vqgan("retry", grown, "--quiet")
    assert "belongs to no manifest entry" in vqgan("verify", grown).out
    assert "nothing was rejected; nothing to do" in vqgan("retry", grown).line
    assert vqgan("verify", grown).code == 0


def test_a_retry_of_what_fails_again(tokenize: Vqgan, vqgan: Vqgan, few: Path, tmp_path: Path) -> None:
    """The limit of rejects is one for images that were not tried before."""
    (few / "broken.jpg").write_bytes(b"no image")
    (few / "broken-too.jpg").write_bytes(b"no image")
    assert tokenize(few, "--max-reject-rate", 0.5).code == 0
    (few / "broken.jpg").write_bytes(b"none either")
    assert vqgan("retry", tmp_path / "out", "--quiet").code == 0
    assert sorted(row.size or 0 for row in rejects_of(tmp_path / "out").values()) == [8, 11]
    assert vqgan("verify", tmp_path / "out").code == 0


def test_a_retry_with_another_codec_is_refused(grown: Path, vqgan: Vqgan, other_codec: str) -> None:
    assert "codec.fingerprint" in vqgan("retry", grown, "--codec", other_codec).line
    assert not (grown / "plan" / "part-001").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plan/part-001/plan.json", "plan/part-001/plan.json is missing"),
        ("plan/part-001/keys-00000.parquet", "keys-00000.parquet: cannot be read"),
        ("data/tokens-00000-of-00001-part-001.parquet", "part-001.parquet is missing"),
    ],
)
def test_damage_to_a_part_is_found(
    grown: Path, tokenize: Vqgan, vqgan: Vqgan, few: Path, name: str, said: str
) -> None:
    assert tokenize(few, "--append").code == 0
    (grown / name).unlink()
    found = vqgan("verify", grown)
    assert found.code == 1
    assert said in found.out
