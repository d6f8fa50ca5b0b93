"""Checkpoints of a training run: its state and its position in the data, there whole or not at all.

The folder of a run holds them as ``checkpoints/STEP``, written by Orbax under a temporary name and renamed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from vqgan.documents import Fields, parse_document
from vqgan.errors import UserError, first_line
from vqgan.filesystems import write_atomically
from vqgan.folders import cannot_write

S = TypeVar("S")
CONFIG_FILE = "config.json"


class Checkpoints:
    """The newest few checkpoints of a run."""

    def __init__(self, folder: Path, keep: int):
        self._folder = folder
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint."""
        step: int | None = self._manager.latest_step()
        return step

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Writes a checkpoint; older ones go once it is complete.

        Args:
          step: updates done.
          state: pytree of arrays.
          position: where the data stands, JSON-ready.

        Raises:
          UserError: the disk is full, or the folder cannot be written to.
        """
        if self.latest == step:
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(position))
        try:
            self._manager.save(step, args=args, force=True)
            self._manager.wait_until_finished()
        except Exception as error:
            if not cannot_write(error):
                raise
            raise UserError(
                f"{self._folder}: checkpoint {step} cannot be written ({first_line(error)[:200]}); earlier "
                "ones are intact, free some space and run the same command again"
            ) from error

    def restore(self, step: int, like: S) -> tuple[S, dict[str, Any]]:
        """A checkpoint's state, with the shapes, types and placement of ``like``, and the data's position.

        Raises:
          UserError: damaged, or of another architecture.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=args)
        except Exception as error:  # Orbax and TensorStore raise many types for a damaged folder.
            raise UserError(
                f"{self._folder / str(step)}: the checkpoint cannot be read or does not fit this "
                f"configuration ({first_line(error)[:200]}); remove that folder to go on from an earlier one"
            ) from error
        return restored["state"], restored["data"]

    def close(self) -> None:
        """Ends Orbax's threads."""
        self._manager.close()


def check_same_run(folder: Path, config: dict[str, Any], free: frozenset[str]) -> None:
    """Compares a configuration with that of the checkpoints in a folder, if any; writes ``config.json``.

    Args:
      folder: of the run.
      config: nested configuration, JSON-ready.
      free: dotted names of fields that may change between a run and its continuation.

    Raises:
      UserError: the folder belongs to another run (with what differs), or to something else.
    """
    path = folder / CONFIG_FILE
    if any((folder / "checkpoints").glob("[0-9]*")):
        _refuse_differences(folder, _flat(read_config(folder).data), _flat(config), free)
    elif not path.exists() and folder.is_dir() and any(not is_leftover(entry) for entry in folder.iterdir()):
        raise UserError(f"{folder}: there is something else than a training run; name a folder of its own")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made a folder ({error.strerror}); name another one") from error
    write_atomically(path, (json.dumps(config, indent=2) + "\n").encode())


def is_leftover(path: Path) -> bool:
    """Whether a file is what a killed process has left of a write."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _refuse_differences(
    folder: Path, before: dict[str, Any], now: dict[str, Any], free: frozenset[str]
) -> None:
    names = sorted((before.keys() | now.keys()) - free)
    differing = [name for name in names if before.get(name) != now.get(name)]
    if differing:
        listed = ", ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in differing)
        raise UserError(f"{folder}: holds a run of another configuration ({listed}); name another folder")


def read_config(folder: Path) -> Fields:
    """The configuration of a run, as ``config.json`` in its folder has it.

    Raises:
      UserError: it cannot be read, or is damaged.
    """
    path = folder / CONFIG_FILE

    def refuse(reason: str) -> UserError:
        return UserError(f"{path}: cannot be read ({reason[:200]}); name another folder")

    try:
        data = path.read_bytes()
    except OSError as error:
        raise refuse(first_line(error)) from error
    return parse_document(data, refuse)


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, Mapping):
        return {prefix: data}
    parts = [_flat(value, f"{prefix}.{name}" if prefix else name) for name, value in data.items()]
    return {name: value for part in parts for name, value in part.items()}
