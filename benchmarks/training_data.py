"""Gathers photographs and paintings with clear licences, to train on.

They are what Debian 12 packages carry; nothing is installed. On a Debian machine:

python benchmarks/training_data.py photos/

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
import subprocess
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import parser, say
from PIL import Image

ROOT = Path(__file__).parent.parent
HELD_BACK = (ROOT / "tests" / "testdata", ROOT / "pipelines" / "photos")
SHORT_SIDE = 384  # pixels of what is written: crops of 256-pixel scenes and of details alike
LEAST_SIDE = 160
SAME = 40  # bits of 512 in which two pictures' hashes may differ; unrelated ones differ in about 256
PICTURES = re.compile(r"\.(jpe?g|png|webp)$", re.IGNORECASE)
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
    flags.add_argument("--short-side", type=int, default=SHORT_SIDE)
    args = flags.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.packages or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        _gather(args, folder)


def _gather(args: argparse.Namespace, folder: Path) -> None:
    seen = Likenesses()
    for path in sorted(path for held in HELD_BACK for path in held.rglob("*") if PICTURES.search(path.name)):
        picture = _open(path.read_bytes(), least=32)
        seen.is_new(picture) if picture else None
    say("| package | version | looked at | kept | licences |\n|---|---|---|---|---|")
    total = 0
    for package in PACKAGES + TEXTURES * args.textures:
        archive, counts = _download(package.name, folder), collections.Counter[str]()
        new = filter(seen.is_new, _pictures(archive, package, counts))
        for picture in itertools.islice(new, package.most):
            counts["kept"] += 1
            _write(picture, package.name, args)
        total += counts["kept"]
        version = archive.name.split("_")[1].replace("%3a", ":")
        found, kept = counts["looked at"], counts["kept"]
        say(f"| `{package.name}` | {version} | {found:,} | {kept:,} | {package.licences} |")
    say(f"\n{total:,} pictures")


def _download(name: str, folder: Path) -> Path:
    """The package's file, fetched if it is not there."""
    if not list(folder.glob(f"{name}_*.deb")):
        subprocess.run(["apt-get", "download", name], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return min(folder.glob(f"{name}_*.deb"))


def _pictures(archive: Path, package: Package, counts: collections.Counter[str]) -> Iterator[Image.Image]:
    """Opens the usable pictures of a package, the largest file of several first."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", str(archive), folder], check=True)
        files = [path for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink()]
        for path in sorted(files, key=lambda path: (-path.stat().st_size, path)):
            if re.search(package.within, str(path)) and not NO_SCENES.search(str(path).lower()):
                for data in _members(path):
                    counts["looked at"] += 1
                    if (picture := _open(data)) is not None:
                        yield picture


def _members(path: Path) -> Iterator[bytes]:
    """The bytes of a picture's file, or of all pictures within an archive."""
    if PICTURES.search(path.name):
        yield path.read_bytes()
    elif path.suffix == ".pk3":  # a zip file
        with zipfile.ZipFile(path) as members:
            for name in sorted(members.namelist()):
                if PICTURES.search(name) and not NO_SCENES.search(name.lower()):
                    yield members.read(name)
    elif path.suffix == ".rcc":
        yield from _resources(path.read_bytes())


def _resources(data: bytes) -> Iterator[bytes]:
    """Pictures in a Qt resource file, which stores those that do not compress as they are.

    Each file's bytes follow their length as four bytes, big endian.
    """
    for start in (match.start() for match in re.finditer(rb"\xff\xd8\xff|RIFF....WEBP", data, re.DOTALL)):
        length = int.from_bytes(data[max(start - 4, 0) : start])
        if start >= 4 and 1000 < length <= len(data) - start:
            yield data[start : start + length]


def _open(data: bytes, least: int = LEAST_SIDE) -> Image.Image | None:
    """A picture in colour that is no line art; None for others."""
    try:
        with warnings.catch_warnings(action="ignore"):
            picture = Image.open(io.BytesIO(data))
            if min(picture.size) < least or "A" in picture.getbands() or "transparency" in picture.info:
                return None
            picture.draft("RGB", (2 * SHORT_SIDE, 2 * SHORT_SIDE))
            picture = picture.convert("RGB")
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


def _write(picture: Image.Image, package: str, args: argparse.Namespace) -> None:
    """Writes a picture at the wanted shorter side, named by package and content."""
    scale = min(args.short_side / min(picture.size), 1.0)
    size = (round(picture.width * scale), round(picture.height * scale))
    small = picture.resize(size, Image.Resampling.LANCZOS)
    name = hashlib.sha256(small.tobytes()).hexdigest()[:10]
    small.save(args.output / f"{package}-{name}.jpg", quality=92)


if __name__ == "__main__":
    main()
