"""Where slices are carried out: Beam and its runners, Dask, Dataflow; their flags, errors and progress.

It knows nothing of images and tokens: a run hands over a plan and gets a line of error or none. The graphs
are in :mod:`transforms`.
"""
