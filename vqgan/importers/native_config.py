"""The configuration that a code base leaves beside its weights: where it lies, and how it is read.

One that is there and cannot be read is an error that names it: taken for absent, it would leave the
architecture to guesses from shapes, and other tokens than the model's would come out without a word.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from vqgan.errors import UserError
from vqgan.importers.interpolation import find_unresolved, resolve_references
from vqgan.importers.layout import Fields, NativeConfig
from vqgan.importers.sharded import is_index
from vqgan.importers.tensors import DamagedError
from vqgan.importers.text_files import parse_json, read_text

_SUFFIXES = (".yaml", ".yml", ".json")
_STEMS = ("config", "model", "configuration", "hparams")
WEIGHT_FOLDERS = ("checkpoints", "ckpts", "checkpoint", "ckpt", "weights")
"""Folders of weights in that of a run; the configuration may stand above them."""
_MAX_JSON_BYTES = 4 << 20
_MAX_YAML_BYTES = 256 << 10  # its parser is slow
_MAX_VALUES = 50_000  # anchors and references written out


def find_native(weights: Path, given: str | None) -> NativeConfig | None:
    """Finds the configuration of a weights file; returns None where there is none.

    Args:
      weights: the checkpoint file.
      given: path that the user named; then nothing is searched.

    Raises:
      UserError: it cannot be read.
    """
    return next((native for native in natives(weights, given) if native.data), None)


def natives(weights: Path, given: str | None) -> Iterator[NativeConfig]:
    """Yields the configurations of a weights file, the likeliest first; each is read when it is asked for.

    Args:
      weights: the checkpoint file.
      given: path that the user named; then nothing is searched.

    Raises:
      UserError: one cannot be read.
    """
    if given is not None:
        if not Path(given).is_file():
            raise UserError(f"{given}: no such configuration file; give the path of a YAML or JSON file")
        yield _read(Path(given))
        return
    for path in config_files(weights):
        yield _read(path)


def config_files(weights: Path) -> list[Path]:
    """Lists the files that may be the configuration of a weights file, the likeliest first.

    In the same folder, in ``configs`` there and above, and above where the folder is one of checkpoints: a
    file of the same name; ``config``, ``model`` or ``hparams``; other such names; the only YAML.

    Raises:
      UserError: a folder cannot be listed.
    """
    folder = weights.parent
    above = folder.absolute().parent
    folders = [folder, folder / "configs", above / "configs"]
    folders += [above] if folder.name in WEIGHT_FOLDERS else []
    return [path for place in folders for path in _candidates(place, weights)]


def unused_yamls(weights: Path, used: NativeConfig | None) -> list[str]:
    """Lists the names of YAML files where a configuration may lie that say nothing of a model.

    Args:
      weights: the checkpoint file.
      used: its configuration.
    """
    beside = [path for path in sorted(weights.parent.iterdir()) if path.suffix.lower() in (".yaml", ".yml")]
    names = (path.name for path in [*config_files(weights), *beside] if not _is_json(path))
    return [name for name in dict.fromkeys(names) if used is None or name != used.path.name]


def _candidates(folder: Path, weights: Path) -> list[Path]:
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be listed ({error.strerror or error}); give config=PATH"
        ) from error
    found = [path for path in found if path != weights and not is_index(path)]
    usual = [p for p in found if p.stem == weights.stem] + [p for p in found if p.stem in _STEMS]
    found = [path for path in found if path not in usual and path.is_file()]
    others = [path for path in found if path.stem.endswith(("-project", "_config", "-config"))]
    yamls = [path for path in found if not _is_json(path)]
    alone = yamls if len(yamls) == 1 and not any(not _is_json(path) for path in usual) else []
    return list(dict.fromkeys([*usual, *others, *alone]))


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _read(path: Path) -> NativeConfig:
    """Reads the mapping that a configuration file holds.

    Raises:
      UserError: it holds none, or cannot be read.
    """
    try:
        text = read_text(path, _MAX_JSON_BYTES if _is_json(path) else _MAX_YAML_BYTES, "a configuration")
        data = parse_json(text) if _is_json(path) else resolve_references(_parse_yaml(text), _MAX_VALUES)
        if not isinstance(data, Mapping):
            raise DamagedError("it holds no mapping")
        return NativeConfig(path, data)
    except (OSError, DamagedError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        raise UserError(
            f"{path}: cannot be read as a configuration ({reason}); repair it, move it away, "
            "or name another one with config=PATH"
        ) from error


def resolved_fields(fields: Fields, native: NativeConfig, given: Collection[str]) -> Fields:
    """Returns the fields that a configuration gives; none of them may be a reference that stands for nothing.

    Args:
      fields: what was read from it.
      native: the configuration.
      given: fields that the user gives; what the configuration says of them is not needed.

    Raises:
      UserError: one is; or there are no fields, and such a reference may hide them.
    """
    lost = {name: find_unresolved(value) for name, value in (fields or native.data).items()}
    for name, found in lost.items():
        if found is not None and name not in given:
            raise UserError(
                f"{native.path}: {name} has {found:.80}, which {found.reason}; write its value there, give "
                "it as an option where there is one, or name another configuration with config=PATH"
            )
    return {name: value for name, value in fields.items() if lost[name] is None}


def _parse_yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Python's tuples are lists; every other tag that is not plain data is an error."""

    Loader.add_constructor("tag:yaml.org,2002:python/tuple", yaml.SafeLoader.construct_yaml_seq)
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _yaml_values(node, {}) > _MAX_VALUES:
            raise DamagedError("its anchors stand for more values than any configuration has")
        return loader.construct_document(node)
    except DamagedError:
        raise
    except Exception as error:  # YAML has errors of its own, and lets many of Python's through
        raise DamagedError(f"it is no YAML: {error}") from error


def _yaml_values(node: Any, known: dict[int, int]) -> int:
    """Counts the values of a YAML node with every alias written out; ``known`` has those of earlier nodes."""
    if id(node) not in known:
        known[id(node)] = _MAX_VALUES + 1  # of a node within itself
        parts = node.value if isinstance(node.value, list) else []
        inner = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_yaml_values(part, known) for part in inner)
    return known[id(node)]
