"""Imported by every Python that has this folder on its path: holds a worker at a file, or fails a write.

With ``VQGAN_TEST_GATE=PATH`` and a file at PATH that holds a part of a name, whoever has written a file of
such a name leaves its process id in PATH.waiting and waits, before the file is renamed, until PATH is gone.

With ``VQGAN_TEST_FAULTS=PATH`` one shard in so many fails with EIO when it was written; PATH grows by a byte.
"""

import errno
import os
import random
import time

GATE = os.environ.get("VQGAN_TEST_GATE")
FAULTS = os.environ.get("VQGAN_TEST_FAULTS")
ONE_IN = 20


def after_sync(then):
    """Has every file that was written pass through ``then``."""
    from vqgan import publishing

    sync = publishing._sync

    def followed(filesystem, path):
        sync(filesystem, path)
        then(os.fsdecode(path))

    publishing._sync = followed


def hold(path):
    try:
        with open(GATE) as file:
            name = file.read()
    except FileNotFoundError:  # it is open, perhaps since a moment ago
        return
    if name in path:
        with open(f"{GATE}.waiting", "w") as file:
            file.write(str(os.getpid()))
        while os.path.exists(GATE):
            time.sleep(0.02)


def fail(path):
    if "/data/" in path and not os.path.isdir(path) and random.randrange(ONE_IN) == 0:
        with open(FAULTS, "a") as file:
            file.write("x")
        raise OSError(errno.EIO, os.strerror(errno.EIO))


if GATE:
    after_sync(hold)
if FAULTS:
    after_sync(fail)
