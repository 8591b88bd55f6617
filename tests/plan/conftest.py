"""What the tests of plans share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was simulated: the test processes share it, because a large network takes a minute."""
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "plans"
    shared.mkdir(exist_ok=True)
    return shared
