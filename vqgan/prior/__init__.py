"""Stage 2: transformers that learn the distribution of token grids: architecture, losses, folders, import.

Sampling from them is in :mod:`vqgan.prior.sampling`, their training in :mod:`vqgan.training`.
Images are the codec's.
"""
