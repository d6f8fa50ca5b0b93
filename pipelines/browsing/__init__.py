"""``vqgan browse``: what it looks at, its images, its pages and its server.

Nothing is written, and nothing but the command uses it. Reading token data sets in one's own code is
:mod:`vqgan.data`.
"""
