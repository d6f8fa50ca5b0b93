"""Names of files for rows of a data set: safe wherever they are unpacked, and no two alike.

A key that is a plain relative path of lower-case ASCII (``dogs/001.jpg``) stands for itself. Any other key
is made harmless and gets a hash of the true key after a ``~``, which no plain key contains:
``../../etc/passwd`` becomes ``_/_/etc/passwd~`` and 16 more characters. The hash keeps apart what a file
system may take for the same name (``A.jpg`` and ``a.jpg``, or two spellings of one accented letter), so
names differ from each other in any of them. The index of a slice tells which key a file belongs to.
"""

import base64
import hashlib
import re
import unicodedata

MOST_BYTES = 200
"""Longest name of a plain key; a temporary file's name adds 38 bytes, and 255 are allowed."""
HASH_BYTES = 10
_PLAIN = re.compile(r"[a-z0-9_](?:[a-z0-9_.,=@# -]*[a-z0-9_,=@#-])?")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:[. ].*)?", re.IGNORECASE)  # on Windows
# A folder of such a name could be in the way of a file of another key.
_LIKE_A_FILE = re.compile(r"(.*)\.(png|webp|jpg|jsonl?|cls)")
_DOT_IN_MEMBER = "+"  # in no plain key either
_SPECIAL = re.compile(r"__.*__")  # WebDataset leaves out what lies in a folder of such a name


def file_name(key: str, view: int, extension: str) -> str:
    """Relative path of the picture of a row, with ``/`` between folders.

    Args:
      key: of the row; any text.
      view: of the row; other than 0 it is told by ``~v2``.
      extension: of the picture, such as ``png``.

    Returns:
      A path that never leaves its folder and in no part starts with a dot or a dash. Paths differ for
      rows that differ, also to a file system that ignores case or normalises Unicode, and none is a
      folder of another.
    """
    return f"{_stem(key, view)}.{extension}"


def member_name(key: str, view: int) -> str:
    """As :func:`file_name`, without extension, for a member of a WebDataset tar.

    Its readers group members by what stands before the first dot of a file's name, so dots are written
    as ``+``: the picture of ``dogs/001.jpg`` is ``dogs/001+jpg.png``.
    """
    folder, slash, name = _stem(key, view).rpartition("/")
    return f"{folder}{slash}{name.replace('.', _DOT_IN_MEMBER)}"


def _stem(key: str, view: int) -> str:
    stem = key if _is_plain(key) else f"{_readable(key)}~{_hash(key)}"
    return stem if view == 0 else f"{stem}~v{view}"


def _is_plain(key: str) -> bool:
    parts = key.split("/")
    return (
        len(key) <= MOST_BYTES
        and all(_PLAIN.fullmatch(part) and not _RESERVED.fullmatch(part) for part in parts)
        and not any(_LIKE_A_FILE.fullmatch(part) or _SPECIAL.fullmatch(part) for part in parts[:-1])
    )


def _hash(key: str) -> str:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()
    return base64.b32encode(digest).decode().lower()


def _readable(key: str) -> str:
    """What a reader may recognise a key by; different keys may give the same."""
    parts = [_harmless(part) for part in unicodedata.normalize("NFC", key).split("/") if part]
    *folders, name = parts or ["_"]
    folder = "/".join(_ordinary_folder(_cut(part, 60)) for part in folders)
    if len(folder.encode()) > 100:
        folder = ""  # the hash alone tells them apart
    return f"{folder}/{_cut(name, 80)}" if folder else _cut(name, 80)


def _harmless(part: str) -> str:
    kept = "".join(char if char.isalnum() or char in "_-.,=@# " else "_" for char in part)
    kept = re.sub(r"^[. -]+|[. ]+$", "_", kept)
    return f"_{kept}" if _RESERVED.fullmatch(kept) else kept


def _ordinary_folder(name: str) -> str:
    """Returns a name that is neither like a file's nor left out by readers.

    It is compared case-folded, since a file system may do so as well: ``a.PNG`` may be ``a.png``.
    """
    if _LIKE_A_FILE.fullmatch(name.casefold()):
        name = name.replace(".", "_")
    return name.rstrip("_") + "_" if _SPECIAL.fullmatch(name) else name


def _cut(text: str, most: int) -> str:
    """The first bytes of ``text`` that make whole characters, without a dot or space at the end."""
    cut = text.encode()[:most].decode(errors="ignore")
    return re.sub(r"[. ]+$", "_", cut)
