"""Model cards: what a model was trained on, how, and how good it is; as JSON and as the Hub's ``README.md``.

The JSON lies in ``codec.json`` or ``prior.json`` as ``card``. It is free-form there, and older releases and
importers wrote less, so reading it takes what it understands and never fails.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from vqgan.config import ModelConfig
from vqgan.config_json import to_dict
from vqgan.model.parameters import codec_parameter_count
from vqgan.token_layouts import describe_layout

UNSPECIFIED = "unspecified"
CODEC_TASK = "image-feature-extraction"
CODEC_TAGS = ("vqgan", "image-tokenizer", "vector-quantization", "jax")
# What the Hub's ``license`` field takes, of those that codecs are likely to have; others are ``other``.
LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-3.0", "cc-by-sa-4.0",
    "cc-by-sa-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0", "gpl-2.0",
    "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "openrail", "creativeml-openrail-m", "unlicense", "wtfpl",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric's value, which says little without these.

    Attributes:
      value: of the metric.
      samples: images that it was taken over; 0 if not known.
      reference: which images; empty if not known.
    """

    value: float
    samples: int = 0
    reference: str = ""


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What is known of a codec or a prior.

    Attributes:
      name: of the model; may be empty.
      data: description of the training images.
      training_images: how many; 0 if not known.
      validation_images: how many were kept for validation.
      steps: optimizer steps.
      minutes: duration of the training.
      configuration: settings of the training.
      metrics: by name.
      licence: an SPDX-like name, or free text.
      origin: where converted weights come from, as importers record it.
      parents: fingerprints or names of models that training started from.
    """

    name: str = ""
    data: str = ""
    training_images: int = 0
    validation_images: int = 0
    steps: int = 0
    minutes: float = 0.0
    configuration: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, Metric] = dataclasses.field(default_factory=dict)
    licence: str = UNSPECIFIED
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parents: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the mapping for the JSON: without what is not known; a value that is not finite is null."""
        metrics = {name: dataclasses.asdict(metric) for name, metric in self.metrics.items()}
        for metric in metrics.values():
            metric["value"] = metric["value"] if math.isfinite(metric["value"]) else None
        counts = {"training_images": self.training_images, "validation_images": self.validation_images}
        known = {
            "name": self.name,
            "data": {name: value for name, value in ({"what": self.data} | counts).items() if value},
            "steps": self.steps,
            "minutes": self.minutes,
            "training": dict(self.configuration),
            "metrics": metrics,
            "origin": dict(self.origin),
            "parents": list(self.parents),
        }
        return {name: value for name, value in known.items() if value} | {"license": self.licence}

    @classmethod
    def from_json(cls, card: Mapping[str, Any]) -> "ModelCard":
        """Reads the card in the JSON of this or an older release; what is of another form is left out."""
        data, training = _mapping(card, "data"), _mapping(card, "training")
        nested = _mapping(training, "train")
        parents = card.get("parents")
        return cls(
            name=_text(card, "name"),
            data=_text(data, "what") or _text(data, "source") or _text(card, "data"),
            training_images=int(_number(data, "training_images")),
            validation_images=_validation_images(data),
            steps=int(_number(card, "steps") or _number(training, "steps") or _number(nested, "steps")),
            minutes=_number(card, "minutes"),
            configuration=training,
            metrics=_metrics(card, data),
            licence=_text(card, "license") or _text(card, "licence") or UNSPECIFIED,
            origin=_mapping(card, "origin"),
            parents=tuple(map(str, parents)) if isinstance(parents, (list, tuple)) else (),
        )


def render_codec_card(card: Mapping[str, Any], config: ModelConfig, fingerprint: str) -> str:
    """Writes the ``README.md`` of a codec, with the Hub's front matter.

    Args:
      card: ``card`` of ``codec.json``, of any release.
      config: the architecture.
      fingerprint: of the codec.
    """
    known = ModelCard.from_json(card)
    title = escape(known.name) or f"VQGAN codec {fingerprint[:12]}"
    sections = [
        front_matter(card),
        f"# {title}\n\n{_summary(config)}\n",
        _usage(config),
        *common_sections(known, to_dict(config)),
        f"Fingerprint: `{escape(fingerprint)}`\n",
    ]
    return "\n".join(section for section in sections if section)


def common_sections(card: ModelCard, config: Mapping[str, Any]) -> list[str]:
    """Writes training, metrics, origin, licence and configuration; empty where nothing is known.

    Args:
      card: what is known.
      config: the architecture as JSON data.
    """
    return [
        card_section("Training", _training(card)),
        card_section("Metrics", _metrics_table(card)),
        card_section("Origin", _origin(card)),
        card_section("Licence", f"Weights: {escape(card.licence)}"),
        card_section("Configuration", _configuration(card, config)),
    ]


def front_matter(card: Mapping[str, Any], task: str = CODEC_TASK, tags: Iterable[str] = CODEC_TAGS) -> str:
    """Writes the YAML block at the head of a card.

    Args:
      card: ``card`` of the folder's JSON, of any release.
      task: the Hub's name of what the model does.
      tags: words for the Hub's search.

    It holds only words of our own and what :func:`_slug` leaves of a user's, so that nothing needs quotes.
    """
    known = ModelCard.from_json(card)
    lines = [
        *licence_lines(known.licence),
        "library_name: vqgan-pipelines",
        f"pipeline_tag: {task}",
    ]
    lines += list_lines("tags", list(tags))
    lines += list_lines("metrics", sorted({slug for name in known.metrics if (slug := _slug(name))}))
    return "\n".join(["---", *lines, "---", ""])


def escape(text: str) -> str:
    """Escapes text to one line of Markdown that shows as it is: no markup, HTML, cells or line breaks."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(printable.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", line)


def _summary(config: ModelConfig) -> str:
    side = config.downsampling
    both = "and back" if config.has_decoder else "(it has no decoder)"
    share = f"{side} × {side} pixels a token"
    if config.length is not None:
        share = describe_layout(config.layout, (1, config.length))
    return (
        f"A VQGAN that turns images into tokens {both}: {share}, "
        f"{config.codebook_size:,} codes of {config.embed_dim} dimensions, "
        f"{codec_parameter_count(config) / 1e6:,.2f} million parameters."
    )


def _usage(config: ModelConfig) -> str:
    shape = "[N, h, w]" if config.length is None else "[N, L]"
    return (
        "```python\nfrom vqgan import Codec  # of vqgan-pipelines\n\n"
        'codec = Codec.load("path/to/this/folder")\n'
        f"tokens = codec.encode(images)  # uint8 [N, H, W, 3] to integers {shape}\n"
        f"{'images = codec.decode(tokens)' + chr(10) if config.has_decoder else ''}```\n"
    )


def card_section(title: str, body: str) -> str:
    """Writes a part of a card under its heading; empty where there is nothing to say."""
    return f"## {title}\n\n{body}\n" if body else ""


def _training(card: ModelCard) -> str:
    images = f"{card.training_images:,} training images" if card.training_images else ""
    validation = f"{card.validation_images:,} for validation" if card.validation_images else ""
    facts = {
        "Data": escape(card.data),
        "Images": ", ".join(filter(None, [images, validation])),
        "Steps": f"{card.steps:,}" if card.steps else "",
        "Duration": f"{card.minutes:,.1f} minutes" if card.minutes else "",
        "Started from": ", ".join(map(escape, card.parents)),
    }
    return "\n".join(f"- **{name}**: {value}" for name, value in facts.items() if value)


def _metrics_table(card: ModelCard) -> str:
    rows = [
        [escape(name), _digits(metric.value), f"{metric.samples:,}" if metric.samples else "not recorded",
         escape(metric.reference) or "not recorded"]
        for name, metric in card.metrics.items()
    ]  # fmt: skip
    return _table(["metric", "value", "images", "taken over"], rows) if rows else ""


def _origin(card: ModelCard) -> str:
    rows = [[escape(str(name)), escape(_shown(value))] for name, value in card.origin.items()]
    return "Converted from published weights.\n\n" + _table(["", "of the origin"], rows) if rows else ""


def _configuration(card: ModelCard, config: Mapping[str, Any]) -> str:
    parts = {"model": dict(config)} | ({"training": dict(card.configuration)} if card.configuration else {})
    # JSON of ASCII: a text in it holds no line break, so none can end the block.
    return f"```json\n{json.dumps(parts, indent=2, default=str)}\n```"


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def licence_lines(licence: str) -> list[str]:
    """Writes a licence for front matter: a name that the Hub knows, or what is left of a user's words."""
    slug = _slug(licence)
    if licence == UNSPECIFIED or not slug:
        return ["license: unknown"]
    if slug in LICENCES:
        return [f"license: {slug}"]
    return ["license: other", f'license_name: "{slug}"']


def list_lines(name: str, items: list[str]) -> list[str]:
    """Writes a list of front matter, whose items need no escapes; no lines for an empty one."""
    return [f"{name}:", *(f'- "{item}"' for item in items)] if items else []


def _slug(text: str) -> str:
    """Returns lower-case letters, digits, dots and hyphens; an underscore stays."""
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-.")[:96]


def _digits(value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,}" if value == int(value) else f"{value:,.4f}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _metrics(card: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Metric]:
    """Returns metrics by name; bare numbers, of older releases, are those of the validation images."""
    images = _validation_images(data)
    reference = "validation images"
    if _text(data, "validation_source"):
        reference += f" of {data['validation_source']}"
    metrics: dict[str, Metric] = {}
    for name, entry in (*_mapping(card, "held_back").items(), *_mapping(card, "metrics").items()):
        if _is_number(entry):
            metrics[str(name)] = Metric(float(entry), images, reference)
        elif isinstance(entry, Mapping) and (entry.get("value") is None or _is_number(entry["value"])):
            value = math.nan if entry.get("value") is None else float(entry["value"])
            metrics[str(name)] = Metric(value, int(_number(entry, "samples")), _text(entry, "reference"))
    return metrics


def _validation_images(data: Mapping[str, Any]) -> int:
    """Returns how many there are, by the name of this or of an older release."""
    return int(_number(data, "validation_images") or _number(data, "held_back_images"))


def _mapping(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = data.get(name)
    return value if isinstance(value, Mapping) else {}


def _text(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name)
    return value if isinstance(value, str) else ""


def _number(data: Mapping[str, Any], name: str) -> float:
    value = data.get(name)
    return value if _is_number(value) and math.isfinite(value) else 0  # type: ignore[arg-type, return-value]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
