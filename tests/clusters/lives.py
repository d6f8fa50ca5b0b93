"""Many lives of one command, each a process that SIGKILL ends at a random moment.

    python -m tests.clusters.lives LIVES SEED tokenize …    # prints how each life has ended

What a run imports is imported once, and a life is a fork, so that it costs its work alone. Every other one is
killed from outside after a random time, the others by themselves some milliseconds after a random one of
their shards was written, which may then be in its place or not.
"""

import os
import random
import signal
import sys
import threading
import time
import warnings

MOST_SHARDS = 4
MOST_SECONDS = 0.3
AFTER_A_SHARD = 0.02


def die_after(shards: int, seconds: float) -> None:
    """Has this process kill itself some time after it has written so many shards."""
    from vqgan import publishing

    sync, left = publishing._sync, [shards]

    def dying(filesystem: object, path: bytes) -> None:
        sync(filesystem, path)  # type: ignore[arg-type]
        is_shard = b"/data/" in path and not os.path.isdir(path)
        left[0] -= is_shard
        if is_shard and left[0] == 0:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

    publishing._sync = dying


def live(argv: list[str], rng: random.Random, by_the_clock: bool) -> int:
    """Lives once; returns the signal that has ended it, negative, or the command's own code."""
    from pipelines import cli

    shards, moment = rng.randint(1, MOST_SHARDS), rng.random()
    process = os.fork()
    if not process:
        if not by_the_clock:
            die_after(shards, moment * AFTER_A_SHARD)
        os._exit(cli.main(argv))
    if by_the_clock:
        time.sleep(moment * MOST_SECONDS)
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main() -> None:
    """Lives as often as it is told; a life that ends by itself is the last one."""
    warnings.simplefilter("ignore")  # of forks beside threads: there are none yet
    import pipelines.runners.beam_runs
    import transforms.sharded.beam_graph
    import vqgan.codec

    assert pipelines.runners.beam_runs
    assert transforms.sharded.beam_graph
    assert vqgan.codec
    rng, ended = random.Random(int(sys.argv[2])), 1
    for life in range(int(sys.argv[1])):
        ended = live(sys.argv[3:], rng, bool(life % 2))
        print(ended, flush=True)
        if ended >= 0:
            return


if __name__ == "__main__":
    main()
