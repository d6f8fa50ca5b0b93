"""Sampling from a prior: requests, the way from logits to a token, and the order in which tokens are drawn.

Configuration and requests need no JAX. Slices and shards of samples are the pipeline's, in ``transforms``.
"""
