"""Training and validation: decided by a hash of an image's key, so it depends on nothing else."""

import dataclasses
import hashlib

import numpy as np
import pyarrow as pa


def key_hash(key: str) -> int:
    """Returns the sha1 of a key as an integer: a random order of images, the same for every listing."""
    return int.from_bytes(hashlib.sha1(key.encode()).digest(), "big")


def is_validation(key: str, holdout: int) -> bool:
    """Returns whether an image is the one in ``holdout`` that validates; none is where that is 0."""
    return holdout > 0 and key_hash(key) % holdout == 0


@dataclasses.dataclass(frozen=True)
class Split:
    """One side of the split by key; everything where ``holdout`` is 0 and nothing is asked for validation.

    Attributes:
      holdout: one image in so many is for validation.
      validation: whether those are meant, or the others.
    """

    holdout: int = 0
    validation: bool = False

    @property
    def is_all(self) -> bool:
        """Returns whether every row counts."""
        return not self.holdout and not self.validation

    def accepts(self, keys: pa.Array) -> np.ndarray:
        """Returns which rows count, bool ``[N]``. Each key is looked at once, however many views it has."""
        encoded = keys.dictionary_encode()
        wanted = [
            is_validation(key, self.holdout) == self.validation for key in encoded.dictionary.to_pylist()
        ]
        return np.array(wanted, bool)[encoded.indices.to_numpy()]
