"""How tests of training are compiled."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _little_optimized(few_optimizations: None) -> None:
    """A toy takes longer to compile than to train."""
