"""From what a user names to files: path and options, and the weights in a folder or on the Hub.

``model.ckpt?input_range=0,1&weights=ema`` is one string, so that it travels to every worker as it is.
The options are the fields of :class:`ImportOptions`.
"""

import dataclasses
import difflib
import functools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqgan.downloads import fetching, is_dataset, is_hub, is_missing, is_unreachable, require_library
from vqgan.errors import UserError
from vqgan.importers.containers import sniff
from vqgan.importers.native_config import WEIGHT_FOLDERS
from vqgan.importers.sharded import index_of, is_index, is_shard, read_weight_map

# Where several checkpoints lie in one folder, these names are meant, in this order.
_USUAL_WEIGHTS = (
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors", "model.safetensors.index.json", "flax_model.msgpack", "last.ckpt", "model.ckpt",
    "diffusion_pytorch_model.bin", "diffusion_pytorch_model.bin.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
_HALVES = ("encoder.jit", "decoder.jit")  # of Cosmos-Tokenizer
# What is called so claims to be weights, and is never passed over where it is something else.
_WEIGHT_SUFFIXES = (".safetensors", ".msgpack", ".ckpt", ".pt", ".pth", ".bin", ".jit")
# A diffusion pipeline's VQ model, a Lightning run, a taming run, a tokenizer beside a language model.
_SUBFOLDERS = ("vqvae", "vqmodel", "movq", *WEIGHT_FOLDERS, "tokenizer", "vae")
_LISTED = 8  # names in one error
_EXAMPLES = {"input_range": "0,1", "attn_resolutions": "16", "resolution": "256", "scales": "1,2,4,8,16"}


@dataclass(frozen=True)
class ImportOptions:
    """What cannot be read from a file, and choices among what is in it.

    Attributes:
      input_range: pixel values that the network expects for uint8 0 and 255.
      resolution: side in pixels that the model was trained at.
      attn_resolutions: sides, at ``resolution``, of the levels with attention.
      weights: ``raw``, or ``ema`` for the averaged weights where the file has both; what the original code
        runs with if None.
      name: published name, whose settings and parameter count must fit.
      config: native configuration file, if it lies elsewhere.
      scales: sides of the scales of a multi-scale tokenizer, from coarse to fine.
    """

    input_range: tuple[float, float] | None = None
    resolution: int | None = None
    attn_resolutions: tuple[int, ...] | None = None
    weights: str | None = None
    name: str | None = None
    config: str | None = None
    scales: tuple[int, ...] | None = None


_OPTIONS = [field.name for field in dataclasses.fields(ImportOptions)]


def split_source(source: str) -> tuple[str, str]:
    """Splits off the options; a path that exists with a question mark in it is taken as it is."""
    if "?" not in source or Path(source).exists():
        return source, ""
    path, _, query = source.rpartition("?")
    return path, query


def parse_source(source: str) -> tuple[Path, ImportOptions]:
    """Finds the local path and the options of a source; what lies on the Hub is fetched first.

    Raises:
      UserError: an unknown option or a value that cannot be read.
    """
    text, query = split_source(source)
    values: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        name = name.replace("-", "_")
        if name not in _OPTIONS or not equals:
            near = difflib.get_close_matches(name, _OPTIONS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_OPTIONS)}"
            raise UserError(f"{source}: unknown option {part!r}; {hint}")
        values[name] = _option(source, name, value)
    path = fetch_checkpoint(text) if is_hub(text) else Path(text)
    return path, ImportOptions(**values)


def with_options(source: str, options: Mapping[str, str | None]) -> str:
    """Appends further options to a source; None values are left out."""
    given = "&".join(f"{name}={value}" for name, value in options.items() if value is not None)
    if not given:
        return source
    return f"{source}{'&' if split_source(source)[1] else '?'}{given}"


def _option(source: str, name: str, text: str) -> Any:
    try:
        if name == "input_range":
            low, high = (float(part) for part in text.split(","))
            return low, high
        if name in ("attn_resolutions", "scales"):
            return tuple(int(part) for part in text.split(",") if part)
        if name == "resolution":
            return int(text)
    except ValueError:
        raise UserError(
            f"{source}: {name}={text} cannot be read; give numbers such as {_EXAMPLES[name]}"
        ) from None
    if name == "weights" and text not in ("raw", "ema"):
        raise UserError(f"{source}: weights={text}: give raw or ema")
    return text


def is_foreign_source(source: str) -> bool:
    """Tells whether a source can only be foreign: an address on the Hub, or a path with options."""
    path, query = split_source(source)
    return is_hub(source) or (bool(query) and Path(path).exists())


def looks_foreign(path: Path) -> bool:
    """Tells whether a file, or a file in a folder, holds a foreign checkpoint or is called like one."""
    if path.is_file():
        return _kind(path) is not None
    return any(_weights_in(folder) for folder in _folders_of_weights(path))


def find_weights(path: Path) -> Path:
    """Finds the file that a path means: weights, or the index of weights in shards.

    A file that is called like weights counts as such whatever is in it, so that the reason why it cannot be
    read is told, and no other file is taken in its place.

    Raises:
      UserError: nothing there, no checkpoint in the folder, or several.
    """
    if path.is_file():
        return index_of(path) or path
    if not path.is_dir():
        raise UserError(f"{path}: nothing there; give a checkpoint file, its folder, or a codec")
    for folder in _folders_of_weights(path):
        found = _weights_in(folder)
        if found:
            return _usual_weights(folder, found)
    try:
        names = sorted(p.name for p in path.iterdir())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    shown = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
    raise UserError(f"{path}: no codec and no checkpoint in this folder; it has: {shown or 'nothing'}")


def _folders_of_weights(path: Path) -> list[Path]:
    return [path, *(path / name for name in _SUBFOLDERS)]


def _weights_in(folder: Path) -> list[Path]:
    """Lists the checkpoints of a folder; an index stands for its shards."""
    try:
        files = sorted(p for p in folder.iterdir() if not p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []
    found = [
        p for p in files if p.suffix in _WEIGHT_SUFFIXES or (p.suffix != ".npz" and _kind(p) is not None)
    ]
    shards = {name for path in found if is_index(path) for name in _shards_named(path, found)}
    return [path for path in found if path.name not in shards]


def _shards_named(index: Path, found: list[Path]) -> Collection[str]:
    """Returns the names of an index's shards; of one that cannot be read, which is told later, all shards."""
    try:
        return read_weight_map(index).values()
    except UserError:
        return [path.name for path in found if is_shard(path)]


def _kind(path: Path) -> str | None:
    try:
        return sniff(path)
    except OSError:
        return None


def _usual_weights(folder: Path, found: list[Path]) -> Path:
    if len(found) == 1:
        return found[0]
    names = {path.name for path in found}
    if set(_HALVES) <= names:
        return folder / _HALVES[0]
    for name in _USUAL_WEIGHTS:
        if folder / name in found:
            return folder / name
    shown = ", ".join(p.name for p in found[:_LISTED])
    if all(is_shard(path) for path in found):
        raise UserError(
            f"{folder}: shards of a checkpoint ({shown}) without the index that says what lies in which; "
            "get it (such as model.safetensors.index.json), or save the model as one file"
        )
    raise UserError(f"{folder}: several checkpoints in this folder ({shown}); give the path of one")


def other_half(file: Path) -> Path | None:
    """Finds the file beside it that holds the other half of the model: a decoder to an encoder, or back.

    Raises:
      UserError: it is not there.
    """
    if file.name not in _HALVES:
        return None
    other = file.with_name(_HALVES[1 - _HALVES.index(file.name)])
    if not other.exists():
        raise UserError(f"{file}: one half of a tokenizer; put {other.name} beside it")
    return other


_CODEC = ["codec.json", "README.md", "encoder/*", "quantizer/*", "decoder/*"]  # a codec of ours
_NAME = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@?]+))?(?:@(?P<revision>[^?]+))?")
# Weights and configurations; demonstrations and logs stay where they are.
_PATTERNS = [
    "*.json",
    "*.yaml",
    "*.yml",
    "*.safetensors",
    "*.msgpack",
    "*.ckpt",
    "*.pt",
    "*.pth",
    "*.bin",
    "*.jit",
]
_CONFIGURATIONS = ("config.json", "config.yaml", "model.yaml")


@functools.lru_cache(maxsize=32)
def fetch_checkpoint(address: str) -> Path:
    """Returns the local path of a repository or of one file in it, downloaded where it is not in the cache.

    Raises:
      UserError: a malformed address, no ``huggingface_hub``, or it is unavailable.
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
    beside_it = "" if folder == "." else f"{folder}/"
    if is_index(path):
        for name in sorted(set(read_weight_map(path).values())):
            hub.hf_hub_download(repo, f"{beside_it}{name}", revision=revision)
    for name in _CONFIGURATIONS:
        beside = f"{beside_it}{name}"
        try:
            hub.hf_hub_download(repo, beside, revision=revision)
        except Exception as error:
            # There is none, or not in the cache in offline mode: shapes then tell the architecture. Where the
            # Hub has not said so, there may be one that says more than they do.
            if not is_missing(error) or is_unreachable(error):
                raise
    return path
