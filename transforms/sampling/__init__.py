"""Tokens drawn from a prior as shards like those of images, with an image of each sample beside them.

How tokens are drawn is in ``vqgan/prior``; manifest and verification are of :mod:`transforms.tokenizing`.
"""
