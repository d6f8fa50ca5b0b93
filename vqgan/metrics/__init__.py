"""Metrics of reconstructions and tokens: how near images are to their originals, how evenly codes are used.

Networks that a Fréchet distance compares features of are in ``vqgan.features``; what a codec is trained to
minimise is in ``vqgan.losses``. Only ``lpips`` needs JAX.
"""
