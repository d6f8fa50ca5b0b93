"""Engines that run a codec's networks: JAX itself, or OpenVINO behind the same codec.

Which one a run takes is settled in ``choice``; how far they agree is measured in ``agreement``. Models for
the runtimes of others are written in :mod:`vqgan.exporters`.
"""
