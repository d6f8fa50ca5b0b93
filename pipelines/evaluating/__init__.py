"""``vqgan evaluate``: codecs measured on images, the protocols of published numbers, and the report.

Formulas of metrics are in :mod:`vqgan.metrics`, networks behind them in :mod:`vqgan.features`.
"""
