"""The ``vqgan`` program, and ``python -m vqgan``: starts the command line, unless a user's file hides it.

The command line is a package that imports this one, so it is named here rather than imported. It may be
hidden where Python looks into the working folder first: for ``python -m``, or with ``PYTHONPATH=.``. In a
notebook ``from pipelines import tokenize`` then fails, and Python itself names the file.
"""

import importlib
import sys
from collections.abc import Sequence

from vqgan.errors import UserError
from vqgan.extras import check_packages


def start(argv: Sequence[str] | None = None) -> int:
    """Runs one command; see ``vqgan --help``. A file of the user's that hides a package is told in one line.

    Args:
      argv: the command and its flags; those of the process by default.

    Returns:
      The exit code: 0 well, 1 problems found or nothing made, 2 a user's mistake, 74 nothing can be printed,
      130 stopped.
    """
    try:
        check_packages()
    except UserError as error:
        print(f"vqgan: {error}", file=sys.stderr)
        return 2
    code: int = importlib.import_module("pipelines.cli").main(argv)
    return code


if __name__ == "__main__":
    sys.exit(start())
