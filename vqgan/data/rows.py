"""Rows of token data sets in memory: taken in any order, and put together from several places."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from vqgan.data.order import groups_of


class TokenBatch(NamedTuple):
    """Rows of token data sets, as a training step takes them.

    Attributes:
      tokens: int32 ``[B, L]``, each row a token grid row by row.
      labels: int32 ``[B]``, the class, or -1 where there is none.
      columns: what was asked for besides. Numbers, truth values and lists of a fixed number of them are
        arrays ``[B]`` or ``[B, n]`` unless the column may have gaps; other columns are lists of Python
        values, with None for a gap.
    """

    tokens: np.ndarray
    labels: np.ndarray
    columns: dict[str, np.ndarray | list]


class Rows(NamedTuple):
    """Rows as they are kept in memory.

    Attributes:
      tokens: uint16 or uint32 ``[N, L]``.
      labels: int32 ``[N]``, -1 for none.
      columns: one Arrow array of ``N`` values each.
    """

    tokens: np.ndarray
    labels: np.ndarray
    columns: Mapping[str, pa.Array]

    def take(self, numbers: np.ndarray) -> "Rows":
        """Some rows, in the order of int64 ``[B]`` numbers."""
        columns = {name: values.take(pa.array(numbers)) for name, values in self.columns.items()}
        return Rows(np.take(self.tokens, numbers, axis=0), np.take(self.labels, numbers), columns)


def gather(owners: np.ndarray, numbers: np.ndarray, read: Callable[[int, np.ndarray], Rows]) -> Rows:
    """Rows that lie in several places.

    Args:
      owners: int ``[B]``, where each row lies; at least one.
      numbers: int64 ``[B]``, its number there.
      read: some rows (int64 ``[M]`` numbers) of one place.

    Returns:
      The ``B`` rows, in the order asked for.
    """
    groups = list(groups_of(owners))
    parts = [read(owner, numbers[members]) for owner, members in groups]
    if len(parts) == 1:
        return parts[0]
    return join(parts).take(np.argsort(np.concatenate([members for _, members in groups])))


def join(parts: Sequence[Rows]) -> Rows:
    """Some rows, then others; at least one part."""
    return Rows(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.labels for part in parts]),
        {name: pa.concat_arrays([part.columns[name] for part in parts]) for name in parts[0].columns},
    )


def column_kind(field: pa.Field) -> str:
    """A column's type in a message."""
    return str(field.type) + ("" if field.nullable else " without gaps")


def as_batch(rows: Rows, fields: Mapping[str, pa.Field]) -> TokenBatch:
    """Rows as a training step takes them; ``fields`` tells of each column whether it may have gaps."""
    columns = {name: _values(values, fields[name]) for name, values in rows.columns.items()}
    return TokenBatch(rows.tokens.astype(np.int32), rows.labels, columns)


def _values(values: pa.Array, field: pa.Field) -> np.ndarray | list:
    """A column as an array where every row is known to have a value of the same shape, else as a list."""
    if not field.nullable and _is_number(field.type):
        return values.to_numpy(zero_copy_only=False)
    if not field.nullable and pa.types.is_fixed_size_list(field.type) and _is_number(field.type.value_type):
        # flatten() heeds the offset of a slice, which .values does not
        return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)
    return values.to_pylist()


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
