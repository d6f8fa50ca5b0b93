"""What the site has beside ``docs/``: documents of the checkout as pages, and a page of all help."""

import argparse
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "vqgan/pretrained/small/README.md": "small.md",
    "vqgan/pretrained/tiny/README.md": "tiny.md",
}
"""Documents outside of docs/, by the name of their page."""
_LINK = re.compile(r"(\]\()([^)#\s:]+)(#[\w-]+)?\)")

_ROLE = re.compile(r":(?:meth|func|class|data|mod|attr|exc):`~?([^`]+)`")
_DOCTEST = re.compile(r"^(>>>.*(?:\n.+)*)", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Adds pages and the files of examples/ that documents link to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=_relink((ROOT / source).read_text(), source)))
    files.append(File.generated(config, "commands.md", content=commands_page()))
    for path in sorted((ROOT / "examples").iterdir()):
        if path.suffix in (".py", ".ipynb"):
            name = f"examples/{path.name}"
            level = InclusionLevel.INCLUDED
            files.append(File.generated(config, name, abs_src_path=str(path), inclusion=level))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links out of docs/ into links to the pages made of what they lead to."""
    if page.file.generated_by:
        return markdown
    return _relink(markdown, f"docs/{page.file.src_uri}")


def _relink(markdown: str, source: str) -> str:
    """Rewrites links relative to ``source``, a path in the checkout, to be relative to its page."""
    page = PAGES.get(source, source.removeprefix("docs/"))

    def renamed(match: re.Match[str]) -> str:
        path = (ROOT / source).parent.joinpath(match[2]).resolve()
        if not path.is_relative_to(ROOT):
            return match[0]
        name = path.relative_to(ROOT).as_posix()
        target = PAGES.get(name, name.removeprefix("docs/"))
        up = "../" * page.count("/")
        return f"{match[1]}{up}{target}{match[3] or ''})"

    return _LINK.sub(renamed, markdown)


class Docstrings(griffe.Extension):
    """Turns what docstrings have beside Markdown into it: roles around names, and doctests."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites a docstring; griffe calls it for every object."""
        if obj.docstring:
            text = _ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = _DOCTEST.sub(r"```pycon\n\1\n```", text)


def commands_page() -> str:
    """Returns a page with each command's help, as ``vqgan COMMAND --help`` prints it."""
    from pipelines.cli import build_parser

    parser = build_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    parts = ["# Commands\n", "What `vqgan COMMAND --help` prints.\n"]
    for name, command in commands.choices.items():
        parts.append(f"## vqgan {name}\n\n```text\n{command.format_help()}```\n")
    return "\n".join(parts)
