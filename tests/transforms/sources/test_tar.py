import io
import itertools
import random
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from transforms.sharded.slices import check_keys, collect
from transforms.sources import Entry, SourceConfig, open_source
from transforms.sources.reading import ChangedError
from transforms.sources.tar import TarSource
from vqgan.errors import UserError

COMPRESSED = {"w:gz": "tar.gz", "w:bz2": "tar.bz2", "w:xz": "tar.xz"}


def _source(path: Path, **options) -> TarSource:
    return TarSource(SourceConfig(str(path), **options))


def _members(photos: dict[str, bytes]) -> list[tuple[str, bytes]]:
    """Each photograph with a class and a caption."""
    members = []
    for number, (name, data) in enumerate(photos.items()):
        stem = name.removesuffix(".jpg")
        members += [(f"./{stem}.cls", b"%d\n" % number), (f"./{stem}.JPG", data)]
        members += [(f"./{stem}.txt", f"das ist {stem} ü".encode())]
    return members


def _small() -> list[tuple[str, bytes]]:
    draw = random.Random(7)
    sizes = (0, 1, 511, 512, 513, 700)
    return [
        (f"{number:03}.{kind}", draw.randbytes(size))
        for number, size in enumerate(sizes)
        for kind in ("jpg",)
    ]


@pytest.fixture
def tar(tmp_path, tar_bytes, photos):
    path = tmp_path / "shard-000.tar"
    path.write_bytes(tar_bytes(_members(photos)))
    return path


def test_reads_every_photo_unchanged(tar, photos, read_all):
    source = _source(tar, columns=("txt",))
    assert not source.shuffles
    assert [(field.name, str(field.type)) for field in source.fields()] == [("txt", "string")]
    results = read_all(source)
    assert list(results) == [f"shard-000.tar/{name.removesuffix('.jpg')}" for name in photos]
    assert [result.data for result in results.values()] == list(photos.values())
    assert [result.label for result in results.values()] == list(range(10))
    assert results["shard-000.tar/life"].columns == {"txt": "das ist life ü"}


@pytest.mark.parametrize("mode", COMPRESSED)
def test_compressed_archives_give_the_same(mode, tmp_path, tar, tar_bytes, photos, read_all):
    packed = tmp_path / "packed" / f"shard-000.{COMPRESSED[mode]}"
    packed.parent.mkdir()
    packed.write_bytes(tar_bytes(_members(photos), mode))
    plain = list(read_all(_source(tar, columns=("txt",))).values())
    assert list(read_all(_source(packed, columns=("txt",))).values()) == plain


def test_a_slice_of_a_compressed_archive_in_any_order(tmp_path, tar_bytes, photos, results_of):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(tar_bytes(_members(photos), "w:gz"))
    source = _source(path)
    entries = list(source.list())
    for some in (entries[3:6], entries[5:2:-1], [entries[4], entries[4]]):
        data = [result.data for result in results_of(source, some)]
        assert data == [photos[entry.key.split("/")[1] + ".jpg"] for entry in some]


def test_a_folder_of_archives(tmp_path, tar_bytes, read_all):
    for number in range(3):
        path = tmp_path / f"sub{number}" / "s.tar"
        path.parent.mkdir()
        path.write_bytes(tar_bytes([("a.jpg", b"%d" % number)]))
        path.with_suffix(".json").write_text("{}")
    results = read_all(open_source(SourceConfig(str(tmp_path))))
    assert {key: result.data for key, result in results.items()} == {
        f"sub{number}/s.tar/a": b"%d" % number for number in range(3)
    }


def test_loaders_share_one_file_among_threads(tar, photos):
    source = _source(tar)
    entries = list(source.list()) * 20
    barrier = threading.Barrier(4)

    def load(loader):
        if not barrier.broken and barrier.n_waiting < 3:
            barrier.abort()
        return loader().data

    with ThreadPoolExecutor(4) as pool:
        data = list(pool.map(load, source.read(entries)))
    assert data == list(photos.values()) * 20


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_every_format(form, tmp_path, read_all):
    long = (
        "/".join(["folder-" + "x" * 40] * 3) + "/" + ("ü" * 30 if form != tarfile.USTAR_FORMAT else "u" * 30)
    )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name in (f"{long}.one.jpg", "short.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    assert list(read_all(_source(tmp_path / "a.tar"))) == [f"a.tar/{long}", "a.tar/short"]


@pytest.mark.parametrize(
    ("names", "image"),
    [
        (["a.seg.png", "a.jpg"], "a.jpg"),
        (["a.png", "a.jpg"], "a.jpg"),
        (["a.2024.jpg", "a.txt"], "a.2024.jpg"),
    ],
)
def test_which_member_is_the_image(names, image, tmp_path, tar_bytes, read_all):
    (tmp_path / "a.tar").write_bytes(tar_bytes([(name, name.encode()) for name in names]))
    assert read_all(_source(tmp_path / "a.tar"))["a.tar/a"].data == image.encode()


def test_another_extension_can_be_the_image(tmp_path, tar_bytes, read_all):
    (tmp_path / "a.tar").write_bytes(
        tar_bytes([("a.jpg", b"photo"), ("a.seg.png", b"mask"), ("b.jpg", b"b")])
    )
    source = _source(tmp_path / "a.tar", image_column="seg.png")
    assert read_all(source)["a.tar/a"].data == b"mask"
    assert [entry.error for entry in source.list()] == [None, "no .seg.png among .jpg"]


def test_groups_without_an_image_are_errors(tmp_path, tar_bytes):
    members = [("a.txt", b""), ("a.json", b""), ("b.1.jpg", b""), ("b.2.jpg", b""), ("README", b"")]
    (tmp_path / "a.tar").write_bytes(tar_bytes([*members, ("._c.jpg", b"hidden")]))
    errors = {entry.key: entry.error for entry in _source(tmp_path / "a.tar").list()}
    several = (
        "several images, none of them the main one: .1.jpg, .2.jpg; "
        "name one with --image-column, or take each for itself with --whole-names"
    )
    assert errors == {
        "a.tar/a": "no image among .txt, .json",
        "a.tar/b.1": several,
        "a.tar/b.2": several,
        "a.tar/README": "no image among (no extension)",
    }


def test_links_and_folders(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (
            ("d", tarfile.DIRTYPE),
            ("d/a.jpg", tarfile.SYMTYPE),
            ("d/b.jpg", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    errors = {entry.key: entry.error for entry in _source(tmp_path / "a.tar").list()}
    assert errors == {"a.tar/d/a.jpg": "a link, not a file", "a.tar/d/b.jpg": "neither a file nor a folder"}


def test_two_members_of_one_name_are_both_there(tmp_path, tar_bytes):
    (tmp_path / "a.tar").write_bytes(tar_bytes([("a.jpg", b"1"), ("a.jpg", b"2"), ("b.jpg", b"3")]))
    assert [entry.key for entry in _source(tmp_path / "a.tar").list()] == ["a.tar/a", "a.tar/a", "a.tar/b"]


def test_concatenated_archives_are_read_to_the_end(tmp_path, tar_bytes, read_all):
    (tmp_path / "a.tar").write_bytes(tar_bytes([("a.jpg", b"1")]) + tar_bytes([("b.jpg", b"2")]))
    assert list(read_all(_source(tmp_path / "a.tar"))) == ["a.tar/a", "a.tar/b"]


def test_companions_that_are_missing_or_wrong(tmp_path, tar_bytes, read_all):
    members = [("a.jpg", b"a"), ("b.jpg", b"b"), ("b.cls", b"cat"), ("c.jpg", b"c"), ("c.txt", b"\xff")]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    results = read_all(_source(tmp_path / "a.tar", columns=("txt",)))
    assert results["a.tar/a"] == (b"a", None, {"txt": None})
    assert isinstance(results["a.tar/b"], ValueError)
    assert isinstance(results["a.tar/c"], ValueError)


def test_unknown_columns_are_refused(tar):
    with pytest.raises(UserError, match=r"no members with extension caption in .*cls, jpg, txt"):
        _source(tar, columns=("caption",)).fields()


@pytest.mark.parametrize(
    ("contents", "offset"),
    [(b"", 0), (b"no tar at all" * 100, 0), (b"short", 0), (b"\0" * 512 + b"x" * 512, 512)],
)
def test_what_is_no_archive_is_one_error(contents, offset, tmp_path, tar_bytes):
    (tmp_path / "a.tar").write_bytes(contents)
    (tmp_path / "b.tar").write_bytes(tar_bytes([("b.jpg", b"b")]))
    entries = list(_source(tmp_path).list())
    assert [entry.key for entry in entries] == [f"a.tar/#damaged-at-{offset}", "b.tar/b"]
    assert entries[0].error
    assert not entries[1].error


def test_an_archive_without_members_yields_nothing(tmp_path, tar_bytes):
    (tmp_path / "a.tar").write_bytes(tar_bytes([]))
    assert list(_source(tmp_path / "a.tar").list()) == []


def test_a_damaged_header_ends_the_archive(tmp_path, tar_bytes, read_all):
    data = bytearray(tar_bytes(_small()))
    entries = _list(tmp_path, bytes(data))
    header = entries[3].offset - 512
    data[header + 3] ^= 1
    damaged = _list(tmp_path, bytes(data))
    assert [entry.key for entry in damaged] == [*(e.key for e in entries[:3]), f"a.tar/#damaged-at-{header}"]
    assert "no tar header" in (damaged[-1].error or "")


def test_a_companion_lost_in_the_damage_is_not_taken_for_missing(tmp_path, tar_bytes):
    members = [("a.jpg", b"a"), ("a.cls", b"1"), ("b.jpg", b"b"), ("b.cls", b"2")]
    data = tar_bytes(members)
    entries = _list(tmp_path, data[: data.index(b"b.cls") + 100])
    assert [bool(entry.error) for entry in entries] == [False, True, True]
    assert "just where .cls should follow" in (entries[1].error or "")


def _list(folder: Path, data: bytes) -> list[Entry]:
    (folder / "a.tar").write_bytes(data)
    return list(_source(folder / "a.tar").list())


def test_truncation_anywhere_is_noticed(tmp_path, tar_bytes, results_of):
    data = tar_bytes(_small())
    whole = _list(tmp_path, data)
    originals = [contents for _, contents in _small()]
    end = len(data.rstrip(b"\0"))
    for length in itertools.chain(range(0, end, 97), range(512, end, 512)):
        entries = _list(tmp_path, data[:length])
        assert entries[-1].error
        good = entries[:-1]
        assert [entry.unseen() for entry in good] == [entry.unseen() for entry in whole[: len(good)]]
        assert [r.data for r in results_of(_source(tmp_path / "a.tar"), good)] == originals[: len(good)]


def test_an_archive_cut_after_listing_fails_in_the_loader(tar, results_of):
    source = _source(tar)
    entries = list(source.list())
    with tar.open("r+b") as file:
        file.truncate(entries[-1].offset + 100)
    assert all(isinstance(result, ChangedError) for result in results_of(source, entries))
    results = results_of(source, [entry.unseen() for entry in entries])
    assert isinstance(results[-1], ValueError)
    assert not any(isinstance(result, Exception) for result in results[:-1])


def test_flipped_bits_never_pass_for_other_members(tmp_path, tar_bytes, results_of):
    """In a header they end the archive; within contents they change these alone."""
    data = tar_bytes(_small())
    originals = dict(_small())
    draw = random.Random(3)
    for _ in range(150):
        place = draw.randrange(len(data.rstrip(b"\0")))
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        entries = _list(tmp_path, bytes(flipped))
        good = [entry for entry in entries if not entry.error]
        results = results_of(_source(tmp_path / "a.tar"), good)
        wrong = [e for e, r in zip(good, results, strict=True) if r.data != originals[f"{e.key[6:]}.jpg"]]
        assert all(entry.offset <= place < entry.offset + entry.size for entry in wrong)
        assert len(good) == len(originals) or entries[-1].error


@pytest.mark.parametrize("mode", COMPRESSED)
def test_damaged_compressed_archives(mode, tmp_path, tar_bytes, results_of):
    data = tar_bytes([(f"{n}.jpg", random.Random(n).randbytes(40_000)) for n in range(5)], mode)
    path = tmp_path / "a.tar.any"
    path.write_bytes(data)
    assert [entry.error for entry in _source(path).list()] == [None] * 5
    draw = random.Random(5)
    for _ in range(12):
        place = draw.randrange(20, len(data) - 20)
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        for damaged in (data[:place], bytes(flipped)):
            path.write_bytes(damaged)
            entries = list(_source(path).list())
            assert entries[-1].error
            good = [entry for entry in entries if not entry.error]
            for result in results_of(_source(path), good):
                assert isinstance(result, ValueError) or len(result.data) == 40_000


def test_sizes_beyond_the_file_are_never_allocated(tmp_path):
    info = tarfile.TarInfo("a.jpg")
    info.size = 1 << 60
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"x" * 512)
    (entry,) = _source(tmp_path / "a.tar").list()
    assert "cut off" in (entry.error or "")
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"x" * 512)
    (entry,) = _source(tmp_path / "a.tar").list()
    assert "attributes of 1,099,511,627,776 bytes" in (entry.error or "")


@pytest.mark.parametrize("record", [b"9999 path=x\n", b"path=x\n", b"11 path=xyz", b"-5 a=b\n", b"13 path\n"])
def test_broken_pax_attributes(record, tmp_path):
    info = tarfile.TarInfo("p")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    header = info.tobuf(tarfile.USTAR_FORMAT)
    (tmp_path / "a.tar").write_bytes(header + record.ljust(512, b"\0") + b"\0" * 1024)
    (entry,) = _source(tmp_path / "a.tar").list()
    assert entry.error


def test_a_file_that_went_away_fails_in_the_loaders(tar, results_of):
    source = _source(tar.parent)
    entries = list(source.list())
    tar.unlink()
    assert all(isinstance(result, FileNotFoundError) for result in results_of(source, entries))


def test_rare_extensions_are_images_where_there_is_no_other(tmp_path, tar_bytes, read_all):
    names = ["a.jfif", "b.jpe", "c.pgm", "d.pnm", "e.TGA", "f.seg.pgm", "g.pgm", "g.jpg", "h.x.jpg", "h.pgm"]
    (tmp_path / "a.tar").write_bytes(tar_bytes([(name, name.encode()) for name in names]))
    data = [result.data.decode() for result in read_all(_source(tmp_path / "a.tar")).values()]
    assert data == ["a.jfif", "b.jpe", "c.pgm", "d.pnm", "e.TGA", "f.seg.pgm", "g.jpg", "h.x.jpg"]


def test_dates_with_dots_are_images_of_their_own(tmp_path, tar_bytes, read_all):
    names = ["t/2024.05.01.jpg", "t/2024.05.01.txt", "t/2024.05.02.jpg", "t/2024.cls", "t/a.1.jpg"]
    members = [(name, b"7" if name.endswith("cls") else name.encode()) for name in names]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    results = read_all(_source(tmp_path / "a.tar", columns=("txt",)))
    assert {key: (result.label, result.columns["txt"]) for key, result in results.items()} == {
        "a.tar/t/2024.05.01": (7, "t/2024.05.01.txt"),
        "a.tar/t/2024.05.02": (7, None),
        "a.tar/t/a": (None, None),
    }


def test_whole_names(tmp_path, tar_bytes, read_all):
    names = ["v1.left.jpg", "v1.left.txt", "v1.right.jpg", "README", ".hidden.jpg"]
    (tmp_path / "a.tar").write_bytes(tar_bytes([(name, name.encode()) for name in names]))
    source = _source(tmp_path / "a.tar", columns=("txt",), whole_names=True)
    assert {key: result.columns["txt"] for key, result in read_all(source).items()} == {
        "a.tar/v1.left": "v1.left.txt",
        "a.tar/v1.right": None,
    }
    assert [entry.key for entry in source.list() if entry.error] == ["a.tar/README"]


def test_companions_are_named_in_what_is_wrong_with_them(tmp_path, tar_bytes, read_all):
    members = [("a.jpg", b""), ("a.cls", b"tabby"), ("b.jpg", b""), ("b.txt", b"caf\xe9")]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    results = read_all(_source(tmp_path / "a.tar", columns=("txt",)))
    assert "companion .cls holds b'tabby'" in str(results["a.tar/a"])
    assert "companion .txt is not UTF-8 (byte 3: 0xe9)" in str(results["a.tar/b"])


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (["a.jpg", "b.jpg", "a.txt", "b.txt"], "neighbours in the archive"),
        (["a.jpg", "b.jpg", "a.jpg"], "members of one name twice"),
    ],
)
def test_advice_on_repeated_keys(names, advice, tmp_path, tar_bytes):
    (tmp_path / "a.tar").write_bytes(tar_bytes([(name, b"") for name in names]))
    with pytest.raises(UserError, match=advice) as caught:
        check_keys(collect(_source(tmp_path / "a.tar").list()), "tar")
    assert "--key-column" not in str(caught.value)


def test_zstandard(tmp_path, tar_bytes, results_of):
    data = pa.compress(tar_bytes(_small()), "zstd", asbytes=True)
    (tmp_path / "a.tar.zst").write_bytes(data)
    source = open_source(SourceConfig(str(tmp_path / "a.tar.zst")))
    entries = list(source.list())
    expected = [contents for _, contents in _small()]
    assert [result.data for result in results_of(source, entries)] == expected
    assert [result.data for result in results_of(source, entries[::-1])] == expected[::-1]
    (tmp_path / "a.tar.zst").write_bytes(data[: len(data) // 2])
    assert list(source.list())[-1].error
