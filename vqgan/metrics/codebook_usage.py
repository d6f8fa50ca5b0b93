"""How evenly a set of tokens uses the codebook."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class CodebookUsage:
    """How a set of tokens spreads over the codebook.

    Attributes:
      used: codes that occur at least once.
      entropy: empirical entropy in bits per token.
      perplexity: ``2 ** entropy``, the size of an evenly used codebook of that entropy.
    """

    used: int
    entropy: float
    perplexity: float


def codebook_usage(histogram: np.ndarray) -> CodebookUsage:
    """Computes the usage from the number of times that each code occurs, ``[K]``."""
    counts = histogram[histogram > 0].astype(np.float64)
    if not counts.size:
        return CodebookUsage(used=0, entropy=0.0, perplexity=0.0)
    p = counts / counts.sum()
    entropy = max(0.0, float(-(p * np.log2(p)).sum()))
    return CodebookUsage(used=int(counts.size), entropy=entropy, perplexity=float(2**entropy))
