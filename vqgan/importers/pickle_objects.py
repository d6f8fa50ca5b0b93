"""What a pickle of data is made of, and the names that none may bear."""

import functools
import inspect
import io
import math
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from vqgan.errors import UserError
from vqgan.importers.tensors import DamagedError

Constructor = Callable[..., Any]

# Modules and functions that run commands, code or imports. A model has no use for them.
_REFUSED_MODULES = {
    "_ctypes", "_pickle", "_posixsubprocess", "_socket", "asyncio", "bdb", "cProfile", "code", "codeop",
    "commands", "ctypes", "http", "importlib", "marshal", "multiprocessing", "nt", "os", "pdb", "pickle",
    "pip", "posix", "profile", "pty", "pydoc", "requests", "runpy", "shutil", "socket", "subprocess", "sys",
    "tempfile", "timeit", "trace", "urllib", "webbrowser",
}  # fmt: skip
_REFUSED_BUILTINS = {
    "__import__", "apply", "breakpoint", "compile", "delattr", "eval", "exec", "execfile", "file", "globals",
    "help", "input", "locals", "open", "setattr", "vars",
}  # fmt: skip
_REFUSED_NAMES = {"io.open", "io.open_code", "io.FileIO", "codecs.open", "torch.hub.load"}
_BUILTINS = {"builtins", "__builtin__", "__builtins__"}


class PickleError(DamagedError):
    """The stream is not a well-formed pickle of data."""


class Stub:
    """Stands for a class, function or object of foreign code. It does nothing."""

    __slots__ = ("name", "state")

    def __init__(self, name: str):
        self.name = name
        self.state: Any = None

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Global:
    """A name that the pickle refers to, with what to do where it is called (None: nothing)."""

    __slots__ = ("constructor", "name")

    def __init__(self, name: str, constructor: Constructor | None):
        self.name = name
        self.constructor = constructor

    def __repr__(self) -> str:
        return f"<{self.name}>"


def call(function: Global, arguments: Sequence[Any]) -> Any:
    """Gives what the pure constructor of a global gives; its arguments are checked to be as many as it takes.

    Raises:
      PickleError: they are not, or the constructor refuses them.
    """
    assert function.constructor is not None
    least, most = _arity(function.constructor)
    if not least <= len(arguments) <= most:
        raise PickleError(f"{function.name} is called with {len(arguments)} arguments")
    return function.constructor(*arguments)


@functools.lru_cache(maxsize=64)
def _arity(constructor: Constructor) -> tuple[int, float]:
    """Returns how many positional arguments a constructor takes, at least and at most."""
    parameters = inspect.signature(constructor).parameters.values()
    named = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    least = sum(parameter.default is parameter.empty for parameter in named)
    return least, math.inf if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(named)


def simple_key(key: Any) -> Any:
    """Returns a mapping's key, or a text in its place: nested tuples take exponential time to hash."""
    if isinstance(key, _SIMPLE):
        return key
    if isinstance(key, tuple) and len(key) <= _MAX_KEY and all(isinstance(k, _SIMPLE) for k in key):
        return key
    return f"<key of type {type(key).__name__}>"


_MAX_KEY = 64
_SIMPLE = (str, int, float, bytes, bool, type(None), Global, Stub)


class BoundedFile:
    """A file that never reads past its end, so that a forged length cannot claim memory.

    Attributes:
      size: bytes from its position to its end.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        start = file.tell()
        self._end = file.seek(0, io.SEEK_END)
        file.seek(start)
        self.size = self._end - start

    def read(self, size: int = -1) -> bytes:
        """Reads at most ``size`` bytes; fails where fewer are left."""
        left = self._end - self._file.tell()
        if size > left:
            raise PickleError(f"it ends {size - left} bytes early")
        return self._file.read(left if size < 0 else size)

    def readline(self) -> bytes:
        """Reads up to the next line feed."""
        return self._file.readline(65536)

    def tell(self) -> int:
        """Returns the position in the file."""
        return self._file.tell()


def refuse_dangerous(module: str, name: str) -> None:
    """Refuses a global whose only use in a pickle is to run something.

    Raises:
      UserError: it is such a name.
    """
    root = module.partition(".")[0]
    last = name.rpartition(".")[2]
    by_name = f"{module.lstrip('_')}.{name}" in _REFUSED_NAMES
    if (
        by_name
        or root in _REFUSED_MODULES
        or (module in _BUILTINS and (last in _REFUSED_BUILTINS or "." in name))
    ):
        raise UserError(
            f"its pickle names {module}.{name}, which can run code; such a file is refused: "
            "do not open it with other programs, and get the checkpoint from its publisher"
        )
