"""A pickle interpreter that cannot run code.

It never uses Python's unpickler. :mod:`pickletools` splits the stream into instructions; the ones
that would import or call something are answered from a table of pure constructors, and whatever is not
in it becomes an inert :class:`Stub`. Names whose only use in a pickle is an attack are refused.
:mod:`vqgan.importers.pickle_constructors` says what may be constructed.
"""

import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from vqgan.importers.pickle_objects import (
    BoundedFile,
    Global,
    PickleError,
    Stub,
    call,
    refuse_dangerous,
    simple_key,
)

Constructor = Callable[..., Any]

_MAX_STACK = 1_000_000
_MAX_INSTRUCTIONS = 1_000_000  # the largest checkpoints take some 100,000
_MAX_BITS = 1024  # of a number
_MAX_NAME = 1024  # of a global, in characters
# Bytes that constructors may be given in all, beside some for each byte of the file: by its memo a pickle can
# give them the same object again and again, and each time they copy it.
_FREE_BYTES = 64 << 20
_GIVEN_PER_BYTE = 4
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "FLOAT", "BINFLOAT",
}  # fmt: skip
_MEMO_IN = {"PUT", "BINPUT", "LONG_BINPUT"}
_MEMO_OUT = {"GET", "BINGET", "LONG_BINGET"}


def load_pickle(
    file: BinaryIO,
    constructors: Mapping[str, Constructor],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads one pickle from a file's current position and stops right after it.

    Args:
      file: where the pickle starts.
      constructors: for the ``module.name`` of each global that may be "called", a pure function.
        Objects that they return may have a ``setstate(state)`` of their own.
      persistent: what a persistent id stands for.

    Returns:
      Plain Python data, what the constructors made, and stubs.

    Raises:
      UserError: the pickle names something that runs code.
      PickleError: it is damaged.
    """
    bounded = BoundedFile(file)
    machine = _Machine(constructors, persistent, _FREE_BYTES + _GIVEN_PER_BYTE * bounded.size)
    for number, (name, argument) in enumerate(_instructions(bounded)):
        if number >= _MAX_INSTRUCTIONS:
            raise PickleError(f"it has more than {_MAX_INSTRUCTIONS:,} instructions")
        if machine.step(name, argument):
            return machine.result
    raise PickleError("it has no end")


def _instructions(file: BoundedFile) -> Iterator[tuple[str, Any]]:
    """Yields names and arguments of the instructions.

    What goes wrong while one is carried out does not end here.
    """
    try:
        for opcode, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]
            yield opcode.name, argument
    except (PickleError, OSError):
        raise
    except Exception as error:  # pickletools raises many types on damaged input
        raise PickleError(f"{type(error).__name__}: {error}") from error


class _Machine:
    """The stack machine: one :meth:`step` for each instruction."""

    def __init__(
        self,
        constructors: Mapping[str, Constructor],
        persistent: Callable[[Any], Any] | None,
        budget: int,
    ):
        self._constructors = constructors
        self._budget = budget
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self.result: Any = None

    def step(self, name: str, argument: Any) -> bool:
        """Carries out one instruction; True at the end."""
        if name == "STOP":
            self.result = self._pop()
            return True
        if name in _LITERALS:
            if type(argument) is int and argument.bit_length() > _MAX_BITS:
                raise PickleError(f"a number of {argument.bit_length():,} bits")
            self._push(argument)
        elif name in _CONSTANTS:
            self._push(_CONSTANTS[name])
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in _MEMO_IN:
            self._memo[argument] = self._top()
        elif name in _MEMO_OUT:
            if argument not in self._memo:
                raise PickleError(f"it refers to memo {argument}, which it has not filled")
            self._push(self._memo[argument])
        elif name not in ("PROTO", "FRAME"):
            handler = getattr(self, f"_do_{name.lower()}", None)
            if handler is None:
                raise PickleError(f"the instruction {name} has no place in a checkpoint")
            handler(argument)
        return False

    def _push(self, value: Any) -> None:
        if len(self._stack) >= _MAX_STACK:
            raise PickleError("its stack grows without end")
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack or (self._marks and self._marks[-1] >= len(self._stack)):
            raise PickleError("its stack is empty")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise PickleError("its stack is empty")
        return self._stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise PickleError("it takes items to a mark that is not there")
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _do_mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _do_pop(self, _: Any) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop()

    def _do_pop_mark(self, _: Any) -> None:
        self._pop_to_mark()

    def _do_dup(self, _: Any) -> None:
        self._push(self._top())

    def _do_empty_dict(self, _: Any) -> None:
        self._push({})

    def _do_empty_list(self, _: Any) -> None:
        self._push([])

    def _do_empty_tuple(self, _: Any) -> None:
        self._push(())

    def _do_empty_set(self, _: Any) -> None:
        self._push([])  # a list serves: nobody asks a checkpoint's sets for membership

    def _do_tuple(self, _: Any) -> None:
        self._push(tuple(self._pop_to_mark()))

    def _do_tuple1(self, _: Any) -> None:
        self._push((self._pop(),))

    def _do_tuple2(self, _: Any) -> None:
        second, first = self._pop(), self._pop()
        self._push((first, second))

    def _do_tuple3(self, _: Any) -> None:
        third, second, first = self._pop(), self._pop(), self._pop()
        self._push((first, second, third))

    def _do_list(self, _: Any) -> None:
        self._push(self._pop_to_mark())

    def _do_frozenset(self, _: Any) -> None:
        self._push(self._pop_to_mark())

    def _do_dict(self, _: Any) -> None:
        target: dict[Any, Any] = {}
        _set_items(target, self._pop_to_mark())
        self._push(target)

    def _do_append(self, _: Any) -> None:
        item = self._pop()
        _extend(self._top(), [item])

    def _do_appends(self, _: Any) -> None:
        items = self._pop_to_mark()
        _extend(self._top(), items)

    _do_additems = _do_appends

    def _do_setitem(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        _set_items(self._top(), [key, value])

    def _do_setitems(self, _: Any) -> None:
        items = self._pop_to_mark()
        _set_items(self._top(), items)

    def _do_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push(self._find(module, name))

    def _do_stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("a global's name is not text")
        self._push(self._find(module, name))

    def _do_inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        found = self._find(module, name)
        self._push(self._call(found, tuple(self._pop_to_mark())))

    def _do_obj(self, _: Any) -> None:
        items = self._pop_to_mark()
        if not items:
            raise PickleError("a call of nothing")
        self._push(self._call(items[0], tuple(items[1:])))

    def _do_reduce(self, _: Any) -> None:
        arguments, function = self._pop(), self._pop()
        self._push(self._call(function, arguments))

    _do_newobj = _do_reduce

    def _do_newobj_ex(self, _: Any) -> None:
        _keywords, arguments, function = self._pop(), self._pop(), self._pop()
        self._push(self._call(function, arguments))

    def _do_build(self, _: Any) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Stub):
            target.state = state
        elif hasattr(target, "setstate"):
            self._spend(state)
            target.setstate(state)
        # Attributes set on plain data (an OrderedDict's _metadata) carry nothing that we use.

    def _do_persid(self, argument: Any) -> None:
        self._push(self._resolve(argument))

    def _do_binpersid(self, _: Any) -> None:
        self._push(self._resolve(self._pop()))

    def _resolve(self, persistent_id: Any) -> Any:
        if self._persistent is None:
            raise PickleError("it refers to data outside of itself")
        return self._persistent(persistent_id)

    def _call(self, function: Any, arguments: Any) -> Any:
        """Returns the result of a pure constructor, or a stub for everything else."""
        if not isinstance(arguments, (tuple, list)):
            raise PickleError("a call without a list of arguments")
        if isinstance(function, Global) and function.constructor is not None:
            self._spend(arguments)
            return call(function, arguments)
        if isinstance(function, Stub | Global):
            return Stub(function.name)
        raise PickleError("it calls something that is no function")

    def _spend(self, arguments: Any) -> None:
        """Counts what a constructor is given: what it is, and what is in it."""
        self._budget -= _weight(arguments)
        if isinstance(arguments, (tuple, list)) and self._budget >= 0:
            self._budget -= sum(map(_weight, arguments))
        if self._budget < 0:
            raise PickleError("it makes much more than it holds")

    def _find(self, module: str, name: str) -> Global:
        if len(module) + len(name) > _MAX_NAME:
            raise PickleError(f"a name of {len(module) + len(name):,} characters")
        refuse_dangerous(module, name)
        full = f"{module}.{name}"
        return Global(full, self._constructors.get(full))


def _weight(value: Any) -> int:
    """Estimates the bytes that a copy takes, without what is in it."""
    if isinstance(value, (str, bytes, bytearray)):
        return len(value)
    if isinstance(value, (tuple, list)):
        return 8 * len(value)
    return 100 * len(value) if isinstance(value, dict) else 1


def _set_items(target: Any, items: list[Any]) -> None:
    if len(items) % 2:
        raise PickleError("a key without a value")
    if isinstance(target, Stub):
        return
    if not isinstance(target, dict):
        raise PickleError("items set on something that is no mapping")
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[simple_key(key)] = value


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Stub):
        raise PickleError("items appended to something that is no list")
