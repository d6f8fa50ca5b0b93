"""``vqgan import`` and ``vqgan export``: codecs from other code bases, and back to them."""

from vqgan.codec_checkpoint import PARTS, load_weights, read_info, save_codec
from vqgan.errors import UserError
from vqgan.importers.source import with_options
from vqgan.model.parameters import codec_parameter_count


def import_codec(source: str, output: str, options: dict[str, str | None]) -> str:
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
    if "unused_parts" in origin:
        lines.insert(2, f"left out     {', '.join(origin['unused_parts'])}")
    return "\n".join(lines)


def export_codec(codec: str, output: str, to: str) -> str:
    """Writes a codec's weights in a format that torch users read.

    Args:
      codec: folder, name or foreign checkpoint.
      output: folder to create.
      to: ``safetensors`` (taming's key layout) or ``diffusers``.

    Returns:
      A line that says what was written.

    Raises:
      UserError: no such codec, or the format cannot express it.
    """
    from vqgan.importers.exporting import export_checkpoint

    info = read_info(codec)
    path = export_checkpoint(output, to, info.config, load_weights(info, PARTS), info.card)
    return (
        f"{path}: {codec_parameter_count(info.config) / 1e6:.2f} M parameters, fingerprint {info.fingerprint}"
    )
