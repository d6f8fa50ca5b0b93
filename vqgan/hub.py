"""The Hugging Face Hub, through ``huggingface_hub``: what fetching models and token data sets have in common.

The library keeps its cache (``HF_HOME``) and honours offline mode (``HF_HUB_OFFLINE=1``); what is in the
cache is used without a request where the revision is a commit or the Hub cannot be reached. It is loaded
only when something is asked for.
"""

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vqgan.errors import UserError
from vqgan.extras import require_extra
from vqgan.manifest import MANIFEST_FILE

SCHEME = "hf://"
DATASETS = "hf://datasets/"
DATASET_TYPE = "dataset"
"""The Hub's ``repo_type`` of data sets; models have none."""
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)/?(?:@(?P<revision>[^?]+))?")
# What reads a token data set looks at; its report and whatever else lies there stay where they are.
_DATASET_PATTERNS = (MANIFEST_FILE, "README.md", "plan/*", "data/*.parquet", "rejects/*.parquet")


def is_hub(address: str) -> bool:
    """Whether a source is an address on the Hub."""
    return address.startswith(SCHEME)


def is_dataset(address: str) -> bool:
    """Whether a source is the address of a data set on the Hub."""
    return address.startswith(DATASETS)


def require_library(what: str) -> Any:
    """Loads ``huggingface_hub``.

    Args:
      what: needs it, for the message.

    Raises:
      UserError: it is not installed.
    """
    require_extra("hub", what)
    import huggingface_hub

    return huggingface_hub


@contextlib.contextmanager
def fetching(address: str) -> Iterator[None]:
    """Turns whatever the library raises in the block into a :class:`UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the library and its HTTP client raise many types
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{address}: cannot be had ({type(error).__name__}: {reason}); check name, revision and network"
        ) from error


def is_missing(error: Exception) -> bool:
    """Whether a repository lacks a file, or the cache does while the Hub is not asked or not reached."""
    # By name: the library's types have moved between its releases.
    return any("EntryNotFound" in kind.__name__ for kind in type(error).__mro__)


def is_unreachable(error: Exception) -> bool:
    """Whether a file is missing in the cache only and the Hub, though it was asked, gave no answer."""
    local = any(kind.__name__ == "LocalEntryNotFoundError" for kind in type(error).__mro__)
    cause = error.__cause__
    return local and cause is not None and type(cause).__name__ != "OfflineModeIsEnabled"


def resolve_dataset(path: str) -> str:
    """Returns where the files of a token data set lie.

    Args:
      path: folder or URI, which is given back as it is; or ``hf://datasets/owner/name[@revision]``, which
        is downloaded where it is not in the library's cache.

    Raises:
      UserError: a malformed address, no ``huggingface_hub``, no token data set there, or it cannot be had.
    """
    if not is_dataset(path):
        return path
    return str(fetch_folder(path, MANIFEST_FILE, _DATASET_PATTERNS, "finished token data set"))


@functools.lru_cache(maxsize=32)
def fetch_folder(address: str, marker: str, patterns: tuple[str, ...], what: str) -> Path:
    """Returns the local folder of a repository, downloaded where it is not in the library's cache.

    Args:
      address: ``hf://owner/name[@revision]``, or ``hf://datasets/owner/name[@revision]`` for a data set.
      marker: a file that every such folder has. It is asked for first: another repository may have gigabytes
        of files that the patterns match.
      patterns: of the files that are wanted.
      what: the folder is, for messages.

    Raises:
      UserError: a malformed address, no ``huggingface_hub``, no such folder there, or it cannot be had.
    """
    scheme = DATASETS if is_dataset(address) else SCHEME
    match = _NAME.fullmatch(address.removeprefix(scheme))
    if match is None:
        raise UserError(f"{address}: write it as {scheme}owner/name or with @revision")
    hub = require_library(address)
    repo, where = match["repo"], {"revision": match["revision"]}
    if scheme == DATASETS:
        where["repo_type"] = DATASET_TYPE
    with fetching(address):
        _require_file(hub, address, repo, marker, what, where)
        return Path(hub.snapshot_download(repo, allow_patterns=list(patterns), **where))


def _require_file(
    hub: Any, address: str, repo: str, name: str, what: str, where: Mapping[str, str | None]
) -> None:
    try:
        hub.hf_hub_download(repo, name, **where)
    except Exception as error:
        if not is_missing(error) or is_unreachable(error):
            raise
        raise UserError(f"{address}: there is no {what} (no {name}); check name and revision") from error
