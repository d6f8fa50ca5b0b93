"""Finds the native configuration that lies beside a checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqgan.errors import UserError
from vqgan.extras import require_extra
from vqgan.importers.base import Native

_SUFFIXES = (".yaml", ".yml", ".json")
_USUAL_STEMS = ("config", "model", "configuration")
MAX_BYTES = 4 << 20


def find_native(weights: Path, given: str | None) -> Native | None:
    """The configuration of a weights file, or None.

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
        return _read(path, strict=True)
    for folder in (weights.parent, weights.parent.parent / "configs"):
        for path in _candidates(folder, weights.stem):
            native = _read(path, strict=False)
            if native is not None and native.data:
                return native
    return None


def _candidates(folder: Path, stem: str) -> list[Path]:
    try:
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file())
    except OSError:
        return []
    usual = [p for p in found if p.stem == stem] + [p for p in found if p.stem in _USUAL_STEMS]
    others = [p for p in found if p not in usual and p.stem.endswith(("-project", "_config", "-config"))]
    yamls = [p for p in found if p.suffix != ".json"]
    return usual + others + (yamls if len(yamls) == 1 else [])


def _read(path: Path, strict: bool) -> Native | None:
    """The file's mapping; without ``strict`` None where it has none."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("it is too large for a configuration")
        text = path.read_text()
        data = json.loads(text) if path.suffix == ".json" else _yaml(text, path)
        if not isinstance(data, Mapping):
            raise ValueError("it holds no mapping")
        return Native(path, data)
    except (OSError, ValueError, RecursionError) as error:
        if strict or path.suffix != ".json":
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path}: cannot be read as a configuration ({reason}); repair it, move it away, "
                "or name another one with config=PATH"
            ) from error
        return None


def _yaml(text: str, path: Path) -> Any:
    require_extra("import", str(path), "yaml")
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
