"""From a foreign file's tensors to our parameters: strictly, each of theirs to one of ours."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vqgan.config import ModelConfig, from_dict, typed_fields
from vqgan.errors import UserError
from vqgan.importers.base import Fields, Layout, Probe
from vqgan.importers.inferring import count_levels, infer_fields
from vqgan.importers.naming import parse
from vqgan.importers.tensors import Tensor, as_float32
from vqgan.model.parameters import codec_parameter_shapes

_LISTED = 40  # names in one error


def infer_config(tensors: Mapping[str, Tensor], layout: Layout, known: Fields, where: str) -> ModelConfig:
    """The architecture: what is known, and for the rest what the shapes say.

    Args:
      tensors: the model's parameters under their names.
      layout: how they are named.
      known: fields that a native configuration, a published name or the user gives.
      where: the file, for errors.

    Raises:
      UserError: a parameter without which nothing can be told is missing, or the result makes no model.
    """
    known = typed_fields(ModelConfig, known, where=f"{where}: configuration")
    if layout.geometry is None:
        # Levels are counted on the encoder, whose names do not depend on their number.
        levels, blocks = count_levels(probing(tensors, layout, 1, 1))
    else:
        levels, blocks = layout.geometry(tensors)
    try:
        if not blocks:
            raise LookupError("encoder.levels.0.blocks.0.conv1.kernel")
        fields = infer_fields(probing(tensors, layout, levels, blocks), levels, blocks, known)
    except LookupError as error:
        theirs = layout.names(parse(error.args[0]), levels, blocks)
        raise UserError(
            f"{where}: not a whole {layout.name} VQGAN: {' or '.join(theirs)} is missing; "
            "give a checkpoint of the image tokenizer itself"
        ) from error
    merged = {**fields, **layout.fields, **known}
    if layout.geometry is not None:
        merged |= {"mid_blocks": merged["num_res_blocks"], "decoder_res_blocks": merged["num_res_blocks"]}
    if max(merged["num_res_blocks"], len(merged["ch_mult"])) > len(tensors):
        raise UserError(f"{where}: its configuration asks for more blocks than the file has parameters")
    return from_dict(ModelConfig, merged, where=f"{where}: architecture")


def probing(tensors: Mapping[str, Tensor], layout: Layout, levels: int, blocks: int) -> Probe:
    """Shapes of the file's parameters by our names, in our layout."""

    def probe(name: str) -> tuple[int, ...] | None:
        place = parse(name)
        for theirs in layout.names(place, levels, blocks):
            if theirs in tensors:
                shape = tensors[theirs].shape
                return _our_shape(shape) if layout.from_torch and place.leaf == "kernel" else shape
        return None

    return probe


def convert(
    tensors: Mapping[str, Tensor], layout: Layout, config: ModelConfig, where: str, *, ema: bool = False
) -> dict[str, dict[str, np.ndarray]]:
    """All parameters, float32, by part and our names.

    Args:
      tensors: the file's parameters.
      layout: how they are named.
      config: the architecture that they must fit.
      where: the file, for errors.
      ema: take the averaged twins.

    Raises:
      UserError: a name is missing or left over, or a shape is wrong; all of them are listed.
    """
    shapes = codec_parameter_shapes(config)
    sources = _match(
        tensors, layout, config, {n: s for part in shapes.values() for n, s in part.items()}, where
    )
    if ema:
        sources = {ours: _twin(theirs, layout, tensors, where) for ours, theirs in sources.items()}
    return {
        part: {
            name: _read(tensors[sources[name]], name, shape, layout, where) for name, shape in named.items()
        }
        for part, named in shapes.items()
    }


def _match(
    tensors: Mapping[str, Tensor],
    layout: Layout,
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
) -> dict[str, str]:
    """Our names to theirs; fails unless both sides go up and all shapes agree."""
    sources: dict[str, str] = {}
    missing: list[str] = []
    wrong: list[str] = []
    for name, shape in shapes.items():
        candidates = _candidates(name, layout, config)
        theirs = next((candidate for candidate in candidates if candidate in tensors), None)
        if theirs is None:
            missing.append(f"{name} ({' or '.join(candidates)})")
            continue
        sources[name] = theirs
        if not _fits(tensors[theirs].shape, shape, layout.from_torch and name.endswith(".kernel")):
            wrong.append(f"{name} {shape} ({theirs} {tensors[theirs].shape})")
    known = set(sources.values())
    unknown = [name for name in tensors if name not in known and not layout.ignored.fullmatch(name)]
    if missing or wrong or unknown:
        raise _mismatch(where, layout, missing, wrong, unknown)
    return sources


def _candidates(name: str, layout: Layout, config: ModelConfig) -> tuple[str, ...]:
    return layout.names(parse(name), len(config.ch_mult), config.num_res_blocks)


def _twin(theirs: str, layout: Layout, tensors: Mapping[str, Tensor], where: str) -> str:
    twin = f"{layout.ema_prefix or ''}{theirs.replace('.', '')}"
    if twin not in tensors or tensors[twin].shape != tensors[theirs].shape:
        raise UserError(f"{where}: the averaged twin {twin} of {theirs} is missing; use weights=raw")
    return twin


def _mismatch(
    where: str, layout: Layout, missing: list[str], wrong: list[str], unknown: list[str]
) -> UserError:
    """One line with both sides: what we expect and the file lacks, and what it has and we do not know."""
    sides = []
    for title, names in (
        ("ours that the file lacks (theirs in brackets)", missing),
        ("ours of another shape than theirs", wrong),
        ("theirs that we do not know", unknown),
    ):
        if names:
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            sides.append(f"{len(names)} {title}: {', '.join(names[:_LISTED])}{more}")
    return UserError(
        f"{where}: its parameters do not fit the architecture ({layout.name}); {'; '.join(sides)}; "
        "check that the configuration belongs to this file"
    )


def _our_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a kernel that torch stores output first."""
    if len(shape) == 4:
        return (shape[2], shape[3], shape[1], shape[0])
    return (1, 1, shape[1], shape[0]) if len(shape) == 2 else shape


def _fits(theirs: tuple[int, ...], ours: tuple[int, ...], torch_kernel: bool) -> bool:
    if torch_kernel:
        theirs = _our_shape(theirs)
    if theirs == ours:
        return True
    # Norms stored as (1, 1, 1, C), and 1x1 convolutions that are matrices with us: same but for ones.
    squeezed = [tuple(size for size in shape if size != 1) for shape in (theirs, ours)]
    is_vector = len(ours) == 1 and theirs[-1:] == ours and math.prod(theirs) == ours[0]
    is_matrix = torch_kernel and len(ours) == 2 and squeezed[0] == squeezed[1]
    return is_vector or is_matrix


def _read(tensor: Tensor, name: str, shape: tuple[int, ...], layout: Layout, where: str) -> np.ndarray:
    array: Any = tensor.read()
    if layout.from_torch and name.endswith(".kernel"):
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return as_float32(array, name, where).reshape(shape)
