"""Shards of tokens to images in files, tars or Parquet: plan, slices, manifest, report and verification.

How slices are resumed and counted is in :mod:`transforms.sharded`.
"""
