"""Which pictures are held back: decided by a hash of the key, so it depends on nothing else."""

import hashlib


def key_hash(key: str) -> int:
    """sha1 of a key as an integer: a random order of pictures that no listing and no machine changes."""
    return int.from_bytes(hashlib.sha1(key.encode()).digest(), "big")


def is_held_back(key: str, holdout: int) -> bool:
    """Whether a picture is among the one in ``holdout`` that validates; none is where that is 0."""
    return holdout > 0 and key_hash(key) % holdout == 0
