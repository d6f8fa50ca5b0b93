"""``vqgan train`` and ``train-prior``: presets and data to a run, and how it ended.

Steps, losses and checkpoints are in :mod:`vqgan.training`; here is only what a user says and reads.
"""
