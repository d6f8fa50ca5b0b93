import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.sources.globs import EVERYTHING, Globs, expand_braces
from vqgan.errors import UserError

WORDS = st.text(string.ascii_letters + string.digits + "-_. ", max_size=5)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("s-{000..002}.tar", ["s-000.tar", "s-001.tar", "s-002.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{0..6..3}", ["0", "3", "6"]),
        ("{-1..1}", ["-1", "0", "1"]),
        ("{5..5}", ["5"]),
        ("{a..c}", ["a", "b", "c"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
        ("{a,b{1,2}}", ["a", "b1", "b2"]),
        ("x{,y}", ["x", "xy"]),
        ("{single}", ["{single}"]),
        ("{}", ["{}"]),
        ("{a", ["{a"]),
    ],
)
def test_expand_braces(pattern, names):
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["{0..9999999999}", "{0..2000}{0..2000}", "{0..900}{0..900}{0..900}"])
def test_absurd_ranges_are_refused(pattern):
    with pytest.raises(UserError, match="narrow the range"):
        expand_braces(pattern)


@given(WORDS, st.integers(0, 10**6), st.integers(0, 50), st.integers(1, 9), WORDS)
def test_ranges_count(head, first, count, width, tail):
    names = expand_braces(f"{head}{{{first:0{width}d}..{first + count:0{width}d}}}{tail}")
    assert names == [f"{head}{number:0{width}d}{tail}" for number in range(first, first + count + 1)]


@given(st.lists(st.lists(WORDS, min_size=2, max_size=3, unique=True), max_size=3))
def test_enumerations_multiply(options):
    names = expand_braces("|".join("{" + ",".join(words) + "}" for words in options))
    expected = [""]
    for place, words in enumerate(options):
        expected = [head + "|" * bool(place) + word for head in expected for word in words]
    assert names == expected


@given(st.text("ab{},.01", max_size=12))
def test_no_text_breaks_it(text):
    assert expand_braces(text)


def _matches(pattern: str, path: str) -> bool:
    globs = Globs((tuple(pattern.split("/")),))
    state = globs.start()
    for name in path.split("/"):
        state = globs.step(state, name)
    return state is EVERYTHING


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.jpg", "a.jpg", True),
        ("*.jpg", "a/b.jpg", False),
        ("**/*.jpg", "a.jpg", True),
        ("**/*.jpg", "a/b/c.jpg", True),
        ("a/**/b/*.jpg", "a/x/y/b/c.jpg", True),
        ("a/**/b/*.jpg", "a/x/y/c.jpg", False),
        ("a/**", "a/b/c", True),
        ("a*", "ab/c/d", True),
        ("**/**/x", "x", True),
    ],
)
def test_globs_match_level_by_level(pattern, path, matches):
    assert _matches(pattern, path) is matches
