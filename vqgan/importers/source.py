"""From what a user names to files: path and options, the weights in a folder, the configuration beside them.

``model.ckpt?input_range=0,1&weights=ema`` is one string, so that it travels to every worker as it is.
The options are the fields of :class:`ImportOptions`.
"""

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqgan.downloads import fetching, is_dataset, is_hub, is_missing, is_unreachable, require_library
from vqgan.errors import UserError
from vqgan.importers.containers import sniff
from vqgan.importers.layout import NativeConfig

# Where several containers lie in one folder, these names are meant, in this order.
_USUAL_WEIGHTS = (
    "diffusion_pytorch_model.safetensors", "model.safetensors", "flax_model.msgpack", "last.ckpt",
    "model.ckpt", "diffusion_pytorch_model.bin", "pytorch_model.bin",
)  # fmt: skip
_HALVES = ("encoder.jit", "decoder.jit")  # of Cosmos-Tokenizer
# A diffusion pipeline's VQ model, a Lightning run, a tokenizer beside a language model.
_SUBFOLDERS = ("vqvae", "vqmodel", "movq", "checkpoints", "tokenizer", "vae")
_LISTED = 8  # names in one error
_CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
_CONFIG_STEMS = ("config", "model", "configuration")
_MAX_CONFIG_BYTES = 4 << 20
_MAX_YAML_BYTES = 256 << 10  # its parser is slow
_MAX_YAML_VALUES = 50_000  # anchors written out
_EXAMPLES = {"input_range": "0,1", "attn_resolutions": "16", "resolution": "256", "scales": "1,2,4,8,16"}


@dataclass(frozen=True)
class ImportOptions:
    """What cannot be read from a file, and choices among what is in it.

    Attributes:
      input_range: pixel values that the network expects for uint8 0 and 255.
      resolution: side in pixels that the model was trained at.
      attn_resolutions: sides, at ``resolution``, of the levels with attention.
      weights: ``raw``, or ``ema`` for the averaged weights where the file has both.
      name: published name, whose settings and parameter count must fit.
      config: native configuration file, if it lies elsewhere.
      scales: sides of the scales of a multi-scale tokenizer, from coarse to fine.
    """

    input_range: tuple[float, float] | None = None
    resolution: int | None = None
    attn_resolutions: tuple[int, ...] | None = None
    weights: str = "raw"
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
    """Tells whether a file, or a file in a folder, is a container that may hold a foreign checkpoint."""
    try:
        return sniff(find_weights(path)) is not None
    except (UserError, OSError):
        return False


def find_weights(path: Path) -> Path:
    """Finds the weights file that a path means.

    Raises:
      UserError: nothing there, no container in the folder, or several.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: nothing there; give a checkpoint file, its folder, or a codec")
    for folder in (path, *(path / name for name in _SUBFOLDERS)):
        found = _containers(folder)
        if found:
            return _usual_weights(folder, found)
    names = sorted(p.name for p in path.iterdir())
    shown = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
    raise UserError(f"{path}: no codec and no checkpoint in this folder; it has: {shown or 'nothing'}")


def _containers(folder: Path) -> list[Path]:
    try:
        files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    except OSError:
        return []
    return [p for p in files if p.suffix != ".npz" and sniff(p) is not None]


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
    raise UserError(f"{folder}: several checkpoints in this folder ({shown}); give the path of one")


def other_half(file: Path) -> Path | None:
    """Finds the file beside it that holds the other half of the model: a decoder to an encoder, or back."""
    if file.name not in _HALVES:
        return None
    other = file.with_name(_HALVES[1 - _HALVES.index(file.name)])
    return other if other.is_file() else None


def find_native(weights: Path, given: str | None) -> NativeConfig | None:
    """Finds the configuration of a weights file; returns None where there is none.

    Looked for: a file of the same name; ``config`` or ``model`` in the same folder; the only such file
    there; and, for the folders that Lightning leaves, ``../configs``.

    Args:
      weights: the checkpoint file.
      given: path that the user named; then nothing is searched.

    Raises:
      UserError: the named file cannot be read.
    """
    if given is not None:
        path = Path(given)
        if not path.is_file():
            raise UserError(f"{given}: no such configuration file; give the path of a YAML or JSON file")
        return _read_config(path, strict=True)
    for folder in (weights.parent, weights.parent.parent / "configs"):
        for path in _config_candidates(folder, weights.stem):
            native = _read_config(path, strict=False)
            if native is not None and native.data:
                return native
    return None


def _config_candidates(folder: Path, stem: str) -> list[Path]:
    try:
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in _CONFIG_SUFFIXES and p.is_file())
    except OSError:
        return []
    usual = [p for p in found if p.stem == stem] + [p for p in found if p.stem in _CONFIG_STEMS]
    others = [p for p in found if p not in usual and p.stem.endswith(("-project", "_config", "-config"))]
    yamls = [p for p in found if p.suffix != ".json"]
    return usual + others + (yamls if len(yamls) == 1 else [])


def _read_config(path: Path, strict: bool) -> NativeConfig | None:
    """Reads the file's mapping; without ``strict`` it is None where there is none."""
    try:
        if path.stat().st_size > (_MAX_CONFIG_BYTES if path.suffix == ".json" else _MAX_YAML_BYTES):
            raise ValueError("it is too large for a configuration")
        text = path.read_text()
        data = json.loads(text) if path.suffix == ".json" else _parse_yaml(text, path)
        if not isinstance(data, Mapping):
            raise ValueError("it holds no mapping")
        return NativeConfig(path, data)
    except (OSError, ValueError, RecursionError) as error:
        if strict or path.suffix != ".json":
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path}: cannot be read as a configuration ({reason}); repair it, move it away, "
                "or name another one with config=PATH"
            ) from error
        return None


def _parse_yaml(text: str, path: Path) -> Any:
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _yaml_values(node, {}) > _MAX_YAML_VALUES:
            raise ValueError("its anchors stand for more values than any configuration has")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    finally:
        loader.dispose()


def _yaml_values(node: Any, known: dict[int, int]) -> int:
    """Counts the values of a YAML node with every alias written out; ``known`` has those of earlier nodes."""
    if id(node) not in known:
        known[id(node)] = _MAX_YAML_VALUES + 1  # of a node within itself
        parts = node.value if isinstance(node.value, list) else []
        inner = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_yaml_values(part, known) for part in inner)
    return known[id(node)]


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
