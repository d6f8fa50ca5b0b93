"""Encoded bytes to pixels: decoding, colours, crops, resizing, and random access to the images of a source.

Where the bytes come from is in :mod:`transforms.sources`; what becomes of the pixels is not known here.
"""
