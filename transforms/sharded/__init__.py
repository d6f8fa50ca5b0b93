"""The one mechanism behind tokenize, decode and sample: plan, slices, shards, rejects, manifest, resume.

It knows neither images nor tokens; what a slice holds is in ``transforms/{tokenizing,decoding,sampling}``.
"""
