"""``vqgan sample`` and ``complete``: runs that draw tokens from a prior, and what they may be given.

How tokens are drawn is in :mod:`vqgan.prior`, shards of samples in :mod:`transforms.sampling`.
"""
