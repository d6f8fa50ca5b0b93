"""Random weights of a prior, for all tests of sampling."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flax import nnx

from vqgan.functional import take_apart
from vqgan.prior.config import PriorConfig
from vqgan.prior.transformer import PriorTransformer


@pytest.fixture(scope="session")
def random_params() -> Callable[[PriorConfig], dict[str, Any]]:
    """From a configuration to weights with which each token depends much on others, label and condition."""

    def params(config: PriorConfig) -> dict[str, Any]:
        rng = np.random.default_rng(0)
        abstract = nnx.to_flat_state(take_apart(lambda: PriorTransformer(config, rngs=nnx.Rngs(0))).params)
        shapes = {".".join(map(str, path)): param.shape for path, param in abstract}
        return {
            name: (rng.normal(size=shape) * 0.5 + name.endswith("scale")).astype(np.float32)
            for name, shape in shapes.items()
        }

    return params
