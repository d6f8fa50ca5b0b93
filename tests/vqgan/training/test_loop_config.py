"""Which of two models is the better one."""

import math

from vqgan.training.loop_config import HIGHER_IS_BETTER, is_better


def test_better() -> None:
    assert is_better("psnr", 21.0, 20.0)
    assert not is_better("psnr", 20.0, 21.0)
    assert is_better("lpips", 0.1, 0.2)
    assert not is_better("lpips", 0.2, 0.1)
    assert is_better("loss", 1.0, 2.0)
    for name in HIGHER_IS_BETTER:
        assert is_better(name, 1.0, None)
        assert not is_better(name, 1.0, 1.0)
        assert not is_better(name, math.nan, None)
        assert not is_better(name, math.inf, 1.0)
