"""Where images come from: one class per kind of input, and a registry that picks one.

A source lists entries and reads their bytes; what pixels become of them is in :mod:`transforms.images`. A new
kind is a class here and a line in :mod:`transforms.sources.registry`.
"""

from typing import TYPE_CHECKING, Any

from transforms.sources.base import Entry, Example, Loader, Source, SourceConfig

if TYPE_CHECKING:
    from transforms.sources.registry import open_source

__all__ = ["Entry", "Example", "Loader", "Source", "SourceConfig", "open_source"]


def __getattr__(name: str) -> Any:
    # The registry loads every source, and Arrow with them; who only describes an input need not.
    if name == "open_source":
        from transforms.sources.registry import open_source

        return open_source
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
