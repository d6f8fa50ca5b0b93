"""Finds the file with the weights in a folder."""

from pathlib import Path

from vqgan.errors import UserError
from vqgan.importers.containers import sniff

# Where several containers lie in one folder, these names are meant, in this order.
_USUAL = (
    "diffusion_pytorch_model.safetensors", "model.safetensors", "flax_model.msgpack", "last.ckpt",
    "model.ckpt", "diffusion_pytorch_model.bin", "pytorch_model.bin",
)  # fmt: skip
# A diffusion pipeline's VQ model, a Lightning run, a tokenizer beside a language model.
_SUBFOLDERS = ("vqvae", "vqmodel", "movq", "checkpoints", "tokenizer", "vae")
_LISTED = 8


def find_weights(path: Path) -> Path:
    """The weights file that a path means.

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
            return _choose(folder, found)
    names = sorted(p.name for p in path.iterdir())
    shown = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
    raise UserError(f"{path}: no codec and no checkpoint in this folder; it has: {shown or 'nothing'}")


def _containers(folder: Path) -> list[Path]:
    try:
        files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    except OSError:
        return []
    return [p for p in files if p.suffix != ".npz" and sniff(p) is not None]


def _choose(folder: Path, found: list[Path]) -> Path:
    if len(found) == 1:
        return found[0]
    for name in _USUAL:
        if folder / name in found:
            return folder / name
    names = ", ".join(p.name for p in found[:_LISTED])
    raise UserError(f"{folder}: several checkpoints in this folder ({names}); give the path of one")
