"""Training, of codecs in ``codec/`` and of priors in ``prior/``; here is what both share.

``loop`` and ``training_run`` know steps, evaluation, checkpoints and signals, and nothing of models. Where
data come from is not here: readers of crops and of tokens are in ``vqgan.data``, folders of images in
``transforms``.
"""
