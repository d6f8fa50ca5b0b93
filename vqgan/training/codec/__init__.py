"""Training a codec, the VQGAN: its configuration, losses' gradients, update, codebook care and run.

The losses themselves are in ``vqgan.losses``, LPIPS is in ``vqgan.metrics``.
"""
