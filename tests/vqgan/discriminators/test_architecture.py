"""Configurations of discriminators, and what importing them loads."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from vqgan.config_json import from_dict, to_dict
from vqgan.discriminators import DiscriminatorConfig

Refused = Callable[[str], AbstractContextManager[None]]


def test_defaults_are_those_of_the_papers() -> None:
    config = DiscriminatorConfig()
    assert (config.kind, config.channels, config.layers, config.spectral_norm) == ("patch", 64, 3, False)


def test_goes_through_json() -> None:
    config = DiscriminatorConfig(kind="stylegan", channels=8, resolution=64, spectral_norm=True)
    assert from_dict(DiscriminatorConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "pixel"}, "discriminator.kind is 'pixel': give one of patch, stylegan"),
        ({"channels": 0}, "discriminator.channels is 0: it must be at least 1"),
        ({"layers": 0}, "discriminator.layers is 0: it must be at least 1"),
        ({"kind": "stylegan", "resolution": 96}, "discriminator.resolution is 96: .* power of two"),
        ({"kind": "stylegan", "resolution": 4}, "discriminator.resolution is 4: .* at least 8"),
        ({"kind": "stylegan", "resolution": 0}, "discriminator.resolution is 0"),
        ({"kind": "stylegan", "resolution": -8}, "discriminator.resolution is -8"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str, refused: Refused) -> None:
    with refused(message):
        DiscriminatorConfig(**settings)


def test_a_patch_discriminator_has_no_resolution() -> None:
    assert DiscriminatorConfig(resolution=96).kind == "patch"


def test_importing_the_package_loads_no_jax() -> None:
    code = (
        "import sys, vqgan.discriminators as d; d.DiscriminatorConfig(); "
        "assert not {'jax', 'flax', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
