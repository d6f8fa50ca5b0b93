"""Data for training: random crops of images, captions, and rows of token data sets, by number or in batches.

The order of both is a pure function of seed and position (``shuffle``). Shards and manifests as files lie in
:mod:`vqgan.shards` and :mod:`vqgan.manifest`, what a training step makes of a batch in :mod:`vqgan.training`.
"""

VIEW_CHOICES = ("all", "one")
"""Which views of an image a training run sees in each round: every one, or one that is drawn anew."""
