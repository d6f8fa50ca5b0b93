"""Token sets as a prior's rows: each with its own condition, shared out as asked, weighted as asked."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqgan import shards
from vqgan.data import row_groups
from vqgan.data.token_batches import token_batches
from vqgan.data.tokens import TokenSet, open_tokens
from vqgan.manifest import FORMAT_VERSION
from vqgan.shards import DATA_FOLDER, ShardMetadata, ShardWriter, shard_name
from vqgan.training.prior.prior_rows import (
    CONDITION_COLUMNS,
    ConditionLookup,
    PriorBatches,
    mixed_histogram,
    share_out,
    spaced_rows,
    spread_rows,
)

Refused = Callable[[str], AbstractContextManager[None]]
Name = tuple[str, int]
CODES, GRID = 400, (1, 2)
PICTURES = [(f"{number}.jpg", view) for number in range(15) for view in range(2)]
ROWS = np.arange(len(PICTURES))


def write(folder: Path, names: Sequence[Name], tokens: np.ndarray, sizes: Sequence[int] = ()) -> Path:
    """A finished data set of named rows, each of one token that fills its grid, in shards of these sizes."""
    (folder / DATA_FOLDER).mkdir(parents=True)
    sizes = sizes or [len(names)]
    cells = GRID[0] * GRID[1]
    plan = hashlib.sha256(str(folder).encode()).hexdigest()
    entries, start = [], 0
    for number, size in enumerate(sizes):
        metadata = ShardMetadata("f" * 64, {}, {"name": "toy"}, GRID, CODES, {}, plan, number, len(sizes), 0)
        path, part = folder / shard_name(number, len(sizes)), slice(start, start + size)
        with path.open("wb") as file, ShardWriter(file, metadata) as writer:
            writer.write(_columns(names[part]), np.repeat(tokens[part], cells).reshape(-1, *GRID))
        entries.append({"name": shard_name(number, len(sizes)), "rows": size, "bytes": path.stat().st_size})
        start += size
    manifest = {
        "version": FORMAT_VERSION,
        "plan_hash": plan,
        "codec": {"name": "toy", "fingerprint": "f" * 64},
        "grid": GRID,
        "counts": {"rows": len(names)},
        "shards": entries,
        "codebook": {"histogram": np.bincount(np.repeat(tokens, cells), minlength=CODES).tolist()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _columns(names: Sequence[Name]) -> dict[str, list[Any]]:
    count = len(names)
    return {
        "key": [key for key, _ in names], "view": [view for _, view in names], "label": [3] * count,
        "crop": [[0, 0, 1, 1]] * count, "mirrored": [False] * count, "width": [1] * count,
        "height": [1] * count,
    }  # fmt: skip


def opened(folder: Path, **changes: Any) -> TokenSet:
    return open_tokens(str(folder), columns=CONDITION_COLUMNS, **changes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images whose token is their number; conditions, shuffled, with others among them: 100 more."""
    root = tmp_path_factory.mktemp("sets")
    images = write(root / "images", PICTURES, ROWS, (10, 12, 8))
    more = [*PICTURES, *(("other.jpg", view) for view in range(6))]
    order = np.random.default_rng(0).permutation(len(more))
    assert not (order == np.arange(len(more))).all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "TOKENS_PER_ROW_GROUP", 10)  # several row groups a shard
        condition = write(root / "condition", [more[row] for row in order], 100 + order, (20, 0, 16))
    return images, condition


@pytest.fixture(scope="module", params=[64, 0], ids=["memory", "disk"])
def pair(request: pytest.FixtureRequest, folders: tuple[Path, Path]) -> tuple[TokenSet, ConditionLookup]:
    images, condition = folders
    memory = request.param
    return opened(images, memory_mib=memory), ConditionLookup(open_tokens(str(condition), memory_mib=memory))


def test_conditions_of_a_batch(pair: tuple[TokenSet, ConditionLookup]) -> None:
    tokens, partners = pair
    numbers = np.array([29, 0, 7, 0, 12])
    found = partners.of(tokens.take(numbers))
    assert found.dtype == np.int32
    assert found.tolist() == [[129, 129], [100, 100], [107, 107], [100, 100], [112, 112]]


@pytest.mark.parametrize("views", ["all", "one"])
def test_every_row_in_training_has_its_condition(pair: tuple[TokenSet, ConditionLookup], views: str) -> None:
    tokens, partners = pair
    partners.check([tokens])
    batches = PriorBatches(
        token_batches([tokens], 15, seed=1, views=views), labelled=False, conditions=partners
    )
    rows = [next(batches) for _ in range(2)]
    seen = np.concatenate([part.tokens for part in rows])
    assert len({*seen[:, 0].tolist()}) > 15
    np.testing.assert_array_equal(np.concatenate([part.condition for part in rows]), seen + 100)
    assert {*rows[0].labels.tolist()} == {-1}


def test_rows_without_a_condition(folders: tuple[Path, Path], tmp_path: Path, refused: Refused) -> None:
    some = write(tmp_path / "some", [*PICTURES[:4], ("1.jpg", 7), ("new.jpg", 0)], np.arange(6))
    partners = ConditionLookup(open_tokens(str(folders[1])))
    with refused(r"condition: 2 of the 6 rows of .*some have no partner .*\(such as key '1\.jpg', view 7\)"):
        partners.check([opened(folders[0]), opened(some)])


def test_names_in_two_data_sets(folders: tuple[Path, Path], tmp_path: Path, refused: Refused) -> None:
    """Whichever is to train on or to validate on; one of them would learn under the other's conditions."""
    partners = ConditionLookup(open_tokens(str(folders[1])))
    other = write(tmp_path / "other", [("other.jpg", 2), PICTURES[9]], np.arange(2))
    with refused(r"images and .*other both have key '4\.jpg', view 1, and would share a condition"):
        partners.check([opened(folders[0]), opened(other)])
    apart = write(tmp_path / "apart", [("other.jpg", 2)], np.arange(1))
    partners.check([opened(folders[0]), opened(apart)])


def test_halves_are_no_two_data_sets(folders: tuple[Path, Path]) -> None:
    partners = ConditionLookup(open_tokens(str(folders[1])))
    halves = [opened(folders[0], holdout=3, validation=validation) for validation in (False, True)]
    assert (sum(map(len, halves)), min(map(len, halves)) > 0) == (30, True)
    partners.check(halves)
    for half in halves:
        found = spaced_rows(half, len(half), True, partners)
        np.testing.assert_array_equal(found.condition, found.tokens + 100)


def test_a_condition_that_is_there_twice(tmp_path: Path, refused: Refused) -> None:
    folder = write(tmp_path / "twice", [("a", 0), ("b", 0), ("a", 1), ("a", 0)], np.arange(4))
    with refused(r"twice: more than one row has key 'a', view 0"):
        ConditionLookup(open_tokens(str(folder)))


def test_names_are_found_without_decoding_tokens(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, condition = (opened(folder, memory_mib=0) for folder in folders)

    def refuse(shard: Any, table: Any) -> np.ndarray:
        raise AssertionError("tokens were read")

    monkeypatch.setattr(row_groups, "flat_tokens", refuse)
    ConditionLookup(condition).check([images])


def test_evenly_spaced_rows(folders: tuple[Path, Path]) -> None:
    tokens = opened(folders[0])
    found = spaced_rows(tokens, 4, True)
    assert found.tokens.tolist() == [[0, 0], [7, 7], [15, 15], [22, 22]]
    assert (found.labels.tolist(), found.condition) == ([3] * 4, None)
    assert spaced_rows(tokens, 30, False).tokens[:, 0].tolist() == list(range(30))


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ((10, 10, 10), 10, [3, 3, 4]),
        ((10, 10, 10), 40, [10, 10, 10]),
        ((1, 98, 1), 2, [0, 1, 1]),
        ((30, 0, 10), 8, [6, 0, 2]),
        ((0, 0), 8, [0, 0]),
        ((), 8, []),
    ],
)
def test_a_limit_is_shared_out(sizes: Sequence[int], limit: int, expected: Sequence[int]) -> None:
    assert share_out(sizes, limit) == expected


def test_rows_spread_over_several_sets(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """No more than the limit, though each set's share of it is a fraction."""
    tokens, partners = opened(folders[0]), ConditionLookup(open_tokens(str(folders[1])))
    few = opened(write(tmp_path / "few", [("other.jpg", view) for view in range(6)], 30 + np.arange(6)))
    found = spread_rows([few, tokens, few], 10, 2, True, partners)
    assert found.tokens[:, 0].tolist() == [30, 0, 4, 8, 12, 17, 21, 25, 30, 33]
    np.testing.assert_array_equal(found.condition, found.tokens + 100)
    assert spread_rows([few, tokens], 1, 2, True).tokens.tolist() == [[0, 0]]
    assert spread_rows([], 10, 2, True).tokens.shape == (0, 2)


def test_histogram_of_a_mixture(folders: tuple[Path, Path], tmp_path: Path) -> None:
    tokens = opened(folders[0])
    few = opened(write(tmp_path / "few", [("a", 0), ("b", 0)], np.array([5, 300])))
    plain = mixed_histogram([tokens, few], None)
    assert (plain.sum(), plain[5], plain[6], plain[300]) == (64, 4, 2, 2)
    mixed = mixed_histogram([tokens, few], (1.0, 3.0))
    assert mixed.sum() == pytest.approx(1)
    assert mixed[[5, 6, 300]] == pytest.approx([1 / 4 / 30 + 3 / 4 / 2, 1 / 4 / 30, 3 / 4 / 2])
