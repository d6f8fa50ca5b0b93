"""A run in its folder: stopping by signals."""

import _thread
import signal

import pytest

from vqgan.training.training_run import Stopping


def test_second_signal_acts_as_usual() -> None:
    # A shell that runs tests in the background has them ignore SIGINT.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    with Stopping() as stopping:
        _thread.interrupt_main(signal.SIGINT)
        assert stopping.asked
        with pytest.raises(KeyboardInterrupt):
            _thread.interrupt_main(signal.SIGINT)
    signal.signal(signal.SIGINT, former)
