"""Hugging Face Hub: ``hf://owner/name[/file][@revision]`` through ``huggingface_hub``.

The library keeps its cache (``HF_HOME``) and honours offline mode (``HF_HUB_OFFLINE=1``); what is in the
cache is used without a request where the revision is a commit or the Hub cannot be reached.
"""

import functools
import re
from pathlib import Path
from typing import Any

from vqgan.errors import UserError
from vqgan.extras import require_extra

SCHEME = "hf://"
_CODEC = ["codec.json", "README.md", "encoder/*", "quantizer/*", "decoder/*"]  # a codec of ours
_NAME = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@?]+))?(?:@(?P<revision>[^?]+))?")
# Weights and configurations; demonstrations and logs stay where they are.
_PATTERNS = ["*.json", "*.yaml", "*.yml", "*.safetensors", "*.msgpack", "*.ckpt", "*.pt", "*.pth", "*.bin"]


def is_hub(source: str) -> bool:
    """Whether a source is an address on the Hub."""
    return source.startswith(SCHEME)


@functools.lru_cache(maxsize=32)
def fetch(address: str) -> Path:
    """The local path of a repository or of one file in it, downloaded where it is not in the cache.

    Raises:
      UserError: a malformed address, no ``huggingface_hub``, or it cannot be had.
    """
    match = _NAME.fullmatch(address)
    if match is None:
        raise UserError(f"{address}: write it as hf://owner/name, hf://owner/name/file or with @revision")
    require_extra("hub", address)
    import huggingface_hub

    return _fetch(huggingface_hub, address, match["repo"], match["file"], match["revision"])


def _has_codec(hub: Any, repo: str, revision: str | None) -> bool:
    """Whether a repository holds a codec of ours rather than a checkpoint of another code base."""
    try:
        hub.hf_hub_download(repo, "codec.json", revision=revision)
    except Exception as error:
        # By name: the library's types have moved between its releases.
        if any("EntryNotFound" in kind.__name__ for kind in type(error).__mro__):
            return False
        raise
    return True


def _fetch(hub: Any, address: str, repo: str, file: str | None, revision: str | None) -> Path:
    try:
        if file is None:
            patterns = _CODEC if _has_codec(hub, repo, revision) else _PATTERNS
            return Path(hub.snapshot_download(repo, revision=revision, allow_patterns=patterns))
        path = Path(hub.hf_hub_download(repo, file, revision=revision))
    except Exception as error:  # the library and its HTTP client raise many types
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{address}: cannot be had ({type(error).__name__}: {reason}); check name, revision and network"
        ) from error
    folder = str(Path(file).parent)
    for name in ("config.json", "config.yaml", "model.yaml"):  # the configuration beside it, if there is one
        beside = name if folder == "." else f"{folder}/{name}"
        try:
            hub.hf_hub_download(repo, beside, revision=revision)
        except Exception:  # there is none, or it is not in the cache: shapes then tell the architecture
            continue
    return path
