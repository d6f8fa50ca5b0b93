"""Token data sets beyond one run: several by size, and finished ones that grow, are mended or joined.

The run that makes one is :mod:`pipelines.tokenize_images`; manifests, parts and verification are in
:mod:`transforms.tokenizing`.
"""
