"""Damage to data sets, drawn from a seed: flipped bits, and changes to documents, tables and files."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.sharded.plan import Plan

OTHERS: tuple[Any, ...] = (
    *(None, True, -1, 0, 7, 10**18, 10**30, 0.5),
    *("", "x", "../x", "\0", [], [1], {}, {"x": 1}),
)
"""Values that a field is given in place of its own."""


def flip_a_bit(path: Path, rng: random.Random) -> str:
    """Flips one bit of a file; an empty one gets a byte."""
    data = bytearray(path.read_bytes() or b"\0")
    place = rng.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(bytes(data))
    return f"bit {place} flipped"


def change_structure(folder: Path, path: Path, rng: random.Random) -> str:
    """Changes one file of a data set in a way that its kind of file can suffer; says how."""
    changes = [_truncate, _empty, _remove, _become_a_folder, _duplicate, _swap, _append]
    if path.suffix == ".json":
        changes += 5 * [_change_document]
    if path.suffix == ".jsonl":
        changes += 3 * [_change_line]
    if path.suffix == ".parquet":
        changes += 3 * [_change_table, _change_footer]
    change = rng.choice(changes)
    return f"{change.__name__.strip('_')}: {change(folder, path, rng)}"


# Files.


def _truncate(folder: Path, path: Path, rng: random.Random) -> str:
    data = path.read_bytes()
    path.write_bytes(data[: (cut := rng.randrange(max(1, len(data))))])
    return f"{cut} of {len(data)} bytes"


def _empty(folder: Path, path: Path, rng: random.Random) -> str:
    path.write_bytes(b"")
    return "no bytes"


def _remove(folder: Path, path: Path, rng: random.Random) -> str:
    path.unlink()
    return "gone"


def _become_a_folder(folder: Path, path: Path, rng: random.Random) -> str:
    path.unlink()
    path.mkdir()
    if rng.random() < 0.5:
        (path / path.name).write_bytes(b"a file in it")
    return "a folder"


def _duplicate(folder: Path, path: Path, rng: random.Random) -> str:
    copy = path.with_name(f"copy-of-{path.name}")
    shutil.copy(path, copy)
    return copy.name


def _swap(folder: Path, path: Path, rng: random.Random) -> str:
    other = rng.choice([each for each in files_of(folder) if each != path])
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second)
    other.write_bytes(first)
    return f"with {other.relative_to(folder)}"


def _append(folder: Path, path: Path, rng: random.Random) -> str:
    more = rng.choice([b"\0", b"{}", path.read_bytes()])
    path.write_bytes(path.read_bytes() + more)
    return f"{len(more)} bytes"


# Documents.


def _change_document(folder: Path, path: Path, rng: random.Random) -> str:
    """A field dropped, retyped, changed or added; a plan's hash is made to agree half of the time."""
    document = json.loads(path.read_text())
    said = change_field(document, rng)
    if path.name == "plan.json" and rng.random() < 0.5 and isinstance(document.get("identity"), dict):
        document["hash"] = Plan(document["identity"], 0, 0).hash
        said += ", hash mended"
    path.write_text(json.dumps(document, indent=1) + "\n")
    return said


def change_field(document: Any, rng: random.Random) -> str:
    """Changes one field or item anywhere in a JSON document."""
    owner, name, where = rng.choice(list(_places(document, "")))
    change = rng.choice(("drop", "retype", "change", "change", "add"))
    old = owner[name]
    if change == "drop":
        del owner[name]
    elif change == "retype":
        owner[name] = rng.choice([value for value in OTHERS if type(value) is not type(old) or value != old])
    elif change == "change":
        owner[name] = _changed(old, rng)
    elif isinstance(owner, dict):
        owner[f"{name}_"] = old
    else:
        owner.insert(name, old)
    new = owner.get(name) if isinstance(owner, dict) else owner
    return f"{where} {change}: {str(old)[:30]!r} -> {str(new)[:30]!r}"


def _places(value: Any, where: str) -> Any:
    """Yields owner, key and dotted name of each field; of a long list some items."""
    if isinstance(value, dict):
        items: Any = list(value.items())
    else:
        items = list(enumerate(value))[:4] if isinstance(value, list) else []
    for name, inner in items:
        yield value, name, f"{where}.{name}"
        yield from _places(inner, f"{where}.{name}")


def _changed(value: Any, rng: random.Random) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + rng.choice((-1, 1, 2, 100))
    if isinstance(value, str):
        place = rng.randrange(len(value) + 1)
        return value[:place] + rng.choice("0aZ/é") + value[place + 1 :]
    if isinstance(value, list):
        return rng.choice(([*value[::-1], 0], value[1:], value + value[:1], value + value))
    if isinstance(value, dict):
        return dict(list(value.items())[1:]) or {"x": 1}
    return 3


def _change_line(folder: Path, path: Path, rng: random.Random) -> str:
    """Lines of JSON: one is lost, twice there, exchanged with another, or changed; the sum may be mended."""
    lines = path.read_text().splitlines()
    number, kind = rng.randrange(len(lines)), rng.choice(("lost", "twice", "moved", "changed"))
    line = lines.pop(number)
    if kind == "twice":
        lines += [line, line]
    elif kind == "moved":
        lines.insert(0 if number else len(lines), line)
    elif kind == "changed":
        document = json.loads(line)
        change_field(document, rng)
        lines.insert(number, json.dumps(document))
    path.write_text("".join(f"{line}\n" for line in lines))
    return f"line {number} {kind}{_mend(folder, path, rng)}"


# Tables.


def _change_footer(folder: Path, path: Path, rng: random.Random) -> str:
    """Metadata of a Parquet footer; the sums that others have of the file may be mended."""
    table, metadata = _read(path)
    documents = [key for key in metadata if key.startswith(b"vqgan")]
    if documents and rng.random() < 0.8:
        document = json.loads(metadata[documents[0]])
        said = change_field(document, rng)
        metadata[documents[0]] = json.dumps(document).encode()
    else:
        said = rng.choice(("no metadata", "no JSON", "more metadata"))
        metadata = {
            "no metadata": {},
            "no JSON": dict.fromkeys(documents, b"{"),
            "more metadata": {**metadata, b"more": b"1"},
        }[said]
    _write(path, table, metadata)
    return said + _mend(folder, path, rng)


def _change_table(folder: Path, path: Path, rng: random.Random) -> str:
    """Rows or columns of a Parquet file, its metadata kept; the sums that others have of it may be mended."""
    table, metadata = _read(path)
    column = rng.choice(table.schema.names)
    changes: dict[str, Callable[[], pa.Table]] = {
        "a row lost": lambda: table.slice(1),
        "a row twice": lambda: pa.concat_tables([table, table.slice(0, 1)]),
        "no rows": lambda: table.slice(0, 0),
        f"without {column}": lambda: table.drop_columns([column]),
        f"{column} renamed": lambda: table.rename_columns({column: f"{column}_"}),
        f"{column} as text": lambda: _as_text(table, column),
        f"{column} twice": lambda: table.append_column(table.schema.field(column), table.column(column)),
    }
    said = rng.choice(list(changes))
    _write(path, changes[said](), metadata)
    return said + _mend(folder, path, rng)


def _as_text(table: pa.Table, name: str) -> pa.Table:
    values = pa.array([str(value) for value in table.column(name).to_pylist()])
    return table.set_column(table.schema.get_field_index(name), name, values)


def _read(path: Path) -> tuple[pa.Table, dict[bytes, bytes]]:
    with pq.ParquetFile(path) as file:
        metadata = dict(file.metadata.metadata or {})
        metadata.pop(b"ARROW:schema", None)
        return file.read(), metadata


def _write(path: Path, table: pa.Table, metadata: dict[bytes, bytes]) -> None:
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(metadata)


def _mend(folder: Path, path: Path, rng: random.Random) -> str:
    """Half of the time, writes a file's new size and sum wherever the data set tells them."""
    if rng.random() < 0.5:
        return ""
    name, data = path.relative_to(folder).as_posix(), path.read_bytes()
    rows = pq.read_metadata(path).num_rows if path.suffix == ".parquet" else None
    for document in (folder / "manifest.json", folder / "plan" / "plan.json"):
        if document.exists():
            found = json.loads(document.read_text())
            for entry in _entries(found, name):
                entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
                if rows is not None:
                    entry["rows"] = rows
            document.write_text(json.dumps(found, indent=1) + "\n")
    return ", sums mended"


def _entries(value: Any, name: str) -> Any:
    """Yields the objects in a document that describe the file of this name."""
    if isinstance(value, dict) and value.get("name") == name and "sha256" in value:
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _entries(inner, name)


def files_of(folder: Path) -> list[Path]:
    """All files below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
