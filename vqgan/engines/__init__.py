"""Engines that run a codec's networks: JAX itself, or another one behind the same codec."""
