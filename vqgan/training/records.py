"""The files that a training run leaves for people: ``metrics.jsonl`` and ``sheets/``.

``metrics.jsonl`` holds one JSON object a line: ``step``, ``time`` (seconds since 1970) and either named
numbers (null where a value was not finite: JSON knows no NaN) or ``event``, a text.
"""

import json
import re
from pathlib import Path
from typing import Any

from vqgan.errors import UserError
from vqgan.filesystems import write_atomically

METRICS_FILE = "metrics.jsonl"
SHEETS_FOLDER = "sheets"
_SHEET_NAME = re.compile(r"(?P<name>.+)-(?P<step>\d+)\.png")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of ``metrics.jsonl``, none if it is not there, without a last line that a kill has torn.

    Raises:
      UserError: it cannot be read, or a line before the last is damaged.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    records = [(number, _record(line)) for number, line in enumerate(lines, 1) if line.strip()]
    if records and records[-1][1] is None:
        records.pop()
    damaged = [number for number, record in records if record is None]
    if damaged:
        raise UserError(f"{path}: line {damaged[0]} is damaged; delete it, the others stay usable")
    return [record for _, record in records if record is not None]


def list_sheets(folder: Path) -> dict[str, list[tuple[int, Path]]]:
    """The pictures in ``sheets/``: for each name, steps in order and their files."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _SHEET_NAME.fullmatch(path.name)
        if match is not None:
            found.setdefault(match["name"], []).append((int(match["step"]), path))
    return {name: sorted(found[name]) for name in sorted(found)}


def sheet_name(name: str, step: int) -> str:
    """File name of a sheet; what is no letter, digit, ``_``, ``.`` or ``-`` in its name becomes ``-``."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{step}.png"


def drop_records(path: Path, resume_step: int) -> None:
    """Keeps the records up to a step (none for 0), in one go: a kill in between loses nothing."""
    records = read_metrics(path) if resume_step else []
    kept = [record for record in records if record["step"] <= resume_step]
    write_atomically(path, b"".join(json.dumps(record).encode() + b"\n" for record in kept))


def drop_sheets(folder: Path, resume_step: int) -> None:
    """Removes the sheets made after a step (all for 0)."""
    for sheets in list_sheets(folder).values():
        for step, path in sheets:
            if step > resume_step or not resume_step:
                path.unlink()


def _record(line: bytes) -> dict[str, Any] | None:
    """A line's object, None if it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None
