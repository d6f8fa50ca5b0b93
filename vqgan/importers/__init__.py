"""Checkpoints of other code bases: recognised by their contents, converted with NumPy alone.

Neither JAX nor torch is imported here. A foreign file is data: nothing that it says is executed.
"""

from vqgan.importers.base import Imported, Options
from vqgan.importers.registry import import_checkpoint, looks_foreign
from vqgan.importers.source import is_foreign_source

__all__ = ["Imported", "Options", "import_checkpoint", "is_foreign_source", "looks_foreign"]
