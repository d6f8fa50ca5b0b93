"""The networks: layers, encoder and decoder, and the names and shapes of their parameters.

Quantizers have a folder of their own, and so have discriminators. Nothing is imported here: a launcher reads
``parameters`` without JAX.
"""
