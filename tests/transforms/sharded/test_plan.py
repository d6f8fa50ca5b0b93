"""The plan: order, cut, identity, and what is written down."""

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.sharded import plan
from transforms.sharded.plan import Plan, differences, make_plan, read_plan, read_slice, read_slices
from transforms.sharded.slices import ENTRY_SCHEMA, check_keys, collect, cut, entries_of
from transforms.sources import Entry
from vqgan.errors import UserError

KEYS = st.lists(st.text(max_size=8), unique=True, max_size=60)
SETTINGS = {"codec": {"fingerprint": "f" * 64}, "slice_size": 4}


def table_of(keys: list[str], **fields: Any) -> pa.Table:
    return collect(Entry(key, key, **fields) for key in keys)


def keys_of(slices: Iterable[pa.Table]) -> list[list[str]]:
    return [part.column("key").to_pylist() for part in slices]


@given(keys=KEYS, size=st.integers(1, 70), seed=st.randoms())
def test_order_depends_on_keys_alone(keys: list[str], size: int, seed: Any) -> None:
    shuffled = list(keys)
    seed.shuffle(shuffled)
    slices = keys_of(cut(table_of(keys), size, shuffles=True))
    assert slices == keys_of(cut(table_of(shuffled), size, shuffles=True))
    assert sorted(key for part in slices for key in part) == sorted(keys)
    assert all(0 < len(part) <= size for part in slices)
    assert len(slices) == -(-len(keys) // size)
    assert max(map(len, slices), default=0) - min(map(len, slices), default=0) <= 1


def test_order_of_folders_is_pinned() -> None:
    """A change of this order is a new format: finished data sets would be refused, or mixed."""
    (part,) = keys_of(cut(table_of(list("abcdefgh")), 8, shuffles=True))
    assert part == PINNED


PINNED = ["h", "c", "f", "e", "g", "b", "d", "a"]


def test_order_is_a_shuffle() -> None:
    keys = [f"{number:05}" for number in range(2000)]
    (part,) = keys_of(cut(table_of(keys), 2000, shuffles=True))
    in_step = sum(a < b for a, b in itertools.pairwise(part))
    assert 900 < in_step < 1100


@given(counts=st.lists(st.integers(1, 20), max_size=6), size=st.integers(1, 25))
def test_containers_keep_their_order_and_their_files(counts: list[int], size: int) -> None:
    entries = [
        Entry(f"{file}#{row}", str(file), row) for file, count in enumerate(counts) for row in range(count)
    ]
    slices = cut(collect(entries), size, shuffles=False)
    assert [key for part in keys_of(slices) for key in part] == [entry.key for entry in entries]
    assert all(len(set(part.column("file").to_pylist())) == 1 for part in slices)
    assert len(slices) == sum(-(-count // size) for count in counts)


def test_duplicate_keys_are_refused() -> None:
    with pytest.raises(UserError, match=r"2 keys occur more than once, such as 'a', 'b'"):
        check_keys(table_of(["a", "b", "c", "b", "a", "a"]))
    check_keys(table_of(["a", "b", "A"]))


def test_many_entries_are_collected_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transforms.sharded.slices.CHUNK", 7)
    table = table_of([str(number) for number in range(100)], label=3)
    assert table.num_rows == 100
    assert table.column("label").to_pylist() == [3] * 100
    assert collect([]).num_rows == 0
    assert make_plan([table.slice(0, 50), table.slice(50)], SETTINGS).entries == 100


ENTRY = Entry("key", "file", 5, 100, 1, None, None)


@pytest.mark.parametrize(
    "changed",
    [
        ENTRY._replace(key="other"),
        ENTRY._replace(offset=6),
        ENTRY._replace(size=101),
        ENTRY._replace(label=2),
        ENTRY._replace(label=None),
        ENTRY._replace(error="it is damaged"),
    ],
)
def test_hash_covers_the_entries(changed: Entry) -> None:
    def digest(entry: Entry) -> str:
        return make_plan([collect([entry, Entry("second", "file")])], SETTINGS).hash

    assert digest(ENTRY) == digest(Entry(*ENTRY))
    assert digest(ENTRY) != digest(changed)


def test_hash_covers_settings_and_cut() -> None:
    table = table_of(list("abcdef"))
    whole = make_plan(cut(table, 4, shuffles=True), SETTINGS)
    assert whole.hash != make_plan(cut(table, 3, shuffles=True), {**SETTINGS, "slice_size": 3}).hash
    assert whole.hash != make_plan([table.slice(0, 2), table.slice(2)], SETTINGS).hash
    assert whole.hash != make_plan(cut(table, 4, shuffles=True), {**SETTINGS, "dtype": "x"}).hash


def test_hash_covers_every_column() -> None:
    """Files are named below the input's root: a corpus may move as a whole, but no container be another."""
    entry = Entry("k", "a.tar", 1, 2, 3, "m", None)
    changes: list[dict[str, Any]] = [
        *({"key": "l"}, {"file": "b.tar"}, {"offset": 2}, {"size": 3}),
        *({"label": None}, {"members": None}, {"error": "e"}),
    ]
    changed = [entry, *(entry._replace(**change) for change in changes)]
    hashes = {make_plan([collect([each])], SETTINGS).hash for each in changed}
    assert len(hashes) == len(changes) + 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a\0b", "c"], ["a", "b\0c"]),
        (["a\0b"], ["a", "b"]),
        (["1", "2"], ["12", ""]),
        (["None"], [""]),
    ],
)
def test_no_two_lists_of_keys_run_into_one_another(one: list[str], other: list[str]) -> None:
    plans = [make_plan([collect(Entry(key, "f") for key in keys)], SETTINGS) for keys in (one, other)]
    assert plans[0].identity["input"]["sha256"] != plans[1].identity["input"]["sha256"]


@pytest.mark.parametrize("position", range(0, 2000, 61))
def test_a_flipped_bit_of_the_table_is_found(tmp_path: Path, position: int) -> None:
    """By launchers anywhere; by a worker in what it reads, or what it reads is right."""
    slices = cut(table_of([f"image-{number}.jpg" for number in range(40)]), 20, shuffles=True)
    written(tmp_path, slices)
    good = read_slice(str(tmp_path), 0)
    plan.check_plan_tables(str(tmp_path))
    data = bytearray((tmp_path / plan.keys_file(0)).read_bytes())
    data[position % len(data)] ^= 1
    (tmp_path / plan.keys_file(0)).write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"keys-00000.parquet: has changed since it was written"):
        plan.check_plan_tables(str(tmp_path))
    with contextlib.suppress(UserError):
        assert read_slice(str(tmp_path), 0) == good


def written(tmp_path: Path, slices: Iterable[pa.Table]) -> Plan:
    made = make_plan(slices, SETTINGS)
    plan.write_plan(str(tmp_path), made, slices)
    return made


def test_round_trip(tmp_path: Path) -> None:
    entries = [
        Entry("ä/\N{GRINNING FACE}", "%:caf%E9", 2**40, 2**33, -1, '{"txt": [1, 2]}', None),
        Entry("", "f", error="two\nlines"),
        Entry("k" * 10_000, "f", 1),
    ]
    slices = [collect(entries[:2]), collect(entries[2:])]
    made = written(tmp_path, slices)
    assert read_plan(str(tmp_path)) == made
    assert read_slice(str(tmp_path), 0) == entries[:2]
    assert read_slice(str(tmp_path), 1) == entries[2:]
    assert keys_of(read_slices(str(tmp_path), ["key"])) == [[e.key for e in entries[:2]], [entries[2].key]]


def test_one_row_group_a_slice(tmp_path: Path) -> None:
    slices = cut(table_of([f"{number}" for number in range(50)]), 7, shuffles=True)
    written(tmp_path, slices)
    footer = pq.ParquetFile(tmp_path / plan.keys_file(0)).metadata
    assert [footer.row_group(n).num_rows for n in range(footer.num_row_groups)] == [
        s.num_rows for s in slices
    ]


def test_a_slice_is_read_from_a_file_of_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many slices there are, opening one costs a footer of at most so many row groups."""
    monkeypatch.setattr(plan, "SLICES_PER_FILE", 3)
    (tmp_path / "plan").mkdir()
    for stray in ("keys-00009.parquet", "keys.parquet"):  # of another plan, whose writing was killed
        (tmp_path / "plan" / stray).write_bytes(b"")
    slices = cut(table_of([f"{number}" for number in range(50)]), 7, shuffles=True)
    written(tmp_path, slices)
    names = [f"plan/keys-{number:05}.parquet" for number in range(3)]
    assert plan.plan_tables(str(tmp_path)) == names
    assert sorted(path.name for path in (tmp_path / "plan").iterdir()) == [
        *(name.removeprefix("plan/") for name in names),
        "plan.json",
    ]
    assert [pq.ParquetFile(tmp_path / name).metadata.num_row_groups for name in names] == [3, 3, 2]
    for number in range(len(slices)):
        assert [entry.key for entry in read_slice(str(tmp_path), number)] == keys_of([slices[number]])[0]
    assert keys_of(read_slices(str(tmp_path))) == keys_of(slices)
    (tmp_path / names[1]).unlink()
    with pytest.raises(UserError, match=r"keys-00001\.parquet: cannot be read"):
        plan.check_plan_tables(str(tmp_path))
    with pytest.raises(UserError, match=r"keys-00001\.parquet: cannot be read"):
        read_slice(str(tmp_path), 3)
    with pytest.raises(UserError, match="has no slice 8"):
        read_slice(str(tmp_path), 8)


def test_columns_that_listing_found_are_in_the_plan(tmp_path: Path) -> None:
    fields = [pa.field("text", pa.string()), pa.field("tags", pa.list_(pa.int16()), nullable=False)]
    entries = [
        Entry("a", "a", columns={"text": "ä", "tags": [1, 2]}),
        Entry("#row-1", "", error="no JSON"),
        Entry("c", "c", columns={"text": None, "tags": None}),
    ]
    table = collect(entries, fields)
    made = written(tmp_path, cut(table, 2, shuffles=False))
    found = [entry for number in range(made.slices) for entry in read_slice(str(tmp_path), number)]
    assert [entry.columns for entry in found] == [
        {"text": "ä", "tags": [1, 2]},
        *({"text": None, "tags": None},) * 2,
    ]
    assert entries_of(table) == found
    plain = collect([entry._replace(columns=None) for entry in entries], fields)
    assert plain.schema.names == list(ENTRY_SCHEMA.names)
    assert make_plan(cut(plain, 2, shuffles=False), SETTINGS) == made  # captions do not count


def test_keys_of_one_hash_are_ordered_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "transforms.sharded.slices._order_hashes",
        lambda keys: np.array([key.as_py() < "c" for key in keys], np.uint64),
    )
    assert keys_of(cut(table_of(list("bdac")), 4, shuffles=True)) == [list("cdab")]


def test_slices_are_no_sequence_without_end() -> None:
    slices = cut(table_of(list("abc")), 2, shuffles=True)
    assert slices.sizes.tolist() == [1, 2]
    with pytest.raises(IndexError):
        slices[2]
    assert cut(collect([]), 2, shuffles=True).sizes.tolist() == []


def test_no_plan(tmp_path: Path) -> None:
    assert read_plan(str(tmp_path)) is None
    assert read_plan(str(tmp_path / "missing")) is None


def damaged_documents() -> Iterator[str]:
    made = make_plan([table_of(["a"])], SETTINGS)
    good = {"identity": dict(made.identity), "slices": 1, "entries": 1, "hash": made.hash}
    yield ""
    yield "{"
    yield "[]"
    yield "3"
    yield json.dumps({**good, "hash": "0" * 64})
    yield json.dumps({**good, "identity": {**good["identity"], "slice_size": 5}})
    yield json.dumps({name: value for name, value in good.items() if name != "slices"})
    for name in good:
        for value in (None, "x", -1, 10**400, [], True):
            yield json.dumps({**good, name: value})


@pytest.mark.parametrize("text", list(damaged_documents()))
def test_damaged_plan(tmp_path: Path, text: str) -> None:
    written(tmp_path, [table_of(["a"])])
    (tmp_path / plan.PLAN_FILE).write_text(text)
    with pytest.raises(UserError, match=r"plan\.json: damaged \(.*choose another output"):
        read_plan(str(tmp_path))


def test_differences_name_what_differs() -> None:
    old = {"a": 1, "codec": {"fingerprint": "1" * 64, "config": {"ch": 8}}, "same": [1], "gone": None}
    new = {"a": 2, "codec": {"fingerprint": "2" * 64, "config": {"ch": 9}}, "same": [1], "new": "x"}
    assert differences(old, new) == [
        "a: 1, now 2",
        "codec.config.ch: 8, now 9",
        f"codec.fingerprint: {'1' * 12}, now {'2' * 12}",
        "new: null, now x",
    ]
    assert differences(old, old) == []
