"""Imported by every Python that has this folder on its path: holds a worker at a file that a test names.

With ``VQGAN_TEST_GATE=PATH`` and a file at PATH that holds a part of a name, whoever has written a file of
such a name leaves its process id in PATH.waiting and waits, before the file is renamed, until PATH is gone.
"""

import os
import time

GATE = os.environ.get("VQGAN_TEST_GATE")


def hold(gate):
    from vqgan import filesystems

    sync = filesystems._sync

    def waiting(filesystem, path):
        sync(filesystem, path)
        if os.path.exists(gate):
            with open(gate) as file:
                name = file.read()
            if name in os.fsdecode(path):
                with open(f"{gate}.waiting", "w") as file:
                    file.write(str(os.getpid()))
                while os.path.exists(gate):
                    time.sleep(0.02)

    filesystems._sync = waiting


if GATE:
    hold(GATE)
