"""``vqgan import-prior``: priors from other code bases."""

from dataclasses import dataclass

from vqgan.codec_checkpoint import CodecInfo, load_weights, read_info
from vqgan.config import to_dict
from vqgan.errors import UserError
from vqgan.prior import import_taming
from vqgan.prior.checkpoint import CodecIdentity, PriorInfo, save_prior
from vqgan.prior.config import prior_parameter_count


@dataclass(frozen=True)
class ImportPrior:
    """What ``vqgan import-prior`` is asked for.

    Attributes:
      source: file, folder or Hub address of the checkpoint.
      codec: whose tokens the prior was trained on.
      image_size: side in pixels of the images that it was trained on.
      output: folder to create.
      heads: attention heads; None to read them from the configuration beside the checkpoint.
      classes: number of classes; 0 for a prior without labels.
      condition_codes: codes of the condition's tokens; 0 for a prior without a condition grid.
      condition_grid: ``(h, w)`` of the condition's tokens; both 0 without one.
      config: the checkpoint's own configuration file, if it lies elsewhere.
    """

    source: str
    codec: str
    image_size: int
    output: str
    heads: int | None = None
    classes: int = 0
    condition_codes: int = 0
    condition_grid: tuple[int, int] = (0, 0)
    config: str | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("heads", self.heads, 1), ("classes", self.classes, 0)):
            if value is not None and value < least:
                raise UserError(f"--{name} is {value}: it must be at least {least}")
        if (self.condition_codes > 0) != (min(self.condition_grid) > 0):
            raise UserError("--condition-codes and --condition-grid belong together; give both, or neither")
        if self.condition_codes and self.classes:
            raise UserError("--classes and --condition-codes exclude each other: the original knows either")


def import_prior(config: ImportPrior) -> str:
    """Converts a checkpoint once and writes the prior folder.

    Returns:
      Lines that say what was converted.

    Raises:
      UserError: no such codec or checkpoint, they do not go together, or the output cannot be written.
    """
    codec = read_info(config.codec)
    found = import_taming.import_taming_prior(config.source, _spec(config, codec))
    identity = CodecIdentity(codec.fingerprint, config.codec, to_dict(codec.config), config.image_size)
    card = {"origin": dict(found.origin), "license": "unspecified"}
    saved = save_prior(config.output, found.config, found.weights, codec=identity, card=card)
    return "\n".join(_lines(config, saved, found.notes))


def read_grid(text: str) -> tuple[int, int]:
    """``HxW`` as numbers.

    Raises:
      UserError: it is of another form.
    """
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise UserError(f"--condition-grid is {text!r}: give height and width in tokens, such as 16x16")
    return int(height), int(width)


def _spec(config: ImportPrior, codec: CodecInfo) -> import_taming.PriorSpec:
    return import_taming.PriorSpec(
        codebook_size=codec.config.codebook_size,
        grid=codec.config.grid(config.image_size, config.image_size),
        classes=config.classes,
        condition_codebook_size=config.condition_codes,
        condition_grid=config.condition_grid,
        heads=config.heads,
        codebook=load_weights(codec, ["quantizer"])["quantizer"].get("codebook"),
        config=config.config,
    )


def _lines(config: ImportPrior, saved: PriorInfo, notes: tuple[str, ...]) -> list[str]:
    model = saved.config
    return [
        f"format       {import_taming.FORMAT}",
        f"parameters   {prior_parameter_count(model) / 1e6:.2f} M",
        f"layout       {model.layers} layers, {model.heads} heads, width {model.width}",
        f"grid         {model.grid[0]} x {model.grid[1]} tokens of {model.codebook_size} codes",
        f"codec        {config.codec} ({saved.codec.fingerprint[:12]})",
        *(f"note         {note}" for note in notes),
        f"fingerprint  {saved.fingerprint}",
        f"prior        {config.output}",
    ]
