"""Images of a source to shards of tokens: what a slice is, its manifest, report and verification.

How slices are planned, resumed and counted is in :mod:`transforms.sharded`.
"""
