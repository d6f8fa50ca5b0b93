"""Codecs as ONNX models and priors as folders of transformers: formats that are no checkpoints of a VQGAN's.

Those checkpoints are written in :mod:`vqgan.importers.exporting`, by the layouts that they are read by.
"""
