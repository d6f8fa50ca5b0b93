"""Codecs and priors in the formats of other runtimes and code bases that are no checkpoints of a VQGAN's."""
