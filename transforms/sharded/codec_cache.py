"""The codec inside a Beam worker: held once per process, whatever the number of DoFns and threads."""

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqgan.codec import Codec


_lock = threading.Lock()
_codecs: dict[tuple[str, int, str], "Codec"] = {}


def load_codec(path_or_name: str, batch_size: int, dtype: str) -> "Codec":
    """The codec, loaded at the first call in this process and shared from then on.

    JAX is imported here and not at the top of a module, so that a launcher never loads it.
    """
    from vqgan.codec import Codec

    with _lock:
        wanted: Any = (path_or_name, batch_size, dtype)
        if wanted not in _codecs:
            _codecs[wanted] = Codec.load(path_or_name, batch_size=batch_size, dtype=dtype)
        return _codecs[wanted]
