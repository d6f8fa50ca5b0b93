"""What every source of images offers.

A source does two things. The launcher asks it to :meth:`~Source.list` every example once, before any
work; workers ask it to :meth:`~Source.read` the examples of one slice. What listing found damaged (a
truncated archive, say) is an entry too, with its ``error``: it becomes a reject, so nothing is lost
silently.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = ("folder", "list", "tar", "zip", "parquet", "arrow", "tfrecord", "tfds")
"""What an input may be; :mod:`transforms.sources.registry` has the class of each."""


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where images come from.

    Attributes:
      input: path, glob or URI, or ``tfds:NAME[:VERSION]/SPLIT[?data_dir=...]``.
      kind: name in the registry, or None to recognise the input by what it is.
      folder_labels: use the names of first-level subfolders as classes, numbered in sorted order.
      image_column: Parquet column, TFRecord feature or list column with the image or its path.
      key_column: column or feature that holds the key of each example.
      label_column: column or feature that holds the class: an integer or, in tables and lists, its name.
      columns: further columns to pass through to the shards.
      whole_names: members of a tar belong together up to the last dot of their names, not the first.
      arrays: NumPy's ``.npy`` files of a folder are images, as for codecs of other channels than RGB.
    """

    input: str
    kind: str | None = None
    folder_labels: bool = False
    image_column: str | None = None
    key_column: str | None = None
    label_column: str | None = None
    columns: tuple[str, ...] = ()
    whole_names: bool = False
    arrays: bool = False


class Entry(NamedTuple):
    """One example of a source, as the plan remembers it.

    Attributes:
      key: stable id, unique in the data set; valid Unicode, relative, never dependent on where the
        corpus is mounted.
      file: file that holds the example, relative to the source's root (or a full path or URI).
      offset: where in the file: byte offset of the image, or number of the row or record.
      size: bytes of the encoded image, or -1 where listing does not tell.
      label: class, where listing tells.
      members: JSON of companion files, where the source has them.
      error: what listing found wrong; such an entry becomes a reject and is never read.
      file_size: bytes of the file, or -1 where listing does not look at it.
      modified: time of the file's last change in nanoseconds since 1970, or None; a copy may have another.
      columns: values of the further columns that were asked for, where listing has come across them; they are
        written down with the plan. None where reading finds them.
    """

    key: str
    file: str
    offset: int = 0
    size: int = -1
    label: int | None = None
    members: str | None = None
    error: str | None = None
    file_size: int = -1
    modified: int | None = None
    columns: dict[str, Any] | None = None

    def unseen(self) -> "Entry":
        """Returns the entry without what listing saw of its file, which may then be another one."""
        return self._replace(file_size=-1, modified=None)


class Example(NamedTuple):
    """What reading an entry gives.

    Attributes:
      data: encoded image, as it lies in the source.
      label: class, or None.
      columns: values of the further columns that were asked for; a missing value is None.
    """

    data: bytes
    label: int | None
    columns: dict[str, Any]


Loader = Callable[[], Example]
"""Reads one example; runs in a thread, raises what went wrong with this one example."""


Names = list[str]


class Source(Protocol):
    """A place that images come from. Instances are cheap to make: opening happens in the methods.

    Attributes:
      shuffles: examples are single files, to be ordered by a hash of their key. Otherwise they lie
        in containers, which are read in order and cut at file boundaries.
    """

    shuffles: bool

    def fields(self) -> "list[pa.Field]":
        """Returns Arrow fields of the further columns asked for.

        Raises:
          UserError: the source has no such column.
        """
        ...

    def class_names(self) -> Names | None:
        """Returns names of the classes in the order of their numbers; None where the source has none."""
        ...

    def list(self) -> Iterator[Entry]:
        """Returns every example once; containers file by file, in order.

        Raises:
          UserError: the source cannot be opened at all.
        """
        ...

    def read(self, entries: Sequence[Entry]) -> Iterator[Loader]:
        """Gives one loader for each entry, in order.

        A loader may run in any thread, once, at any time before the iterator is exhausted or closed.
        """
        ...


def error_reason(error: BaseException) -> str:
    """Returns what an error says, in one line and without the path that the system adds."""
    reason = error.strerror if isinstance(error, OSError) else None
    return reason or (str(error) or type(error).__name__).splitlines()[0]
