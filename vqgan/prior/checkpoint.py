"""Prior checkpoints: the weights as one Orbax item, configuration, fingerprint and codec beside them.

A prior folder holds::

    prior.json    configuration, fingerprint, the codec of its tokens, class names, model card
    README.md     the model card for people and the Hub; nothing reads it
    weights/      parameters by dotted name, float32 (Orbax)

Reading ``prior.json`` needs neither JAX nor Orbax.
"""

import dataclasses
import difflib
import numbers
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vqgan import folders
from vqgan.config_json import from_dict, to_dict
from vqgan.documents import Fields
from vqgan.downloads import fetch_folder, is_hub
from vqgan.errors import UserError
from vqgan.image_sizes import ImageSize, simplified_size
from vqgan.model_card import ModelCard, common_sections, escape, front_matter
from vqgan.prior.config import PriorConfig, prior_parameter_count, prior_parameter_shapes

FOLDER = folders.FolderKind("prior", "prior.json", 1)
WEIGHTS = "weights"
NO_CLASS = "none"
"""In place of a class's name: no class."""
CARD_TASK = "unconditional-image-generation"
CARD_TAGS = ("vqgan", "image-generation", "transformer", "jax")
_PATTERNS = (FOLDER.document, "README.md", f"{WEIGHTS}/*")

Weights = dict[str, np.ndarray]
"""Parameters of a prior: dotted name to float32 array."""


@dataclasses.dataclass(frozen=True)
class CodecIdentity:
    """The codec whose tokens a prior was trained on.

    Attributes:
      fingerprint: of the codec.
      name: path or name that it was opened by; may be empty.
      config: its :class:`vqgan.config.ModelConfig` as JSON.
      image_size: side in pixels of the images behind the tokens, or their height and width; 0 where it is not
        known.
    """

    fingerprint: str
    name: str
    config: Mapping[str, Any]
    image_size: ImageSize


@dataclasses.dataclass(frozen=True)
class PriorInfo:
    """What ``prior.json`` says.

    Attributes:
      path: the prior's folder.
      config: architecture.
      fingerprint: sha256 over the configuration and the weights.
      codec: whose tokens it was trained on.
      class_names: names of classes 0, 1, ..., where they are known.
      card: what it was trained on and how good it is, as :class:`vqgan.model_card.ModelCard` reads it.
      files: size in bytes of every file of the weights, by its path in the folder.
      words: vocabulary of a prior whose texts are words, ids 1, 2, ...
    """

    path: Path
    config: PriorConfig
    fingerprint: str
    codec: CodecIdentity
    class_names: tuple[str, ...] = ()
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: Mapping[str, int] = dataclasses.field(default_factory=dict)
    words: tuple[str, ...] = ()


def save_prior(
    path: str | os.PathLike[str],
    config: PriorConfig,
    weights: Mapping[str, np.ndarray],
    *,
    codec: CodecIdentity,
    class_names: Sequence[str] = (),
    words: Sequence[str] = (),
    card: Mapping[str, Any] | None = None,
) -> PriorInfo:
    """Writes a prior folder; it is there whole or not at all.

    Args:
      path: folder to create. An existing prior there is replaced once the new one is complete;
        anything else there is refused.
      config: architecture.
      weights: all parameters by dotted name, as :func:`vqgan.prior.config.prior_parameter_shapes` names them.
      codec: whose tokens the prior was trained on.
      class_names: names of classes; those beyond ``config.classes`` are left out.
      words: vocabulary of a prior whose texts are words, one fewer than ``config.text_words``.
      card: free-form JSON for the model card, best made by :meth:`vqgan.model_card.ModelCard.to_json`.

    Raises:
      UserError: a file, or a folder that is neither empty nor a prior, is at ``path``; the place cannot be
        written to; or a weight is not finite.
      ValueError: names or shapes that are not those of the configuration.
    """
    path = Path(path).absolute()
    folders.check_place(FOLDER, path)
    stored = {name: np.asarray(value, np.float32) for name, value in weights.items()}
    _check_shapes(config, stored)
    _check_finite(path, stored, "train with a smaller learning rate, or go back to an earlier checkpoint")
    names = tuple(class_names)[: config.classes]
    info = PriorInfo(path, config, prior_fingerprint(config, stored), codec, names, dict(card or {}))
    info = dataclasses.replace(info, words=tuple(words))
    document = {
        "config": to_dict(config),
        "fingerprint": info.fingerprint,
        "codec": to_dict(codec),
        "class_names": list(names),
        "card": info.card,
    }
    if words:
        document["words"] = list(words)
    files = folders.write_folder(FOLDER, path, {WEIGHTS: stored}, document, render_prior_card(info))
    return dataclasses.replace(info, files=files)


def recover_prior(path: str | os.PathLike[str]) -> None:
    """Puts back a prior whose replacement was killed between two renames, and removes what that left."""
    folders.recover_folder(Path(path).absolute())


def read_prior(path: str | os.PathLike[str]) -> PriorInfo:
    """Reads ``prior.json``; the weights stay unread.

    Args:
      path: a prior's folder, that of the run that has trained it, or ``hf://owner/name[@revision]``.

    Raises:
      UserError: no prior there, or a damaged or newer ``prior.json``.
    """
    folder = find_prior(path)
    if folder is None:
        raise UserError(f"prior {path}: {_instead(Path(path))}")
    fields = folders.read_document(FOLDER, folder)
    codec = fields.fields("codec")
    return PriorInfo(
        path=folder,
        fingerprint=fields.text("fingerprint"),
        codec=CodecIdentity(
            fingerprint=codec.text("fingerprint"),
            name=codec.text("name"),
            config=codec.mapping("config"),
            image_size=_image_size(codec),
        ),
        class_names=fields.texts("class_names"),
        words=fields.texts("words", ()),
        card=fields.mapping("card"),
        files=fields.sizes("files"),
        config=from_dict(PriorConfig, fields.value("config"), where=f"{folder}/{FOLDER.document}"),
    )


def _image_size(codec: Fields) -> ImageSize:
    if isinstance(codec.value("image_size"), list):
        height, width = codec.integers("image_size", 2, least=1)
        return simplified_size((height, width))
    return codec.integer("image_size")


def find_prior(path: str | os.PathLike[str]) -> Path | None:
    """Returns the folder with ``prior.json`` that a path means: itself, or ``prior`` in the folder of a run.

    A prior on the Hub, ``hf://owner/name[@revision]``, is downloaded where it is not in the cache.

    Raises:
      UserError: an address on the Hub with no prior, or it is unavailable.
    """
    if is_hub(str(path)):
        return fetch_folder(str(path), FOLDER.document, _PATTERNS, "prior")
    for folder in (Path(path), Path(path) / "prior"):
        if (folder / FOLDER.document).is_file():
            return folder
    return None


def load_prior_weights(info: PriorInfo) -> Weights:
    """Reads the weights as float32 and checks them against the fingerprint.

    Raises:
      UserError: a file is missing or damaged, or a weight is not finite.
    """
    weights = folders.read_arrays(FOLDER, info.path, WEIGHTS, info.files, prior_parameter_shapes(info.config))
    folders.check_sum(FOLDER, info.path, info.fingerprint, prior_fingerprint(info.config, weights))
    _check_finite(info.path, weights, "copy or train the prior again")
    return weights


def require_codec(info: PriorInfo, fingerprint: str, name: str) -> None:
    """Refuses a codec, or tokens of a codec, that is not the one whose tokens the prior was trained on.

    Args:
      info: of the prior.
      fingerprint: of the other codec.
      name: of the other codec, or of the data set with its tokens.

    Raises:
      UserError: the fingerprints differ.
    """
    if fingerprint != info.codec.fingerprint:
        raise UserError(
            f"prior {info.path} was trained on tokens of codec {info.codec.name or 'without a name'} "
            f"({info.codec.fingerprint[:12]}), not those of {name or 'a codec without a name'} "
            f"({fingerprint[:12]}); give the codec or data set that belongs to it"
        )


def class_numbers(prior: PriorInfo, labels: Sequence[int | str | None]) -> list[int | None]:
    """Returns classes by number, None for no class.

    Args:
      prior: whose classes they are.
      labels: numbers, names, or numbers as texts; None, -1 and :data:`NO_CLASS` are no class. All of the
        prior's where there are none, for a prior without classes no class.

    Raises:
      UserError: the prior has no classes, or none of that name.
    """
    count = prior.config.classes
    if not labels:
        return list(range(count)) if count else [None]
    return [_class_number(prior, label) for label in labels]


def _class_number(prior: PriorInfo, label: int | str | None) -> int | None:
    count = prior.config.classes
    is_number = isinstance(label, numbers.Integral)
    if label is None or label == NO_CLASS or (is_number and label == -1):
        return None
    name = str(label)
    if not count:
        raise UserError(f"class {name}: this prior was trained without classes; leave it out")
    if name in prior.class_names and not is_number:
        return prior.class_names.index(name)
    if name.isdecimal() and int(name) < count:
        return int(name)
    near = [] if name.isdecimal() else difflib.get_close_matches(name, prior.class_names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give a number from 0 to {count - 1}, or {NO_CLASS}"
    raise UserError(f"class {name}: there is no such class; {hint}")


def prior_fingerprint(config: PriorConfig, weights: Mapping[str, np.ndarray]) -> str:
    """Returns the sha256 over the configuration, but for dropout, and the weights."""
    return folders.config_fingerprint(to_dict(config), to_dict(PriorConfig()), weights)


# The card


def render_prior_card(info: PriorInfo) -> str:
    """Writes the ``README.md`` of a prior, with the Hub's front matter."""
    known = ModelCard.from_json(info.card)
    title = escape(known.name) or f"VQGAN prior {info.fingerprint[:12]}"
    codec = f"{escape(info.codec.name)}, " if info.codec.name else ""
    codec += f"fingerprint `{escape(info.codec.fingerprint)}`"
    sections = [
        front_matter(info.card, CARD_TASK, CARD_TAGS),
        f"# {title}\n\n{_summary(info.config)}\n",
        f"## Codec\n\nIts tokens are those of the codec {codec}.\n",
        *common_sections(known, to_dict(info.config)),
        f"Fingerprint: `{escape(info.fingerprint)}`\n",
    ]
    return "\n".join(section for section in sections if section)


def _summary(config: PriorConfig) -> str:
    height, width = config.grid
    kind = "A masked" if config.kind == "masked" else "An autoregressive"
    extras = [f"{config.classes:,} classes"] if config.classes else []
    if config.text_length:
        kind_of_text = "words" if config.text_words else f"vectors of {config.text_width:,}"
        extras.append(f"texts of up to {config.text_length:,} {kind_of_text}")
    if config.condition_codebook_size:
        extras.append(f"a condition grid of {' × '.join(map(str, config.condition_grid))} tokens")
    layout = f"{config.layers} layers, {config.heads} heads, width {config.width}"
    return (
        f"{kind} transformer over grids of {height} × {width} tokens of {config.codebook_size:,} codes"
        f"{', with ' + ' and '.join(extras) if extras else ''}: {layout}, "
        f"{prior_parameter_count(config) / 1e6:,.2f} million parameters."
    )


# Checks


def _instead(path: Path) -> str:
    """Says what is at a path without a prior."""
    if not path.exists():
        return "nothing there; give the folder of a prior, or of the run that has trained it"
    if (path / "codec.json").is_file() or (path / "codec" / "codec.json").is_file():
        return "this is a codec; give the folder of a prior, which vqgan train-prior makes"
    if (path / "checkpoints").is_dir():
        return "this run has exported no prior yet; it does so at its first evaluation (train.evaluate_every)"
    return f"there is no {FOLDER.document}; give the folder of a prior, or of the run that has trained it"


def _check_shapes(config: PriorConfig, weights: Weights) -> None:
    expected = prior_parameter_shapes(config)
    found = {name: value.shape for name, value in weights.items()}
    if found != expected:
        differing = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        raise ValueError(f"weights that are not those of the configuration: {', '.join(differing)}")


def _check_finite(path: Path, weights: Weights, advice: str) -> None:
    for name, value in weights.items():
        if not np.isfinite(value).all():
            raise UserError(f"prior {path}: {name} has values that are not finite; {advice}")
