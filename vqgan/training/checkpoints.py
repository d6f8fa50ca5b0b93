"""Checkpoints of a training run: its state and its position in the data, there whole or not at all.

The folder of a run holds them as ``checkpoints/STEP``, written by Orbax under a temporary name and renamed.
"""

from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from vqgan.errors import UserError, first_line
from vqgan.folders import cannot_write

S = TypeVar("S")


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

    def drop_newest(self) -> int | None:
        """Removes the newest checkpoint if there is an earlier one; returns the step of the last one."""
        steps = sorted(self._manager.all_steps())
        if len(steps) > 1:
            self._manager.delete(steps.pop())
        return steps[-1] if steps else None

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
        """Reads a checkpoint: its state, of ``like``'s shapes, types and placement, and the data's position.

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
