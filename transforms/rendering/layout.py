"""Where the files of decoded pictures lie in their folder.

The layout is the one that the Hugging Face Hub's loaders expect: what is to be loaded lies in ``data/`` or
``images/``, and everything else beside it.
"""

from vqgan.shards import DATA_FOLDER

INDEX_FOLDER = "index"
IMAGES_FOLDER = "images"
METADATA_FILE = f"{IMAGES_FOLDER}/metadata.jsonl"
"""Name that ``imagefolder`` looks for beside the pictures."""


def index_name(number: int, slices: int, container: str) -> str:
    """Returns the path of a slice's index: ``index/images-00017-of-00128.parquet``.

    In the form ``parquet`` the index holds the pictures themselves and lies in ``data/``.

    Args:
      number: of the slice, from 0.
      slices: number of slices.
      container: ``files``, ``tar`` or ``parquet``.
    """
    return f"{index_folder(container)}/images-{number:05d}-of-{slices:05d}.parquet"


def index_folder(container: str) -> str:
    """Returns the folder of the indices in this form."""
    return DATA_FOLDER if container == "parquet" else INDEX_FOLDER


def archive_name(number: int, slices: int) -> str:
    """Returns the path of a slice's tar: ``data/images-00017-of-00128.tar``."""
    return f"{DATA_FOLDER}/images-{number:05d}-of-{slices:05d}.tar"


def folders(container: str) -> tuple[str, ...]:
    """Returns the folders that a run of this form writes files to, but for those below ``images/``."""
    if container == "files":
        return INDEX_FOLDER, IMAGES_FOLDER
    return (DATA_FOLDER,) if container == "parquet" else (DATA_FOLDER, INDEX_FOLDER)
