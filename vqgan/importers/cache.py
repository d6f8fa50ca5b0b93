"""The last imported checkpoint, kept in memory: a codec asks for its parts one after the other."""

import threading
from pathlib import Path

from vqgan.importers.base import Imported
from vqgan.importers.locating import find_weights
from vqgan.importers.registry import import_checkpoint
from vqgan.importers.source import parse_source

_lock = threading.Lock()
_last: tuple[object, Imported] | None = None


def imported(source: str) -> Imported:
    """As :func:`~vqgan.importers.registry.import_checkpoint`, converted once while the file stays the same.

    Only the last one is kept: two would be two models in memory.
    """
    global _last
    with _lock:
        key = (source, _signature(source))
        if _last is None or _last[0] != key:
            _last = None  # give the old one's memory back first
            _last = (key, import_checkpoint(source))
        return _last[1]


def local_file(source: str) -> Path:
    """The weights file that a source means."""
    path, _ = parse_source(source)
    return find_weights(path)


def _signature(source: str) -> tuple[object, ...]:
    """Changes whenever the file, or a configuration beside it, does."""
    file = local_file(source)
    beside = sorted(
        (p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in file.parent.iterdir() if p.is_file()
    )
    return (str(file.absolute()), *beside)
