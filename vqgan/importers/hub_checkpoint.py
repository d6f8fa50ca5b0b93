"""Codecs and checkpoints on the Hugging Face Hub: ``hf://owner/name[/file][@revision]``."""

import functools
import re
from pathlib import Path
from typing import Any

from vqgan.errors import UserError
from vqgan.hub import fetching, is_dataset, is_missing, is_unreachable, require_library

_CODEC = ["codec.json", "README.md", "encoder/*", "quantizer/*", "decoder/*"]  # a codec of ours
_NAME = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@?]+))?(?:@(?P<revision>[^?]+))?")
# Weights and configurations; demonstrations and logs stay where they are.
_PATTERNS = ["*.json", "*.yaml", "*.yml", "*.safetensors", "*.msgpack", "*.ckpt", "*.pt", "*.pth", "*.bin"]
_CONFIGURATIONS = ("config.json", "config.yaml", "model.yaml")


@functools.lru_cache(maxsize=32)
def fetch_checkpoint(address: str) -> Path:
    """Returns the local path of a repository or of one file in it, downloaded where it is not in the cache.

    Raises:
      UserError: a malformed address, no ``huggingface_hub``, or it cannot be had.
    """
    if is_dataset(address):
        raise UserError(f"{address}: is a data set, no model; write a model as hf://owner/name")
    match = _NAME.fullmatch(address)
    if match is None:
        raise UserError(f"{address}: write it as hf://owner/name, hf://owner/name/file or with @revision")
    hub = require_library(address)
    with fetching(address):
        if match["file"] is None:
            return _fetch_repository(hub, match["repo"], match["revision"])
        return _fetch_file(hub, match["repo"], match["file"], match["revision"])


def _fetch_repository(hub: Any, repo: str, revision: str | None) -> Path:
    patterns = _CODEC if _has_codec(hub, repo, revision) else _PATTERNS
    return Path(hub.snapshot_download(repo, revision=revision, allow_patterns=patterns))


def _has_codec(hub: Any, repo: str, revision: str | None) -> bool:
    """Tells whether a repository holds a codec of ours rather than a checkpoint of another code base."""
    try:
        hub.hf_hub_download(repo, "codec.json", revision=revision)
    except Exception as error:
        if is_missing(error):
            return False
        raise
    return True


def _fetch_file(hub: Any, repo: str, file: str, revision: str | None) -> Path:
    """Fetches one file, and the configuration beside it where there is one."""
    path = Path(hub.hf_hub_download(repo, file, revision=revision))
    folder = str(Path(file).parent)
    for name in _CONFIGURATIONS:
        beside = name if folder == "." else f"{folder}/{name}"
        try:
            hub.hf_hub_download(repo, beside, revision=revision)
        except Exception as error:
            # There is none, or not in the cache in offline mode: shapes then tell the architecture. Where the
            # Hub has not said so, there may be one that says more than they do.
            if not is_missing(error) or is_unreachable(error):
                raise
    return path
