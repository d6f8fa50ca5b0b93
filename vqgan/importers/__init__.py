"""Checkpoints of other code bases: recognised by their contents, converted with NumPy alone, and written.

Neither JAX nor torch is imported here. A foreign file is data: nothing that it says is executed.
Priors of other code bases are read in :mod:`vqgan.prior`, with the same readers; formats that are no
checkpoints are written in :mod:`vqgan.exporters`.
"""

from vqgan.importers.import_codec import ImportedCodec, import_checkpoint
from vqgan.importers.source import ImportOptions, is_foreign_source, looks_foreign

__all__ = ["ImportOptions", "ImportedCodec", "import_checkpoint", "is_foreign_source", "looks_foreign"]
