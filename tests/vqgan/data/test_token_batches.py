"""Endless batches: one order for all hosts, nothing lost or doubled, whatever stops and goes on."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgan.data import row_groups, shuffle
from vqgan.data.token_batches import token_batches
from vqgan.data.tokens import TokenBatch, TokenSet, open_tokens

ROWS = 26  # of 13 images with two views each


@pytest.fixture(scope="module")
def tokens(token_folder: Path) -> TokenSet:
    return open_tokens(str(token_folder), columns=["key"])


@pytest.fixture(scope="module")
def on_disk(token_folder: Path) -> TokenSet:
    return open_tokens(str(token_folder), columns=["key"], memory_mib=0)


@pytest.fixture(scope="module")
def large(large_token_folder: Path) -> TokenSet:
    """1,000 rows of single views in 100 row groups, read from disk."""
    return open_tokens(str(large_token_folder), memory_mib=0)


def shown(batches: Iterator[TokenBatch], count: int) -> list[int]:
    """Which rows the next batches show: a row's first token is its number."""
    return [row for _ in range(count) for row in next(batches).tokens[:, 0].tolist()]


def rounds(rows: list[int], size: int) -> list[list[int]]:
    return [sorted(rows[start : start + size]) for start in range(0, len(rows) - size + 1, size)]


@pytest.mark.parametrize("batch_size", [1, 7, 26, 60])
def test_each_row_once_before_any_again(batch_size: int, tokens: TokenSet) -> None:
    rows = shown(token_batches([tokens], batch_size, 0), -(-4 * ROWS // batch_size))
    assert rounds(rows, ROWS)[:4] == [list(range(ROWS))] * 4
    assert rows[:ROWS] != rows[ROWS : 2 * ROWS]


def test_what_a_batch_is(tokens: TokenSet) -> None:
    batch = next(token_batches([tokens], 5, 0))
    rows = batch.tokens[:, 0]
    assert (batch.tokens.shape, batch.tokens.dtype, batch.labels.dtype) == ((5, 6), np.int32, np.int32)
    assert batch.labels.tolist() == (rows % 7).tolist()
    assert batch.columns == {"key": [f"image-{row // 2:04d}.jpg" for row in rows]}
    np.testing.assert_array_equal(batch.tokens, tokens.take(rows).tokens)


def test_seed_decides(tokens: TokenSet) -> None:
    one, same, other = (shown(token_batches([tokens], 13, seed), 4) for seed in (3, 3, 4))
    assert one == same
    assert one != other


def test_rows_in_memory_are_mixed_as_a_whole(tokens: TokenSet) -> None:
    firsts = Counter(shown(token_batches([tokens], ROWS, seed), 1)[0] for seed in range(1000))
    # Binomial(1000, 1/26): mean 38.5, standard deviation 6.1.
    assert len(firsts) == ROWS
    assert all(abs(count - 38.5) < 5 * 6.1 for count in firsts.values())


def hosts(
    sets: list[TokenSet], count: int, batch_size: int, steps: int, state: Any = None, **options: Any
) -> tuple[list[list[int]], dict[str, Any]]:
    """The rows of each batch of all hosts, step by step and host by host, and where they end."""
    members = [
        token_batches(sets, batch_size, 1, shard_index=index, shard_count=count, **options)
        for index in range(count)
    ]
    for member in members:
        if state is not None:
            member.set_state(json.loads(json.dumps(state)))
    batches = [next(member).tokens[:, 0].tolist() for _ in range(steps) for member in members]
    states = [member.get_state() for member in members]
    assert all(each == states[0] for each in states)
    return batches, states[0]


sizes = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(0, 6))  # hosts, batch size, steps


@settings(max_examples=30)
@given(first=sizes, second=sizes, third=sizes, views=st.sampled_from(["all", "one"]), disk=st.booleans())
def test_any_hosts_see_the_streams_prefix(
    tokens: TokenSet, on_disk: TokenSet, first: Any, second: Any, third: Any, views: str, disk: bool
) -> None:
    sets = [on_disk if disk else tokens]
    rows: list[int] = []
    state = None
    for count, batch_size, steps in (first, second, third):
        batches, state = hosts(sets, count, batch_size, steps, state, views=views)
        rows += [row for batch in batches for row in batch]
        assert state["position"] == len(rows)
    assert rows == shown(token_batches(sets, len(rows) + 1, 1, views=views), 1)[:-1]
    size = ROWS if views == "all" else ROWS // 2
    for found in rounds(rows, size):
        assert [row // 2 for row in found] == [row // (2 if views == "all" else 1) for row in range(size)]


@settings(max_examples=30)
@given(first=sizes, second=sizes)
def test_any_hosts_see_the_mixtures_prefix(
    tokens: TokenSet, on_disk: TokenSet, first: Any, second: Any
) -> None:
    sets, options = [tokens, on_disk], {"weights": [1, 3]}
    rows: list[int] = []
    state = None
    for count, batch_size, steps in (first, second):
        batches, state = hosts(sets, count, batch_size, steps, state, **options)
        rows += [row for batch in batches for row in batch]
    assert rows == shown(token_batches(sets, len(rows) + 1, 1, weights=[1, 3]), 1)[:-1]


def test_batches_by_number(tokens: TokenSet) -> None:
    stream = token_batches([tokens], 4, 0, shard_index=1, shard_count=3)
    expected = shown(stream, 8)
    by_number = [stream.batch(number).tokens[:, 0].tolist() for number in range(8)]
    assert list(itertools.chain(*by_number)) == expected
    assert stream.batch(3).tokens[:, 0].tolist() == by_number[3]
    assert stream.get_state()["position"] == 8 * 12  # asking by number does not move it


def test_state_of_other_data_is_refused(
    tokens: TokenSet, on_disk: TokenSet, write_tokens: Any, refused: Any
) -> None:
    plain = token_batches([tokens], 4, 0)
    next(plain)
    state = json.loads(json.dumps(plain.get_state()))
    other = open_tokens(str(write_tokens("other")), columns=["key"])
    half = open_tokens(tokens.path, columns=["key"], holdout=3)
    for stream, what in (
        (token_batches([tokens], 4, 1), "seed was 0, now 1"),
        (token_batches([tokens], 4, 0, views="one"), "views was all, now one"),
        (token_batches([tokens], 4, 0, weights=[1]), "weights was None"),
        (token_batches([other], 4, 0), "sets was"),
        (token_batches([half], 4, 0), "'rows': 26"),
        (token_batches([on_disk], 4, 0), "'in_memory': True"),
    ):
        with refused(f"of other training data: .*{what}"):
            stream.set_state(state)
        assert stream.get_state()["position"] == 0
    for bad in (None, -4, "4", 1.5):
        with refused("saved position is damaged"):
            plain.set_state({**state, "position": bad})


def test_set_again_wherever_it_was(tokens: TokenSet) -> None:
    stream = token_batches([tokens], 4, 0)
    next(stream)
    state = stream.get_state()
    expected = shown(stream, 5)
    stream.set_state(state)
    assert shown(stream, 5) == expected


def test_one_view_of_each_image_in_a_round(tokens: TokenSet) -> None:
    rows = np.array(shown(token_batches([tokens], 13, 0, views="one"), 400)).reshape(400, 13)
    assert (np.sort(rows // 2, axis=1) == np.arange(13)).all()
    chosen = np.empty((400, 13), int)
    np.put_along_axis(chosen, rows // 2, rows % 2, axis=1)
    # Binomial(400, 1/2): mean 200, standard deviation 10; drawn for each image on its own.
    assert (abs(chosen.sum(axis=0) - 200) < 50).all()
    assert len({tuple(views) for views in chosen.tolist()}) > 350


def test_one_view_where_images_differ_in_views(write_tokens: Any) -> None:
    single = open_tokens(str(write_tokens("single", views=1)))
    assert rounds(shown(token_batches([single], 26, 0, views="one"), 2), 26) == [list(range(26))] * 2
    three = open_tokens(str(write_tokens("three", sizes=(4, 5), views=3, group_rows=2)), memory_mib=0)
    # Images 0, 1 (first shard: rows 0-2, 3), then 1 again in the second shard, where it is one of its own.
    rows = np.array(shown(token_batches([three], 4, 0, views="one"), 300)).reshape(300, 4)
    images = np.array([0, 0, 0, 1, 2, 2, 3, 3, 3])
    assert (np.sort(images[rows], axis=1) == np.arange(4)).all()
    counts = Counter(rows.reshape(-1).tolist())
    # Three views: Binomial(300, 1/3), mean 100, deviation 8.2. Two: mean 150, deviation 8.7.
    expected = {row: [100, 300, 150, 100][images[row]] for row in range(9)}
    assert all(abs(counts[row] - expected[row]) < 5 * 8.7 for row in range(9))
    assert counts[3] == 300


def test_sets_without_weights_are_as_one(tokens: TokenSet, write_tokens: Any) -> None:
    more = open_tokens(str(write_tokens("more", sizes=(4, 6))), columns=["key"])
    rows = Counter(shown(token_batches([tokens, more], 36, 0), 1))
    assert rows == Counter([*range(26), *range(10)])
    one = Counter(shown(token_batches([tokens, more], 18, 0, views="one"), 1))
    assert sum(one.values()) == 18
    assert sum(one[row] for row in range(10)) == 10  # images 0 to 4 of both
    mixed = open_tokens(more.path, columns=["key"], memory_mib=0)
    assert Counter(shown(token_batches([tokens, mixed], 36, 0), 1)) == rows


def test_weights_are_shares_of_positions(
    tokens: TokenSet, write_tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle, "MIXTURE_BLOCK", 50)
    labelled = open_tokens(str(write_tokens("other", labels=lambda row: 6)), columns=["key"])
    stream = token_batches([tokens, labelled], 50, 0, weights=[0.8, 0.2])
    own: list[int] = []
    for _ in range(26):
        batch = next(stream)
        # 40 and 10 rows: the second set's labels are all 6, the first's only for each seventh row.
        numbers, others = batch.tokens[:, 0], batch.labels != batch.tokens[:, 0] % 7
        assert 8 - 5 <= others.sum() <= 10
        own += numbers[others].tolist()
    assert len(own) > 26 * 5
    np.testing.assert_array_equal(batch.tokens, tokens.take(numbers).tokens)


def test_each_set_of_a_mixture_goes_through_rounds_of_its_own(
    write_tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle, "MIXTURE_BLOCK", 40)
    sets = [
        open_tokens(str(write_tokens(name, sizes=(size,), labels=lambda row, of=label: of)))
        for label, (name, size) in enumerate([("a", 9), ("b", 4)])
    ]
    stream = token_batches(sets, 40, 0, weights=[3, 1])
    batches = [next(stream) for _ in range(12)]
    assert [np.bincount(batch.labels).tolist() for batch in batches] == [[30, 10]] * 12
    for label, size in ((0, 9), (1, 4)):
        rows = [row for batch in batches for row in batch.tokens[batch.labels == label, 0].tolist()]
        found = rounds(rows, size)
        assert found == [list(range(size))] * len(found)
        assert len(found) >= 30


def test_sets_that_do_not_go_together(tokens: TokenSet, write_tokens: Any, refused: Any) -> None:
    def opened(name: str, **changes: Any) -> TokenSet:
        return open_tokens(str(write_tokens(name, **changes)), columns=["key"])

    own = tokens.fingerprint[:12]
    with refused(rf"tokens and .*codec cannot be mixed: their codecs are {own} \(tiny\) .* and .*\(large\)"):
        token_batches([tokens, opened("codec", codec="large")], 4, 0)
    with refused("with 1024 codes and .* with 2048 codes"):
        token_batches([tokens, opened("codes", codes=2048)], 4, 0)
    with refused("their grids have 2 rows of 3 and 3 rows of 2 tokens"):
        token_batches([tokens, opened("grid", grid=(3, 2))], 4, 0)
    with refused(r"their columns are key \(string without gaps\) and none;"):
        token_batches([tokens, open_tokens(tokens.path)], 4, 0)
    with refused("it has no rows; leave it out"):
        token_batches([tokens, open_tokens(tokens.path, columns=["key"], validation=True)], 4, 0)


def test_settings_that_cannot_be(tokens: TokenSet, refused: Any) -> None:
    with refused("no token data set is given"):
        token_batches([], 4, 0)
    with refused("a batch of 0 rows"):
        token_batches([tokens], 0, 0)
    with refused("seed is -1"):
        token_batches([tokens], 4, -1)
    with refused("views is 'two': it must be one of all, one"):
        token_batches([tokens], 4, 0, views="two")
    with refused("2 weights for 1 data sets"):
        token_batches([tokens], 4, 0, weights=[1, 2])
    with pytest.raises(ValueError, match="host 2 of 2"):
        token_batches([tokens], 4, 0, shard_index=2, shard_count=2)


def test_row_groups_are_read_about_once_in_a_round(
    large_token_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = open_tokens(str(large_token_folder), memory_mib=0)
    reads: list[tuple[str, int]] = []
    plain = row_groups.read_group

    def counted(manifest: Any, shard: Any, group: int, *rest: Any) -> Any:
        reads.append((shard.name, group))
        return plain(manifest, shard, group, *rest)

    monkeypatch.setattr(row_groups, "read_group", counted)
    batches = token_batches([large], 20, 0)
    rows = shown(batches, 50)
    assert sorted(rows) == list(range(1000))
    assert len(set(reads)) == 100
    # Those that reach round the end are read again, and a few that fall out between two batches.
    assert len(reads) <= 100 + 1.5 * row_groups.ROW_GROUPS_MIXED
    in_batch = [len({row // 10 for row in rows[start : start + 20]}) for start in range(0, 1000, 20)]
    assert min(in_batch) >= 8  # of 32 that are mixed


def test_threads_get_the_same_batches(large: TokenSet) -> None:
    stream = token_batches([large], 32, 0)
    expected = [stream.batch(number).tokens for number in range(15)]
    numbers = np.random.default_rng(0).permutation(15).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: stream.batch(number).tokens, numbers))
    for number, batch in zip(numbers, found, strict=True):
        np.testing.assert_array_equal(batch, expected[number])


def test_as_a_source_of_grain(tokens: TokenSet) -> None:
    import grain

    batches = token_batches([tokens], 4, 0, shard_index=1, shard_count=2)
    source = grain.MapDataset.source(batches.source)
    np.testing.assert_array_equal(source[7].tokens, batches.batch(7).tokens)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    iterator = iter(source.to_iter_dataset(options))
    try:
        rows = shown(iterator, 6)
        state = iterator.get_state()
        after = shown(iterator, 3)
        iterator.set_state(state)
        assert shown(iterator, 3) == after
    finally:
        iterator.close()
    assert rows + after == shown(batches, 9)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_example_for_torch(token_folder: Path) -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "examples/torch_tokens.py", str(token_folder)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(8, 6) torch.int64") == 3
    assert "position: 24" in done.stdout
