"""Training a prior: its configuration, rows of token sets, update and run.

What a prior is trained to do (its loss) is in ``vqgan.prior``.
"""
