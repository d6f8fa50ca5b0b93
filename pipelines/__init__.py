"""Whole runs: the command line, and the same from Python and notebooks.

Here are the commands, what they print, and the wiring of each run. What happens to data is in ``transforms``,
models are in ``vqgan``; neither imports this package.

The functions take the settings of the command of the same name as keywords, show progress unless ``quiet``,
return what was made, and raise :class:`vqgan.UserError` for whatever the user can put right. A run that was
interrupted goes on when it is called again.

>>> from pipelines import tokenize
>>> tokenize(input="photos/", codec="tiny", output="tokens/", image_size=64, quiet=True).counts["images"]
10
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.runs import decode, evaluate, retry, sample, tokenize, train, train_prior

__all__ = ["decode", "evaluate", "retry", "sample", "tokenize", "train", "train_prior"]


def __getattr__(name: str) -> Any:
    # At import time the command line needs none of it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vqgan.extras import check_packages

    check_packages()
    return getattr(importlib.import_module("pipelines.runs"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
