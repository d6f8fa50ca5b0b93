"""From a foreign file's tensors to our parameters: strictly, each of theirs to one of ours.

The architecture is read off names and shapes first, where no configuration gives it.
"""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import numpy as np

from vqgan.channels import RGB
from vqgan.config import ModelConfig
from vqgan.config_json import from_dict, typed_fields
from vqgan.errors import UserError
from vqgan.importers.layout import Fields, KeyLayout, Probe, check_same, parse_parameter, width_fields
from vqgan.importers.tensors import Tensor, as_float32
from vqgan.model.parameters import codec_parameter_shapes

DEFAULT_RESOLUTION = 256
_LISTED = 40  # names in one error
_THREADS = 2
_OUTPUTS = 16  # a line of a cache, in float32


def infer_config(tensors: Mapping[str, Tensor], layout: KeyLayout, known: Fields, where: str) -> ModelConfig:
    """Infers the architecture: what is known, and for the rest what the shapes say.

    Args:
      tensors: the model's parameters under their names.
      layout: how they are named.
      known: fields that a native configuration, a published name or the user gives.
      where: the file, for errors.

    Raises:
      UserError: a parameter without which nothing can be told is missing, or the result makes no model.
    """
    given = typed_fields(ModelConfig, known, where=f"{where}: configuration")
    known = {**layout.fields, **given}
    inferred = {} if layout.infer is None else layout.infer(tensors, known, where)
    _check_agreement(given, inferred, where)
    if layout.rename is not None:
        return from_dict(ModelConfig, {**known, **inferred}, where=f"{where}: architecture")
    if layout.encoder_only and not any(name.startswith("decoder.") for name in tensors):
        known["has_decoder"] = False
    if layout.geometry is None:
        # Levels are counted on the encoder, whose names do not depend on their number.
        levels, blocks = count_levels(probing(tensors, layout, 1, 1))
    else:
        levels, blocks = layout.geometry(tensors)
    try:
        if not blocks:
            raise LookupError("encoder.levels.0.blocks.0.conv1.kernel")
        probe = probing(tensors, layout, levels, blocks)
        fields = fields_from_shapes(probe, levels, blocks, {**known, **inferred})
    except LookupError as error:
        theirs = layout.names(parse_parameter(error.args[0]), levels, blocks)
        raise UserError(
            f"{where}: not a whole {layout.name} VQGAN: {' or '.join(theirs)} is missing; "
            "give a checkpoint of the image tokenizer itself"
        ) from error
    merged = {**fields, **known, **inferred}
    if layout.even_blocks:
        merged |= {"mid_blocks": merged["num_res_blocks"], "decoder_res_blocks": merged["num_res_blocks"]}
    if max(merged["num_res_blocks"], len(merged["ch_mult"])) > len(tensors):
        raise UserError(f"{where}: its configuration asks for more blocks than the file has parameters")
    return from_dict(ModelConfig, merged, where=f"{where}: architecture")


def _check_agreement(given: Fields, inferred: Fields, where: str) -> None:
    told = typed_fields(ModelConfig, inferred, where=f"{where}: architecture")
    for name in sorted(given.keys() & told.keys() - {"attn_resolutions", "scales", "vit"}):
        check_same(where, name, given[name], told[name])


def probing(tensors: Mapping[str, Tensor], layout: KeyLayout, levels: int, blocks: int) -> Probe:
    """Returns a function from our names to shapes of the file's parameters, in our layout."""

    def probe(name: str) -> tuple[int, ...] | None:
        place = parse_parameter(name)
        for theirs in layout.names(place, levels, blocks):
            if theirs in tensors:
                shape = tensors[theirs].shape
                return _our_shape(shape) if layout.from_torch and place.leaf == "kernel" else shape
        return None

    return probe


def count_levels(probe: Probe) -> tuple[int, int]:
    """Counts levels and residual blocks per encoder level, by names."""
    levels = _count(lambda i: probe(f"encoder.levels.{i}.blocks.0.conv1.kernel"))
    blocks = _count(lambda j: probe(f"encoder.levels.0.blocks.{j}.conv1.kernel"))
    return levels, blocks


def fields_from_shapes(probe: Probe, levels: int, blocks: int, known: Mapping[str, Any]) -> Fields:
    """Reads off fields of the configuration that follow from shapes.

    Args:
      probe: shapes by our names.
      levels: number of levels.
      blocks: residual blocks per encoder level.
      known: fields that are given already: ``resolution``, ``attn_resolutions``, ``quantizer`` and
        ``has_decoder`` matter here.

    Raises:
      LookupError: a parameter that every VQGAN has is missing; its name is the argument.
    """

    def width(name: str, axis: int) -> int:
        shape = probe(name)
        if shape is None or len(shape) <= axis or shape[axis] < 1:
            raise LookupError(name)
        return shape[axis]

    widths = [width(f"encoder.levels.{level}.blocks.0.conv1.kernel", 3) for level in range(levels)]
    stem = width("encoder.conv_in.kernel", 3)
    encoded = width("encoder.conv_out.kernel", 3)
    z_channels = width("decoder.conv_in.kernel", 2) if known.get("has_decoder", True) else encoded
    attended = [i for i in range(levels) if _has_attention(probe, f"encoder.levels.{i}.attentions.0")]
    linear = any(probe(f"{place}.qkv.kernel") for place in _attention_places(levels))
    fields: Fields = {
        **width_fields(stem, widths),
        "num_res_blocks": blocks,
        "mid_attention": _has_attention(probe, "encoder.middle.attention"),
        "attention": "linear" if linear else "full",
        "z_channels": z_channels,
        "double_z": encoded == 2 * z_channels,
        "quantizer": "gumbel" if probe("projection.kernel") else "nearest",
        **_codebook(width, known, z_channels),
        **_around_the_quantizer(probe),
        **_channels(width("encoder.conv_in.kernel", 2), known.get("haar_patch", 1)),
    }
    halvings, has_decoder = known.get("halvings"), known.get("has_decoder", True)
    if levels > 1 and halvings is None:
        side = "decoder" if has_decoder else "encoder"
        fields["resamp_with_conv"] = probe(f"{side}.levels.0.resample.conv.kernel") is not None
    resolution = known.get("resolution") or _resolution(attended, levels, known.get("attn_resolutions"))
    fields["resolution"] = resolution
    side = resolution // known.get("haar_patch", 1)
    most = levels - 1 if halvings is None else halvings
    fields["attn_resolutions"] = tuple(dict.fromkeys(side >> min(level, most) for level in attended))
    opposite = [
        i for i in range(levels) if _has_attention(probe, f"decoder.levels.{levels - 1 - i}.attentions.0")
    ]
    if has_decoder and (opposite != attended or halvings is not None):
        fields["decoder_attn_levels"] = tuple(opposite)
    return fields


def _channels(inputs: int, patch: int) -> Fields:
    """Reads the channels of images, where they are not RGB."""
    count = inputs // patch**2
    return {} if count == RGB.count else {"channels": {"count": count}}


def _codebook(width: Callable[[str, int], int], known: Mapping[str, Any], z_channels: int) -> Fields:
    """Reads the codebook's size, where there is one."""
    if known.get("quantizer") == "fsq":
        return {}
    if known.get("quantizer") == "lfq":  # without a table; a claim beyond any codebook is refused later
        return {"embed_dim": z_channels, "codebook_size": 1 << min(z_channels, 40)}
    return {"embed_dim": width("codebook", 1), "codebook_size": width("codebook", 0)}


def _around_the_quantizer(probe: Probe) -> Fields:
    """Reads the side of the convolutions around the quantizer, where it is not the usual one."""
    shape = probe("quant_conv.kernel")
    return {"quant_conv_kernel": shape[0]} if shape and len(shape) == 4 and shape[0] != 1 else {}


def _resolution(attended: list[int], levels: int, sides: tuple[int, ...] | None) -> int:
    """Returns the side that the levels with attention and their given sides imply, or the usual one."""
    if sides and attended:
        return max(sides) << min(attended)
    return max(DEFAULT_RESOLUTION, 1 << (levels - 1))


def _attention_places(levels: int) -> list[str]:
    return ["encoder.middle.attention", *(f"encoder.levels.{i}.attentions.0" for i in range(levels))]


def _has_attention(probe: Probe, name: str) -> bool:
    return probe(f"{name}.out.kernel") is not None


def _count(exists: Callable[[int], Any]) -> int:
    return next(i for i in count() if not exists(i))


def convert_weights(
    tensors: Mapping[str, Tensor], layout: KeyLayout, config: ModelConfig, where: str
) -> dict[str, dict[str, np.ndarray]]:
    """Converts all parameters to float32, by part and our names.

    Args:
      tensors: the file's parameters.
      layout: how they are named.
      config: the architecture that they must fit.
      where: the file, for errors.

    Raises:
      UserError: a name is missing or left over, or a shape is wrong; all of them are listed.
    """
    shapes = codec_parameter_shapes(config)
    every = {name: shape for named in shapes.values() for name, shape in named.items()}
    sources = _match(tensors, layout, config, every, where)

    def read(name: str) -> np.ndarray:
        return _read(tensors[sources[name]], name, every[name], layout, where)

    # Reading and copying leave the interpreter free, so a few threads share the work; each holds one tensor.
    with ThreadPoolExecutor(_THREADS) as pool:
        arrays = dict(zip(every, pool.map(read, every), strict=True))
    return {part: {name: arrays[name] for name in named} for part, named in shapes.items()}


def _match(
    tensors: Mapping[str, Tensor],
    layout: KeyLayout,
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
) -> dict[str, str]:
    """Maps our names to theirs; fails unless both sides go up and all shapes agree."""
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


def _candidates(name: str, layout: KeyLayout, config: ModelConfig) -> tuple[str, ...]:
    if layout.rename is not None:
        return layout.rename(name, len(config.ch_mult), config.num_res_blocks)
    return layout.names(parse_parameter(name), len(config.ch_mult), config.num_res_blocks)


def _mismatch(
    where: str, layout: KeyLayout, missing: list[str], wrong: list[str], unknown: list[str]
) -> UserError:
    """Says in one line what we expect and the file lacks, and what it has and we do not know."""
    sides = []
    for title, names in (
        ("ours that the file lacks (theirs in brackets)", missing),
        ("ours of another shape than theirs", wrong),
        ("theirs that we do not know", unknown),
    ):
        if names:
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            sides.append(f"{len(names)} {title}: {', '.join(names[:_LISTED])}{more}")
    kind = ", ".join(filter(None, [layout.name, layout.fields.get("quantizer")]))
    return UserError(
        f"{where}: its parameters do not fit the architecture ({kind}); {'; '.join(sides)}; "
        "check that the configuration belongs to this file"
    )


def _our_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a kernel that torch stores output first."""
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


def _read(tensor: Tensor, name: str, shape: tuple[int, ...], layout: KeyLayout, where: str) -> np.ndarray:
    array: Any = tensor.read()
    if layout.from_torch and name.endswith(".kernel"):
        array = _kernel_last(array) if array.ndim == 4 else array.T
    return as_float32(array, name, where).reshape(shape)


def _kernel_last(kernel: np.ndarray) -> np.ndarray:
    """Returns an OIHW kernel as HWIO; a few outputs at a time, which stay in the cache."""
    outputs, inputs, height, width = kernel.shape
    result = np.empty((height, width, inputs, outputs), kernel.dtype)
    for first in range(0, outputs, _OUTPUTS):
        part = slice(first, first + _OUTPUTS)
        result[..., part] = kernel[part].transpose(2, 3, 1, 0)
    return result
