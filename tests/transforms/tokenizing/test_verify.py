"""Verification finds every kind of damage that a data set can suffer."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.inspecting import verify_data_set
from pipelines.tokenize_images import TokenizeConfig
from transforms.images.crops import Geometry
from transforms.sharded.plan import Plan, spread
from transforms.sources import SourceConfig
from transforms.tokenizing.replay import check_agreement
from vqgan.errors import UserError
from vqgan.shards import METADATA_KEY, rejects_name, shard_name

Configure = Callable[..., TokenizeConfig]
Run = Callable[[TokenizeConfig], dict[str, Any]]
Damage = Callable[[Path], None]


@pytest.fixture
def data(configure: Configure, run: Run, photos: Path, tmp_path: Path) -> Path:
    """Four shards of 20 photographs and one reject, two rows an image."""
    shutil.copytree(photos, tmp_path / "in")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no image")
    run(configure(tmp_path / "in", geometry=Geometry(image_size=32, views="hflip")))
    return tmp_path / "out"


def reject_file(data: Path) -> Path:
    (path,) = data.glob("rejects/rejects-*")
    return path


def edit_manifest(data: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = data / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def refresh(data: Path, name: str) -> None:
    """Writes a file's new sum into the manifest, as a forger or a hasty repair would."""
    contents = (data / name).read_bytes()
    rows = pq.ParquetFile(data / name).metadata.num_rows

    def change(manifest: dict[str, Any]) -> None:
        for entry in (*manifest["shards"], *manifest["rejects"]):
            if entry["name"] == name:
                entry.update(rows=rows, bytes=len(contents), sha256=hashlib.sha256(contents).hexdigest())

    edit_manifest(data, change)


def rewrite(data: Path, name: str, change: Callable[[pa.Table], pa.Table], **footer: Any) -> None:
    """Rewrites a shard with other rows or another footer, and mends the manifest."""
    file = pq.ParquetFile(data / name)
    table = change(file.read())
    metadata = file.metadata.metadata
    file.close()
    document = json.loads(metadata[METADATA_KEY])
    document.update(footer)
    with pq.ParquetWriter(data / name, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({METADATA_KEY: json.dumps(document).encode()})
    refresh(data, name)


def same(table: pa.Table) -> pa.Table:
    return table


def with_token(table: pa.Table, token: int) -> pa.Table:
    values = table.column("tokens").to_pylist()
    values[0][5] = token
    position = table.schema.get_field_index("tokens")
    return table.set_column(
        position, table.schema.field("tokens"), pa.array(values, table.schema.field("tokens").type)
    )


SHARD = shard_name(1, 4)


def flip_a_byte(data: Path) -> None:
    contents = bytearray((data / SHARD).read_bytes())
    contents[len(contents) // 2] ^= 1
    (data / SHARD).write_bytes(contents)


def lose_a_shard(data: Path) -> None:
    (data / SHARD).unlink()


def lose_the_rejects(data: Path) -> None:
    reject_file(data).unlink()


def truncate(data: Path) -> None:
    (data / SHARD).write_bytes((data / SHARD).read_bytes()[:-1])


def add_a_stray(data: Path) -> None:
    shutil.copy(data / SHARD, data / shard_name(4, 5))


def swap_shards(data: Path) -> None:
    first, second = data / shard_name(1, 4), data / shard_name(2, 4)
    contents = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(contents)
    refresh(data, SHARD)
    refresh(data, shard_name(2, 4))


def another_plan(data: Path) -> None:
    rewrite(data, SHARD, same, plan_hash="0" * 64)


def another_codec(data: Path) -> None:
    rewrite(data, SHARD, same, fingerprint="0" * 64)


def double_rows(data: Path) -> None:
    rewrite(data, SHARD, lambda table: pa.concat_tables([table, table.slice(0, 2)]))


def replace_by_double(data: Path) -> None:
    rewrite(data, SHARD, lambda table: pa.concat_tables([table.slice(2), table.slice(2, 2)]))


def lose_rows(data: Path) -> None:
    rewrite(data, SHARD, lambda table: table.slice(2))


def lose_a_view(data: Path) -> None:
    rewrite(data, SHARD, lambda table: table.slice(1))


def rename_a_key(data: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        keys = ["never seen"] * 2 + table.column("key").to_pylist()[2:]
        return table.set_column(0, table.schema.field("key"), pa.array(keys))

    rewrite(data, SHARD, change)


def bad_token(data: Path) -> None:
    rewrite(data, SHARD, lambda table: with_token(table, 64))


def other_token(data: Path) -> None:
    rewrite(data, SHARD, lambda table: with_token(table, (table.column("tokens")[0][5].as_py() + 1) % 64))


def lose_a_reject(data: Path) -> None:
    path = reject_file(data)
    pq.write_table(pq.read_table(path).slice(1), path)
    refresh(data, str(path.relative_to(data)))


def forget_the_rejects(data: Path) -> None:
    reject_file(data).unlink()
    edit_manifest(data, lambda manifest: manifest["rejects"].clear())


def forget_a_shard(data: Path) -> None:
    edit_manifest(data, lambda manifest: manifest["shards"].pop(1))


def forget_all_shards(data: Path) -> None:
    edit_manifest(data, lambda manifest: manifest["shards"].clear())


def another_manifest(data: Path) -> None:
    edit_manifest(data, lambda manifest: manifest.update(plan_hash="0" * 64))


def wrong_histogram(data: Path) -> None:
    edit_manifest(data, lambda manifest: manifest["codebook"]["histogram"].reverse())


def wrong_footer_counts(data: Path) -> None:
    rewrite(data, SHARD, same, images=3)


def another_resize(data: Path) -> None:
    edit_manifest(data, lambda m: m["identity"]["preprocessing"]["geometry"].update(resize="stretch"))


def other_class_names(data: Path) -> None:
    edit_manifest(data, lambda m: m["identity"]["source"].update(class_names=["cat"]))


def another_fingerprint(data: Path) -> None:
    edit_manifest(data, lambda m: m["codec"].update(fingerprint="0" * 64))


def another_codec_config(data: Path) -> None:
    edit_manifest(data, lambda m: m["codec"]["config"].update(ch=3))


def another_grid(data: Path) -> None:
    edit_manifest(data, lambda m: m.update(grid=[8, 32]))


def another_preprocessing(data: Path) -> None:
    footer = json.loads(pq.read_metadata(data / SHARD).metadata[METADATA_KEY])["preprocessing"]
    footer["geometry"]["filter"] = "box"
    rewrite(data, SHARD, same, preprocessing=footer)


def another_entry_of_the_plan(data: Path) -> None:
    """A label of another class, with all sums of files mended."""
    path = data / "plan" / "keys-00000.parquet"
    table = pq.read_table(path)
    labels = pa.array([7, *table.column("label").to_pylist()[1:]], pa.int32())
    groups = pq.ParquetFile(path).metadata
    table = table.set_column(table.schema.get_field_index("label"), table.schema.field("label"), labels)
    with pq.ParquetWriter(path, table.schema) as writer:
        start = 0
        for number in range(groups.num_row_groups):
            rows = groups.row_group(number).num_rows
            writer.write_table(table.slice(start, rows))
            start += rows
    contents = path.read_bytes()
    edit_plan(
        data,
        lambda p: p["tables"][0].update(bytes=len(contents), sha256=hashlib.sha256(contents).hexdigest()),
    )


def edit_plan(data: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = data / "plan" / "plan.json"
    plan = json.loads(path.read_text())
    change(plan)
    path.write_text(json.dumps(plan))


def a_codec_that_is_no_object(data: Path) -> None:
    edit_plan(data, lambda p: p["identity"].update(codec=3))
    edit_plan(data, lambda p: p.update(hash=Plan(p["identity"], 0, 0).hash))


def flip_a_bit_of_the_plan(data: Path) -> None:
    path = data / "plan" / "keys-00000.parquet"
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(bytes(contents))


def turn_into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (
            another_resize,
            "manifest.json: is not of its plan: preprocessing.geometry.resize: center",
        ),
        (other_class_names, "manifest.json: is not of its plan: source.class_names"),
        (another_fingerprint, "manifest.json: fingerprint of the codec is 0000"),
        (another_codec_config, "manifest.json: config of the codec ch is 3, expected 8"),
        (another_grid, rf"{SHARD}: grid is \[16, 16\], expected \[8, 32\]"),
        (another_preprocessing, f"{SHARD}: its preprocessing is not that of the plan: geometry.filter"),
        (
            another_entry_of_the_plan,
            "plan.json: damaged .hash is .*, expected .* by plan/keys-00000.parquet",
        ),
        (
            lambda data: edit_plan(data, lambda p: p.update(slices=10**18)),
            "plan.json: damaged .slices is 1000000000000000000, expected 4 by plan/keys-00000.parquet",
        ),
        (
            lambda data: edit_plan(data, lambda p: p.update(entries=22)),
            "plan.json: damaged .entries is 22, expected 21 by plan/keys-00000.parquet",
        ),
        (a_codec_that_is_no_object, "plan.json: damaged .'identity.codec' is 3, expected an object"),
        (
            lambda data: edit_manifest(data, lambda m: m["shards"].append(m["shards"][0])),
            "manifest.json: shards is",
        ),
        (
            lambda data: edit_manifest(data, lambda m: m["shards"][0].update(bytes=1)),
            "manifest.json: shards 0 bytes is 1, expected",
        ),
        (
            lambda data: edit_manifest(data, lambda m: m["codebook"].update(used=3)),
            "manifest.json: codebook used is 3, expected",
        ),
        (
            lambda data: edit_manifest(data, lambda m: m["storage"].update(token_bytes=3)),
            "manifest.json: storage token_bytes is 3, expected",
        ),
        (
            lambda data: edit_manifest(data, lambda m: m["reject_reasons"].clear()),
            "manifest.json: reject_reasons decode: .* is not there",
        ),
        (
            lambda data: edit_manifest(data, lambda m: m.update(more=3)),
            "manifest.json: more is unknown",
        ),
        (
            lambda data: edit_manifest(data, lambda m: m["identity"].update(dedupe=0)),
            "manifest.json: is not of its plan: dedupe is 0, expected false",
        ),
        (lambda data: rewrite(data, SHARD, same, planned=9), f"{SHARD}: number of planned images is 9"),
        (lambda data: rewrite(data, SHARD, same, sampling={"x": 1}), f"{SHARD}: its sampling is not that"),
        (
            lambda data: rewrite(data, SHARD, lambda t: t.append_column("more", t.column("key"))),
            f"{SHARD}: further columns is",
        ),
        (lambda data: turn_into_a_folder(data / SHARD), f"{SHARD} is a folder"),
        (flip_a_bit_of_the_plan, "keys-00000.parquet: has changed since it was written"),
        (flip_a_byte, f"{SHARD} has changed: .* sha256"),
        (truncate, f"{SHARD} has changed"),
        (lose_a_shard, f"{SHARD} is missing"),
        (lose_the_rejects, "rejects-.* is missing"),
        (add_a_stray, "data/tokens-00004-of-00005.parquet belongs to no manifest entry"),
        (swap_shards, f"{SHARD}: slice number is 2, expected 1"),
        (another_plan, f"{SHARD}: plan hash is 0000"),
        (another_codec, f"{SHARD}: codec is 0000"),
        (double_rows, "2 rows occur more than once"),
        (replace_by_double, "2 rows occur more than once"),
        (lose_rows, "1 planned images are neither rows nor rejects"),
        (lose_a_view, f"{SHARD}: rows is 9, expected 10"),
        (rename_a_key, "1 keys were never planned"),
        (bad_token, rf"{SHARD}: tokens outside of \[0, 64\)"),
        (other_token, "the codebook's histogram is not that of the tokens"),
        (lose_a_reject, "rejects-.*: rows is 0, expected 1"),
        (forget_the_rejects, "1 reject, but no rejects file"),
        (forget_a_shard, f"{SHARD} is not in the manifest"),
        (forget_all_shards, f"{SHARD} is not in the manifest"),
        (another_manifest, "of different plans"),
        (wrong_histogram, "the codebook's histogram is not that of the tokens"),
        (wrong_footer_counts, r"images \+ rejects"),
    ],
)
def test_damage_is_found(data: Path, damage: Damage, problem: str) -> None:
    assert verify_data_set(str(data))[0] == []
    damage(data)
    problems, _ = verify_data_set(str(data))
    assert any(re.search(problem, found) for found in problems), problems


@pytest.mark.parametrize("name", ["planned", "images", "rejects", "rows", "tokens"])
def test_wrong_counts_are_found(data: Path, name: str) -> None:
    edit_manifest(data, lambda manifest: manifest["counts"].update({name: manifest["counts"][name] + 1}))
    (problem,) = verify_data_set(str(data))[0]
    assert problem.startswith("manifest.json: number of ")


def as_earlier_release(data: Path) -> None:
    """Writes the plan as releases did that kept all slices in one file."""
    (keys,) = (data / "plan").glob("keys-*")
    keys.rename(data / "plan" / "keys.parquet")

    def change(plan: dict[str, Any]) -> None:
        (plan["table"],) = plan.pop("tables")
        plan["table"]["name"] = "plan/keys.parquet"

    edit_plan(data, change)


def test_a_plan_of_an_earlier_release(data: Path, configure: Configure, run: Run, tmp_path: Path) -> None:
    """It is read, verified, found finished, and continued to the same bytes."""
    as_earlier_release(data)
    assert verify_data_set(str(data))[0] == []
    before = {path: path.read_bytes() for path in data.rglob("*.parquet")}
    config = configure(tmp_path / "in", geometry=Geometry(image_size=32, views="hflip"))
    finished = (data / "manifest.json").read_bytes()
    run(config)
    assert (data / "manifest.json").read_bytes() == finished
    lose_a_shard(data)
    run(config)
    assert {path: path.read_bytes() for path in data.rglob("*.parquet")} == before
    assert verify_data_set(str(data))[0] == []
    flip = bytearray((data / "plan" / "keys.parquet").read_bytes())
    flip[len(flip) // 2] ^= 1
    (data / "plan" / "keys.parquet").write_bytes(flip)
    (problem,) = verify_data_set(str(data))[0]
    assert "plan/keys.parquet: has changed since it was written" in problem


def test_summary(data: Path) -> None:
    problems, summary = verify_data_set(str(data))
    assert problems == []
    assert summary == "4 shards, 1 rejects file: 21 planned, 20 images, 40 rows, 1 reject"


def test_nothing_to_verify(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data set there"):
        verify_data_set(str(tmp_path / "in"))
    (data / "manifest.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        verify_data_set(str(data))


def test_lost_plan(data: Path) -> None:
    (data / "plan" / "plan.json").unlink()
    with pytest.raises(UserError, match=r"plan\.json is missing"):
        verify_data_set(str(data))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 99}'])
def test_damaged_manifest(data: Path, text: str) -> None:
    (data / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: "):
        verify_data_set(str(data))


def test_agreement(data: Path, tmp_path: Path, codec_path: str) -> None:
    source = SourceConfig(str(tmp_path / "in"))
    agreement = check_agreement(str(data), source, codec_path, 7)
    assert agreement == (7, 1.0)
    assert check_agreement(str(data), source, codec_path, 1000) == (20, 1.0)


def test_disagreement(data: Path, tmp_path: Path, codec_path: str) -> None:
    """An image that was replaced by another one does not give the tokens that the shard holds."""
    for path in (tmp_path / "in").glob("*-0.jpg"):
        shutil.copy(tmp_path / "in" / "wine-1.jpg", path)
    agreement = check_agreement(str(data), SourceConfig(str(tmp_path / "in")), codec_path, 1000)
    assert agreement.images == 20
    assert agreement.share < 0.9


def test_agreement_with_nothing(data: Path, tmp_path: Path, codec_path: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="none of its images could be read"):
        check_agreement(str(data), SourceConfig(str(tmp_path / "empty")), codec_path, 5)


@pytest.mark.parametrize("sample", [0, 1, 2, 5, 9, 100])
@pytest.mark.parametrize("slices", [1, 2, 5, 8])
def test_spread(sample: int, slices: int) -> None:
    found = list(spread(sample, slices))
    assert sum(wanted for _, wanted in found) == sample
    assert len({number for number, _ in found}) == len(found)
    assert all(0 <= number < slices and wanted > 0 for number, wanted in found)


def test_names() -> None:
    assert rejects_name(3, 10) == "rejects/rejects-00003-of-00010.parquet"


def test_problems_can_be_printed(data: Path) -> None:
    edit_manifest(data, lambda manifest: manifest["shards"][0].update(sha256="\0"))
    edit_manifest(data, lambda manifest: manifest["identity"].update(dtype="\n"))
    problems, _ = verify_data_set(str(data))
    assert len(problems) >= 2
    assert all(problem.isprintable() for problem in problems)
