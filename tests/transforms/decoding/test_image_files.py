"""Names of files: readable where keys are ordinary, harmless and distinct whatever they are."""

import itertools
import re
import string
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from transforms.decoding.image_files import file_name, member_name

NASTY = [
    *("", ".", "..", "/", "//", "a", "a/", "/a", "a//b", "a/b", "./a", "../../etc/passwd", "/etc/passwd"),
    *("metadata.jsonl", "metadata.jsonl/a", "Metadata.JSONL/a", "__a__/b", "____/b", "__.png__/b", "__a__"),
    *("__" + "a" * 56 + "__a/b", "__a.png_/b", "a/__b__/c"),
    *("A", "a.jpg", "A.jpg", "a.JPG", "a.png", "a.png/b", "a.png/b.png", "a.png.png", "a.json/x", "A.PNG/b"),
    *(
        "CON",
        "con",
        "con.jpg",
        "aux/x",
        "lpt1",
        "com0.txt",
        ".hidden",
        "-rf",
        "a b",
        " a",
        "a ",
        "a.",
        "a./b",
    ),
    *("~root", "a~v2", "a~", "C:\\x", "a\\b", "a:b", 'a"b', "a*b?", "a\nb", "a\0b", "x" * 300, "y/" * 200),
    *("é", "e\u0301", "E\u0301", "ß", "ss", "猫/001.jpg", "K", "\u212a", "a.j\u017fon/x", "😀", "a\u202eb"),
    *(
        "x" * 199,
        "x" * 200,
        "x" * 201,
        "é" * 120,
        "a+b",
        "a.b",
        "a=b",
        "a,b",
        "s3://bucket/a",
        "%41",
        "_",
        "__",
    ),
]
PARTS = st.sampled_from([*NASTY, "images", "001.jpg", "dogs", "v2", "_"])
KEYS = st.one_of(
    st.sampled_from(NASTY),
    st.lists(PARTS, min_size=1, max_size=4).map("/".join),
    st.text(max_size=40),
    st.text(alphabet=string.ascii_lowercase + "A.~/_ +-", max_size=6),
)
VIEWS = st.integers(0, 255)


def folded(name: str) -> str:
    """What a file system that ignores case and normalises Unicode may make of a name."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFC", name).casefold())


@pytest.mark.parametrize(
    ("key", "view", "expected"),
    [
        ("dogs/001.jpg", 0, "dogs/001.jpg.png"),
        ("dogs/001.jpg", 2, "dogs/001.jpg~v2.png"),
        ("seed-0000000007", 0, "seed-0000000007.png"),
        ("a b/c_d-e.f", 0, "a b/c_d-e.f.png"),
        ("part-3.parquet#17", 0, "part-3.parquet#17.png"),
    ],
)
def test_ordinary_keys(key: str, view: int, expected: str) -> None:
    assert file_name(key, view, "png") == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("../../etc/passwd", "_/_/etc/passwd~"),
        ("IMG_0001.JPG", "IMG_0001.JPG~"),
        ("/abs/x", "abs/x~"),
        ("a//b", "a/b~"),
        ("CON", "_CON~"),
        (".hidden", "_hidden~"),
        ("猫/001.jpg", "猫/001.jpg~"),
        ("a.png/b", "a_png/b~"),
        ("metadata.jsonl/b", "metadata_jsonl/b~"),
        ("__pycache__/b", "__pycache_/b~"),
        ("x" * 300, "x" * 80 + "~"),
        ("", "_~"),
    ],
)
def test_other_keys(key: str, expected: str) -> None:
    """Still to be recognised, and told apart by 16 characters of their hash."""
    name = file_name(key, 0, "png")
    assert name.startswith(expected)
    assert re.fullmatch(r"[a-z2-7]{16}\.png", name[len(expected) :])


@given(KEYS, VIEWS)
def test_safe(key: str, view: int) -> None:
    for name in (file_name(key, view, "webp"), f"{member_name(key, view)}.webp"):
        parts = name.split("/")
        assert not PurePosixPath(name).is_absolute()
        assert not PureWindowsPath(name).drive
        for part in parts:
            assert part
            assert part[0] not in ".- "
            assert part[-1] not in ". "
            assert len(part.encode()) <= 255 - 38, "no room for a temporary file's name"
            assert not set(part) & set('\\:*?"<>|\0\n')
            assert not re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)([. ].*)?", part)
        assert name.isprintable()
        assert len(name.encode()) <= 255


@given(st.lists(st.tuples(KEYS, VIEWS), unique=True, min_size=2, max_size=12))
def test_distinct_and_not_in_each_others_way(rows: list[tuple[str, int]]) -> None:
    names = [folded(file_name(key, view, "png")) for key, view in rows]
    assert len(set(names)) == len(rows)
    members = [folded(member_name(key, view)) for key, view in rows]
    assert len(set(members)) == len(rows)
    folders = {name[:at] for name in names for at, char in enumerate(name) if char == "/"}
    assert not folders & set(names)
    tar_names = {f"{member}.{ending}" for member in members for ending in ("png", "cls", "json")}
    tar_folders = {name[:at] for name in tar_names for at, char in enumerate(name) if char == "/"}
    assert not tar_folders & tar_names
    assert "metadata.jsonl" not in {*names, *folders}, "in the way of the file that describes them"


def test_all_pairs_of_the_nasty_ones() -> None:
    names = [folded(file_name(key, view, "png")) for key in NASTY for view in (0, 2)]
    assert all(a != b for a, b in itertools.combinations(names, 2))


@given(KEYS, VIEWS)
def test_webdataset_groups_by_the_first_dot(key: str, view: int) -> None:
    """And leaves out folders of some names."""
    member = member_name(key, view)
    assert "." not in member.rpartition("/")[2]
    assert base_plus_ext(f"{member}.png") == (member, "png")
    assert re.match(r"__[^/]*__($|/)", f"{member}.png") is None, "its pattern for what is no sample"


def test_on_a_disk(tmp_path: Path) -> None:
    """All of them at once in one folder, and none outside of it."""
    folder = tmp_path / "in" / "here"
    for key in NASTY:
        path = folder / file_name(key, 0, "png")
        path.parent.mkdir(parents=True, exist_ok=True)
        assert not path.exists()
        path.write_text(key)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == len(NASTY)
    assert all(path.resolve().is_relative_to(folder) for path in folder.rglob("*"))
    for key in NASTY:
        assert (folder / file_name(key, 0, "png")).read_text() == key.replace("\r", "\n")
