"""Model code must broadcast explicitly: arrays of unlike rank are an error here."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def matrix_products() -> Callable[[Any], list[Any]]:
    """All ``dot_general`` equations of a jaxpr and of the jaxprs inside it."""

    def find(jaxpr: Any) -> Iterator[Any]:
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield equation
            for value in equation.params.values():
                for item in value if isinstance(value, (tuple, list)) else (value,):
                    inner = getattr(item, "jaxpr", item)
                    if hasattr(inner, "eqns"):
                        yield from find(inner)

    return lambda closed: list(find(closed.jaxpr))
