"""The ``README.md`` of a token data set: a card for people, and front matter for the Hub's tools.

The latter tells which files are rows and which are rejects.
"""

import json
from collections.abc import Mapping
from typing import Any

from vqgan.model_card import UNSPECIFIED, ModelCard, card_section, escape, licence_lines, list_lines
from vqgan.token_layouts import GRID, describe_layout

CARD_FILE = "README.md"
TASK = "unconditional-image-generation"
TAGS = ("vqgan", "vqgan-pipelines", "image-tokens", "vector-quantization")
DRAWN_TAGS = (*TAGS, "synthetic")
UNKNOWN_LICENCE = "not recorded"
# The Hub's names of sizes: the least number of rows that is too many for each.
_SIZES = (
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B"),
    (10**12, "100B<n<1T"),
)  # fmt: skip
_RESIZES = {
    "center-crop": "the largest centred square",
    "resize-crop": "the shorter side resized, then the centre cropped",
    "stretch": "the whole image, stretched to a square",
    "pad": "the whole image, centred on white",
}
_RESIZES_TO_RECTANGLE = {
    "center-crop": "the largest centred part of that aspect",
    "resize-crop": "resized to cover it, then the centre cropped",
    "stretch": "the whole image, stretched to it",
}
_FILTERS = {
    "lanczos": "an antialiased Lanczos filter",
    "bicubic": "an antialiased bicubic filter",
    "box": "an antialiased box filter",
    "adm": "the filters of guided-diffusion (adm)",
}
_READING = """\
```python
from datasets import load_dataset

rows = load_dataset("path/to/this/folder", split="train")  # or owner/name on the Hub
```

```python
from vqgan.data.tokens import open_tokens  # NumPy and pyarrow are all that it needs

tokens = open_tokens("path/to/this/folder")  # or hf://datasets/owner/name
```

Or anything else that reads Parquet: one row for each view of an image, its grid in `tokens`, row by row."""
_DECODING = """\
```
vqgan decode --tokens path/to/this/folder --output images/
```

`--codec` names the codec where it lies elsewhere now; another one is refused."""


def render_dataset_card(manifest: Mapping[str, Any]) -> str:
    """Renders the card of a finished token data set; the same manifest gives the same text.

    Args:
      manifest: as ``vqgan tokenize`` or ``vqgan sample`` has made it. The licence of the images is what it
        has as ``license``, if anything.

    Raises:
      KeyError: it lacks a part that every manifest has.
    """
    counts = manifest["counts"]
    thing = f"{counts['images']:,} {'sampled ' if _is_drawn(manifest) else ''}images"
    sections = [
        _front_matter(manifest),
        f"# {thing} as VQGAN tokens\n\n{_summary(manifest)}\n",
        card_section("Contents", _contents(manifest)),
        card_section("Reading", _READING),
        card_section("Decoding", _DECODING),
        card_section("Preprocessing", _preprocessing(manifest["identity"].get("preprocessing") or {})),
        card_section("Sampling", _sampling(manifest)),
        card_section("Licence", _licences(manifest)),
    ]
    return "\n".join(part for part in sections if part)


def size_category(rows: int) -> str:
    """Names the Hub's category of a number of rows, such as ``1K<n<10K``."""
    return next((name for bound, name in _SIZES if rows < bound), "n>1T")


def _front_matter(manifest: Mapping[str, Any]) -> str:
    """Writes the YAML block: our own words, and of a user's only what is left of a licence's name."""
    lines = [
        *licence_lines(_licence(manifest)),
        *list_lines("tags", list(DRAWN_TAGS if _is_drawn(manifest) else TAGS)),
        *list_lines("task_categories", [TASK]),
        *list_lines("size_categories", [size_category(manifest["counts"]["rows"])]),
        "configs:",
        *_config("default", "data/*.parquet"),
        "  default: true",
    ]
    if manifest["rejects"]:
        lines += _config("rejects", "rejects/*.parquet")
    return "\n".join(["---", *lines, "---", ""])


def _config(name: str, pattern: str) -> list[str]:
    """Describes one of the data set's tables, as the Hub's tools load it."""
    return [
        f"- config_name: {name}", "  data_files:", "  - split: train", f'    path: "{pattern}"',
    ]  # fmt: skip


def _is_drawn(manifest: Mapping[str, Any]) -> bool:
    """Returns whether the tokens were drawn from a prior rather than made of images."""
    return (manifest["identity"].get("source") or {}).get("kind") == "prior"


def _summary(manifest: Mapping[str, Any]) -> str:
    made = "Drawn from a prior" if _is_drawn(manifest) else "Images after the encoder of a VQGAN"
    return (
        f"{made}: {_tokens(manifest)} each, of {manifest['codebook']['size']:,} codes. "
        "Written by vqgan-pipelines."
    )


def _tokens(manifest: Mapping[str, Any]) -> str:
    """Describes how many tokens an image has, and how they lie."""
    return describe_layout(manifest.get("layout", GRID), manifest["grid"])


def _contents(manifest: Mapping[str, Any]) -> str:
    counts, codebook, codec = manifest["counts"], manifest["codebook"], manifest["codec"]
    height, width = manifest["grid"]
    layout = manifest.get("layout", GRID)
    name = escape(str(codec.get("name") or "")) or "without a name"
    facts = {
        "Samples" if _is_drawn(manifest) else "Images": f"{counts['images']:,}",
        "Rows": f"{counts['rows']:,} (`data/`)",
        "Rejects": _rejects(manifest),
        **(
            {"Grid": f"{height} × {width}"} if layout == GRID else {"Layout": f"{layout} of {width:,} tokens"}
        ),
        "Codebook": f"{codebook['size']:,} codes, {codebook['used']:,} of them used",
        "Codec": f"{name}, fingerprint `{escape(str(codec['fingerprint']))}`",
        "Plan": f"`{escape(str(manifest['plan_hash']))}`",
    }
    return "\n".join(f"- **{name}**: {value}" for name, value in facts.items())


def _rejects(manifest: Mapping[str, Any]) -> str:
    rejects = manifest["counts"]["rejects"]
    return f"{rejects:,}, with the reason (`rejects/`)" if rejects else "none"


def _preprocessing(preprocessing: Mapping[str, Any]) -> str:
    """Describes the preprocessing in words, and exactly."""
    geometry = preprocessing.get("geometry") or {}
    if not geometry:
        return ""
    size = geometry.get("image_size")
    size = size if isinstance(size, list) else [size, size]
    shown = " × ".join(escape(str(side)) for side in size)
    rectangle = len(set(map(str, size))) > 1
    order = " (height × width)" if rectangle else ""
    words_of = _RESIZES | _RESIZES_TO_RECTANGLE if rectangle else _RESIZES
    resize, filter_name = str(geometry.get("resize")), str(geometry.get("filter"))
    words = (
        f"Each row shows {shown} pixels{order}: {words_of.get(resize) or escape(resize)}, "
        f"with {_FILTERS.get(filter_name) or escape(filter_name)}; {_views(geometry)}."
    )
    # JSON of ASCII: a text in it holds no line break, so none can end the block.
    return f"{words}\n\n```json\n{json.dumps(preprocessing, indent=2, sort_keys=True, default=str)}\n```"


def _views(geometry: Mapping[str, Any]) -> str:
    """Says how many rows an image has, and what they show."""
    views, crops = str(geometry.get("views")), escape(str(geometry.get("random_crops")))
    return {
        "none": "one row for each image",
        "hflip": "two rows for each image, plain and mirrored",
        "ten-crop": "ten rows for each image, corners and centre, plain and mirrored",
        "random-crops": f"{crops} rows for each image, random crops of it",
    }.get(views) or f"views: {escape(views)}"


def _sampling(manifest: Mapping[str, Any]) -> str:
    """Says which prior the tokens were drawn from, and how; empty for tokens of images."""
    sampling = manifest["identity"].get("sampling") or {}
    if not _is_drawn(manifest) or not sampling:
        return ""
    fingerprint = escape(str((sampling.get("prior") or {}).get("fingerprint")))
    settings = json.dumps(sampling.get("settings"), indent=2, sort_keys=True, default=str)
    words = f"Prior: fingerprint `{fingerprint}`. A row's `seed` is the seed that it was drawn with."
    return f"{words}\n\n```json\n{settings}\n```"


def _licence(manifest: Mapping[str, Any]) -> str:
    """Returns that of the images; that of the codec is another matter."""
    licence = manifest.get("license")
    return licence if isinstance(licence, str) and licence.strip() else UNSPECIFIED


def _licences(manifest: Mapping[str, Any]) -> str:
    licence = _licence(manifest)
    lines = (
        []
        if _is_drawn(manifest) and licence == UNSPECIFIED
        else [f"- of the images: {UNKNOWN_LICENCE if licence == UNSPECIFIED else escape(licence)}"]
    )
    codec = ModelCard.from_json(manifest["codec"].get("card") or {}).licence
    lines.append(f"- of the codec: {UNKNOWN_LICENCE if codec == UNSPECIFIED else escape(codec)}")
    return "\n".join(lines)
