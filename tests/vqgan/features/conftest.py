"""Helpers shared by the tests of feature networks."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def state_dicts() -> ModuleType:
    """The module that makes up weights and writes torch files."""
    spec = importlib.util.spec_from_file_location(
        "vqgan_tests_state_dicts", Path(__file__).parent / "state_dicts.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
