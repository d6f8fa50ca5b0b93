"""Verification finds every kind of damage that decoded images can suffer."""

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import decode_tokens
from pipelines.decode_tokens import DecodeTokensConfig, PlannedDecode
from pipelines.inspecting import verify_data_set
from pipelines.tokenize_images import TokenizeConfig
from transforms.decoding.image_format import ImageFormat
from transforms.sharded.job import make_all
from transforms.sources import SourceConfig
from transforms.tokenizing.replay import check_agreement
from vqgan.errors import UserError

Configure = Callable[..., TokenizeConfig]
Run = Callable[[TokenizeConfig], dict[str, Any]]
Damage = Callable[[Path], None]


def carry_out(prepared: PlannedDecode, beam_args: Any) -> None:
    make_all(prepared.job, prepared.plan, lambda images, rejects: None)


@pytest.fixture
def images(
    configure: Configure, run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """Two slices of eight images in a form."""
    (tmp_path / "in").mkdir()
    for path in sorted(photos.iterdir())[:8]:
        shutil.copy(path, tmp_path / "in")
    run(dataclasses.replace(configure(tmp_path / "in"), slice_size=4))
    monkeypatch.setattr(decode_tokens, "_run_pipeline", carry_out)

    def images(container: str) -> Path:
        config = DecodeTokensConfig(
            tokens=str(tmp_path / "out"),
            output=str(tmp_path / "images"),
            form=ImageFormat(container),
            batch_size=4,
            threads=2,
            report=False,
            quiet=True,
        )
        decode_tokens.run_decode(config, [])
        return tmp_path / "images"

    return images


INDEX = "index/images-00001-of-00002.parquet"
DATA = "data/images-00001-of-00002.parquet"
TAR = "data/images-00001-of-00002.tar"
METADATA = "images/metadata.jsonl"


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def refresh(folder: Path, name: str) -> None:
    """Writes a file's new sum into the manifest, as a forger or a hasty repair would."""
    data = (folder / name).read_bytes()

    def change(manifest: dict[str, Any]) -> None:
        for entry in (*manifest["shards"], *manifest["archives"], *manifest["metadata"]):
            if entry["name"] == name:
                entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    edit_manifest(folder, change)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def an_image(folder: Path) -> Path:
    return min((folder / "images").glob("*.png"))


def swap_indexes(folder: Path) -> None:
    name = INDEX.replace("00001-", "00000-")
    other = folder / name
    first = other.read_bytes()
    other.write_bytes((folder / INDEX).read_bytes())
    (folder / INDEX).write_bytes(first)
    refresh(folder, INDEX)
    refresh(folder, name)


def swap_lines(folder: Path) -> None:
    """The same size, and in the manifest: two images bear each other's name."""
    lines = (folder / METADATA).read_text().splitlines()
    first, second = (json.loads(line) for line in lines[:2])
    first["file_name"], second["file_name"] = second["file_name"], first["file_name"]
    (folder / METADATA).write_text("\n".join([json.dumps(first), json.dumps(second), *lines[2:], ""]))
    refresh(folder, METADATA)


def swap_tars(folder: Path) -> None:
    shutil.copy(folder / TAR.replace("00001-", "00000-"), folder / TAR)
    refresh(folder, TAR)


@pytest.mark.parametrize(
    ("container", "damage", "problem"),
    [
        ("files", lambda f: flip(an_image(f)), "1 image changed, such as images/"),
        ("files", lambda f: an_image(f).unlink(), "images/.*cannot be read"),
        (
            "files",
            lambda f: shutil.copy(an_image(f), f / "images" / "more.png"),
            "1 file in no index",
        ),
        ("files", lambda f: flip(f / INDEX), f"{INDEX} has changed"),
        ("files", lambda f: (f / INDEX).unlink(), f"{INDEX} is missing"),
        ("files", swap_indexes, f"{INDEX}: slice number is 0, expected 1"),
        (
            "files",
            lambda f: shutil.copy(f / INDEX, f / "index" / "x.parquet"),
            "index/x.parquet belongs to no",
        ),
        ("files", lambda f: flip(f / METADATA), f"{METADATA} has changed"),
        ("files", lambda f: (f / METADATA).unlink(), f"{METADATA} is missing"),
        ("files", lambda f: edit_manifest(f, lambda m: m["metadata"].pop()), f"{METADATA} is not in the man"),
        ("files", swap_lines, f"{METADATA}: does not say what the indices say"),
        ("files", lambda f: edit_manifest(f, lambda m: m["shards"].pop()), f"{INDEX} is not in the manifest"),
        ("files", lambda f: edit_manifest(f, lambda m: m.update(plan_hash="0")), "of different plans"),
        ("files", lambda f: edit_manifest(f, lambda m: m["counts"].update(images=9)), "number of images"),
        ("tar", lambda f: flip(f / TAR), f"{TAR} has changed"),
        ("tar", lambda f: (f / TAR).unlink(), f"{TAR} is missing"),
        ("tar", swap_tars, f"{INDEX}: sha256 of its tar"),
        ("tar", swap_tars, f"{TAR}: has no member"),
        ("tar", lambda f: shutil.copy(f / TAR, f / "data" / "x.tar"), "data/x.tar belongs to no"),
        ("parquet", lambda f: flip(f / DATA), f"{DATA} has changed"),
        (
            "parquet",
            lambda f: shutil.copy(f / DATA, f / "data" / "x.parquet"),
            "data/x.parquet belongs to no",
        ),
    ],
)
def test_damage_is_found(images: Callable[[str], Path], container: str, damage: Damage, problem: str) -> None:
    folder = images(container)
    assert verify_data_set(str(folder)) == (
        [],
        f"2 slices of images ({container}), 0 rejects files: 8 planned, 8 images, 0 rejects",
    )
    damage(folder)
    problems, _ = verify_data_set(str(folder))
    assert any(re.search(problem, found) for found in problems), problems


def test_nothing_to_verify(images: Callable[[str], Path], tmp_path: Path, codec_path: str) -> None:
    folder = images("parquet")
    with pytest.raises(UserError, match="not made of images; leave out --codec and --input"):
        check_agreement(str(folder), SourceConfig(str(tmp_path / "in")), codec_path, 3)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        verify_data_set(str(folder))
