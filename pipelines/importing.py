"""``vqgan import``, ``export`` and ``import-prior``: models from other code bases, and back to them."""

import os
from collections.abc import Mapping
from pathlib import Path

from pipelines.options.run_options import optional_path
from pipelines.options.tool_options import ImportPriorOptions
from vqgan.codec_checkpoint import PARTS, CodecInfo, load_weights, read_info, save_codec
from vqgan.config_json import to_dict
from vqgan.downloads import is_hub
from vqgan.errors import UserError
from vqgan.image_sizes import shape_of_size
from vqgan.importers.source import with_options
from vqgan.model.parameters import codec_parameter_count
from vqgan.presets import pretrained_names
from vqgan.prior import import_llamagen, import_taming
from vqgan.prior.checkpoint import CodecIdentity, PriorInfo, find_prior, read_prior, save_prior
from vqgan.prior.config import prior_parameter_count

PRIOR_FORMATS = ("llama", "gpt2")


def import_codec(source: str, output: str, options: Mapping[str, str | None]) -> str:
    """Converts a checkpoint once; the codec folder has the fingerprint of converting on the fly.

    Args:
      source: file, folder or Hub address, options included.
      output: folder to create.
      options: further options by name, None for those not given.

    Returns:
      Lines that say what was converted.

    Raises:
      UserError: it is no checkpoint that we know, or is one of our own.
    """
    info = read_info(with_options(source, options))
    if info.source is None:
        raise UserError(f"{source}: this is a codec already; use it as it is")
    saved = save_codec(output, info.config, load_weights(info, PARTS), card=info.card)
    origin = info.card["origin"]
    lines = [
        f"format       {origin['format']}",
        f"part used    {origin.get('part', 'all')}",
        f"parameters   {codec_parameter_count(info.config) / 1e6:.2f} M",
        f"input range  {list(info.config.input_range)}",
        f"fingerprint  {saved.fingerprint}",
        f"codec        {output}",
    ]
    if "unused_configurations" in origin:
        lines.insert(2, f"not read     {', '.join(origin['unused_configurations'])}")
    if "unused_parts" in origin:
        lines.insert(2, f"left out     {', '.join(origin['unused_parts'])}")
    if "assumed" in origin:
        lines.insert(1, f"assumed      {origin['assumed']}")
    return "\n".join(lines)


def export_codec(codec: str, output: str, to: str) -> str:
    """Writes a codec, or a prior, in a format that other programs read.

    Args:
      codec: folder, name or foreign checkpoint; folder of a prior for formats of priors.
      output: folder to create.
      to: ``onnx``, a key of :data:`vqgan.importers.export_formats.FORMATS`, or for priors one of
        :data:`PRIOR_FORMATS`.

    Returns:
      A line that says what was written.

    Raises:
      UserError: no such codec, the format cannot express it, or there is something at ``output`` already.
    """
    _check_kind(codec, to)
    if to in PRIOR_FORMATS:
        return _export_prior(codec, output, to)
    info = read_info(codec)
    size = f"{codec_parameter_count(info.config) / 1e6:.2f} M parameters, fingerprint {info.fingerprint}"
    if to == "onnx":
        from vqgan.exporters.onnx_folder import write_onnx

        return f"{output}: {', '.join(write_onnx(Path(output), info))}; {size}"
    from vqgan.importers.exporting import export_checkpoint

    info.require_decoder()
    return f"{export_checkpoint(output, to, info.config, load_weights(info, PARTS), info.card)}: {size}"


def _check_kind(path: str, to: str) -> None:
    """Refuses a prior where the format is one of codecs, and the other way round."""
    is_prior = not is_hub(path) and find_prior(path) is not None
    if is_prior and to not in PRIOR_FORMATS:
        raise UserError(f"{path}: is a prior, and --to {to} is for codecs; give --to llama or gpt2")
    is_codec = path in pretrained_names() or (Path(path) / "codec.json").is_file()
    if is_codec and to in PRIOR_FORMATS:
        raise UserError(f"{path}: is a codec, and --to {to} is for priors; give another format")


def _export_prior(prior: str, output: str, to: str) -> str:
    from vqgan.exporters.transformers_folder import write_transformers

    info = read_prior(prior)
    write_transformers(Path(output), info, to)
    size = f"{prior_parameter_count(info.config) / 1e6:.2f} M parameters"
    return f"{output}: {size}, fingerprint {info.fingerprint}"


def import_prior(options: ImportPriorOptions) -> str:
    """Converts a checkpoint once and writes the prior folder.

    Returns:
      Lines that say what was converted.

    Raises:
      UserError: no such codec or checkpoint, they do not go together, or the output cannot be written.
    """
    name = os.fspath(options.codec)
    codec = read_info(name)
    source, spec = os.fspath(options.source), _spec(options, codec)
    is_llamagen = import_llamagen.is_llamagen(source)
    convert = import_llamagen.import_llamagen_prior if is_llamagen else import_taming.import_taming_prior
    found = convert(source, spec)
    identity = CodecIdentity(codec.fingerprint, name, to_dict(codec.config), options.image_size)
    card = {"origin": dict(found.origin), "license": "unspecified"}
    saved = save_prior(os.fspath(options.output), found.config, found.weights, codec=identity, card=card)
    return "\n".join(_lines(options, saved, found))


def _spec(options: ImportPriorOptions, codec: CodecInfo) -> import_taming.PriorSpec:
    return import_taming.PriorSpec(
        codebook_size=codec.config.codebook_size,
        grid=codec.config.grid(*shape_of_size(options.image_size)),
        classes=options.classes,
        condition_codebook_size=options.condition_codes,
        condition_grid=options.condition_grid,
        heads=options.heads,
        codebook=load_weights(codec, ["quantizer"])["quantizer"].get("codebook"),
        config=optional_path(options.native_config),
    )


def _lines(options: ImportPriorOptions, saved: PriorInfo, found: import_taming.ImportedPrior) -> list[str]:
    model = saved.config
    return [
        f"format       {found.origin['format']}",
        f"parameters   {prior_parameter_count(model) / 1e6:.2f} M",
        f"layout       {model.layers} layers, {model.heads} heads, width {model.width}",
        f"grid         {model.grid[0]} x {model.grid[1]} tokens of {model.codebook_size} codes",
        f"codec        {options.codec} ({saved.codec.fingerprint[:12]})",
        *(f"note         {note}" for note in found.notes),
        f"fingerprint  {saved.fingerprint}",
        f"prior        {options.output}",
    ]
