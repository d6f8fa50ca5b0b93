"""Foreign formats: one file for each code base, with its :class:`~vqgan.importers.layout.KeyLayout`.

A new one is a file here and a line in :mod:`vqgan.importers.registry`. Containers (torch, msgpack, ...)
are no matter of formats.
"""
