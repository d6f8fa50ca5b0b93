"""Damage to any file of a data set is found by ``verify``, or changes nothing that a reader reads."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.inspecting import describe, format_description, verify_data_set
from tests.damage import change_structure, files_of, flip_a_bit
from tests.faulty import shards
from transforms.decoding.image_files import stored_images
from transforms.sharded.verify import CIRCUMSTANCES
from vqgan.data.tokens import open_tokens
from vqgan.errors import UserError

from .small_jobs import JOBS, SmallJobs

TIMES = {"tokenize": 180, "sample": 100}
"""How often a token data set of a job is damaged in either way; one of images is 80 times."""
COLUMNS = ("key", "view", "crop", "mirrored", "width", "height")
UNFINISHED = 50
Damage = Callable[[Path, Path, random.Random], str]
WAYS: dict[str, Damage] = {
    "flips": lambda folder, path, rng: flip_a_bit(path, rng),
    "changes": change_structure,
}


def answered(function: Callable[[], Any]) -> Any:
    """What a function returns, or its UserError of one line; anything else that it raises is a mistake."""
    try:
        return function()
    except UserError as error:
        message = error
    assert str(message).isprintable()
    return message


def is_found(folder: Path) -> bool:
    """Whether ``verify`` complains, in lines."""
    found = answered(lambda: verify_data_set(str(folder))[0])
    if isinstance(found, UserError):
        return True
    assert all(problem.isprintable() for problem in found), found
    return bool(found)


def token_rows(folder: Path) -> list[Any]:
    """All rows of tokens with all that belongs to them, as a training run reads them."""
    tokens = open_tokens(str(folder), columns=COLUMNS)
    batch = tokens.take(np.arange(len(tokens)))
    columns = [np.asarray(batch.columns[name]).tolist() for name in COLUMNS]
    return sorted(zip(*columns, batch.tokens.tolist(), batch.labels.tolist(), strict=True), key=repr)


def read(folder: Path) -> Any:
    """All that a reader of a data set reads: what it is said to be, its rows, its images."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    declared = {name: part for name, part in manifest.items() if name not in (*CIRCUMSTANCES, "storage")}
    for name in {"shards", "rejects", "archives", "metadata"} & declared.keys():  # sums are mended, too
        declared[name] = [(entry["name"], entry["rows"]) for entry in declared[name]]
    if manifest.get("kind") == "images":
        names = [entry["name"] for entry in manifest["shards"]]
        rows = [(*row, data) for name in names for row, data in stored_images(str(folder), name)]
        circumstances = ("name", "card", "config")
        # where the tokens lay, and what their codec was called there
        declared["tokens"] = {n: p for n, p in declared["tokens"].items() if n not in ("path", "codec")}
    else:
        rows, circumstances = token_rows(folder), ("name", "card")
    declared["codec"] = {n: part for n, part in declared["codec"].items() if n not in circumstances}
    images = {path.name: pixels_of(path) for path in folder.glob("images/*.png")}
    return json.dumps(declared, sort_keys=True), rows, images


def pixels_of(path: Path) -> list[Any]:
    with Image.open(path) as image:
        return np.asarray(image).tolist()


def examine(folder: Path, command: Callable[[], Any], whole: Any, tokens: bool) -> str:
    """Tries all that may be done with a damaged data set; says what became of it.

    Args:
      folder: of the data set.
      command: that made it; given again.
      whole: what :func:`read` gave before the damage.
      tokens: whether it is one of tokens.
    """
    found = is_found(folder)
    if tokens and isinstance(rows := answered(lambda: token_rows(folder)), list):
        assert rows == whole[1], "a reader takes wrong rows"
    if not found:
        assert read(folder) == whole, "not found"
    described = answered(lambda: describe(str(folder)))
    if isinstance(described, dict):
        assert json.dumps(described)
        assert format_description(described)
    for path in folder.glob("data/*.parquet"):
        answered(lambda path=path: describe(str(path)))
    again = answered(command)
    if isinstance(again, UserError):
        return "found, refused by the command" if found else "harmless, refused by the command"
    if is_found(folder):
        return "found, also after the command"
    assert read(folder) == whole, "taken for whole by the command"
    return "found, mended by the command" if found else "harmless"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("job", JOBS)
def test_each_damage_is_found_or_harmless(
    job: str, way: str, small_jobs: SmallJobs, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    original, folder = tmp_path / "original", tmp_path / "damaged"
    small_jobs.command(job, original)()
    assert not is_found(original)
    whole, names = read(original), [path.relative_to(original) for path in files_of(original)]
    rng, outcomes, times = random.Random(11), Counter[str](), TIMES.get(job, 80)
    for number in range(times):
        shutil.copytree(original, folder)
        name = names[number % len(names)]
        said = WAYS[way](folder, folder / name, rng)
        try:
            outcomes[examine(folder, small_jobs.command(job, folder), whole, job in TIMES)] += 1
        except Exception as error:
            error.add_note(f"{name}: {said}")
            raise
        shutil.rmtree(folder)
    shown = ", ".join(f"{outcome} {n}" for outcome, n in sorted(outcomes.items()))
    record_property("faults", f"{way} in a set of {job}: {times} over {len(names)} files ({shown})")
    assert times >= 2 * len(names)
    assert outcomes.total() - outcomes["harmless"] > times / 2


@pytest.mark.parametrize("job", JOBS)
def test_damage_to_an_unfinished_run(
    job: str, small_jobs: SmallJobs, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The command that continues it refuses it, makes the damaged part again, or ``verify`` finds it."""
    original, folder = tmp_path / "original", tmp_path / "damaged"
    small_jobs.command(job, original)()
    whole = read(original)
    last = max(shards(original))
    for path in (original / "manifest.json", *original.glob(f"*/{last}")):
        path.unlink()
    names = [path.relative_to(original) for path in files_of(original) if path.name != "README.md"]
    rng, outcomes = random.Random(5), Counter[str]()
    for number in range(UNFINISHED):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
        name, way = names[number % len(names)], rng.choice(list(WAYS))
        said = WAYS[way](folder, folder / name, rng)
        if name.parts[0] == "images" and said.startswith("swap"):
            continue  # nothing tells one whole image from another before their sums are written down
        try:
            again = answered(small_jobs.command(job, folder))
            if isinstance(again, UserError):
                outcomes["refused"] += 1
            elif is_found(folder):
                outcomes["found"] += 1
            else:
                assert read(folder) == whole, "taken for whole"
                outcomes["mended or harmless"] += 1
        except Exception as error:
            error.add_note(f"{name}: {said}")
            raise
    shown = ", ".join(f"{outcome} {n}" for outcome, n in sorted(outcomes.items()))
    record_property(
        "faults", f"damage to an unfinished {job}: {UNFINISHED} over {len(names)} files ({shown})"
    )
