"""Where images come from: one class per kind of input, and a registry that picks one."""

from transforms.sources.base import Entry, Example, Loader, Source, SourceConfig
from transforms.sources.registry import open_source

__all__ = ["Entry", "Example", "Loader", "Source", "SourceConfig", "open_source"]
