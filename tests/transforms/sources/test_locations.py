import os

from hypothesis import given
from hypothesis import strategies as st

from transforms.sources.locations import from_file, to_file, to_key

NAMES = st.one_of(
    st.binary(max_size=20),
    st.text(max_size=20).map(lambda text: text.encode("utf-8", "ignore")),
    st.text("%:\\xE9é", max_size=8).map(str.encode),
).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"") or b"x"))


@given(NAMES)
def test_files_can_be_stored_and_turned_back(name):
    file = to_file(name)
    assert file.encode("utf-8")
    assert from_file(file) == os.fsencode(name)


@given(NAMES, NAMES)
def test_keys_are_unicode_and_differ_where_names_do(first, second):
    assert to_key(first).encode("utf-8")
    assert (to_key(first) == to_key(second)) == (first == second)


def test_ordinary_names_stay_as_they_are():
    assert to_key("a/café 1.jpg") == to_file("a/café 1.jpg") == "a/café 1.jpg"


def test_the_marker_is_unambiguous():
    assert to_file(os.fsdecode(b"caf\xe9.jpg")) == "%:caf%E9.jpg"
    assert from_file(to_file("%:caf%E9.jpg")) == b"%:caf%E9.jpg"
    assert from_file("100%.jpg") == b"100%.jpg"
