"""What surrounds a run: optional packages, files that hide ours, what is kept, and whether somebody watches.

For what an extra brings there is one line that says how to get it; a command asks before it works, so that
nobody waits for a result that cannot be written.
"""

import importlib.util
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from vqgan.errors import UserError

EXTRAS: Mapping[str, Mapping[str, str]] = {
    "train": {"grain": "grain>=0.2.18", "optax": "optax>=0.2.6", "tensorboardX": "tensorboardX>=2.6"},
    "import": {"safetensors": "safetensors"},
    "export": {"onnx": "onnx>=1.17"},
    "hub": {"huggingface_hub": "huggingface-hub"},
    "tfds": {
        "tensorflow_datasets": "tensorflow-datasets>=4.9.9",
        "array_record": "array-record>=0.8",
        "importlib_resources": "importlib-resources",
    },
    "heic": {"pillow_heif": "pillow-heif>=1.8"},
    "jxl": {"pillow_jxl": "pillow-jxl-plugin>=1.3.8"},
    "cpu": {"openvino": "openvino>=2026.2"},
    "wandb": {"wandb": "wandb"},
    "dask": {"dask": "dask>=2026.3", "distributed": "distributed>=2026.3"},
    "gcp": {"google.cloud.dataflow": "apache-beam[gcp]"},
}
"""By extra: the modules that it brings, each with its requirement as in ``setup.py`` (a test compares)."""

PACKAGES = {"pipelines": "commands", "transforms": "sharded"}
"""Our other packages, each with a folder by which it is known to be ours."""


def check_packages() -> None:
    """Checks that no file of the user's is taken for one of our packages. Imports none of them.

    Raises:
      UserError: one is.
    """
    for name, inner in PACKAGES.items():
        spec = importlib.util.find_spec(name)
        folders = [] if spec is None else list(spec.submodule_search_locations or ())
        if spec is not None and not any(Path(folder, inner).is_dir() for folder in folders):
            where = spec.origin or ", ".join(folders)
            raise UserError(
                f"{where}: hides the package {name} of vqgan; rename it, or start in another folder"
            )


def cache_root() -> Path:
    """Returns the folder of what is kept between runs and can be had again; it need not exist yet.

    It is ``$VQGAN_CACHE``, else ``vqgan-pipelines`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
      RuntimeError: there is no home folder.
    """
    chosen = os.environ.get("VQGAN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vqgan-pipelines"


def is_watched(stream: TextIO) -> bool:
    """Tells whether a line that changes is seen as one: on a terminal, and in a notebook."""
    # A module of Jupyter's may be loaded anywhere; a shell with a kernel is there in a notebook alone.
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return stream.isatty() or getattr(get_shell and get_shell(), "kernel", None) is not None


def progress_bar(stream: TextIO, **settings: Any) -> Any:
    """Makes a bar of tqdm, in a notebook its widget; None where nobody watches the stream.

    Args:
      stream: where the bar is drawn.
      settings: of tqdm, such as ``total``.
    """
    if not is_watched(stream):
        return None
    from tqdm.auto import tqdm

    return tqdm(file=stream, dynamic_ncols=True, **settings)


def require_extra(extra: str, what: str, *modules: str) -> None:
    """Checks that modules of an extra are installed. Imports none of them.

    The command in the message names requirements rather than the extra, so that it works for an
    installation from a checkout, a wheel or an index alike.

    Args:
      extra: key of :data:`EXTRAS`.
      what: that needs it, such as ``training`` or an address.
      modules: those of the extra that are needed; all by default.

    Raises:
      UserError: one is not installed.
    """
    brought = EXTRAS[extra]
    missing = [module for module in modules or brought if not is_installed(module)]
    if missing:
        raise UserError(
            f"{what} needs {', '.join(missing)} (extra {extra!r}), not installed; "
            f"install it with: pip install {shlex.join(brought.values())}"
        )


def is_installed(module: str) -> bool:
    """Tells whether a module can be imported. Does not import it."""
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it lies in
        return False
