"""Fixtures that tests of several rooms use."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

# The same examples each time: a test that passed here passes there. What an example costs depends on the machine.
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")

# Tests are many small computations: threads that wait for each other only slow them down. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Where there is no GPU, what needs one is skipped, and says so."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of benchmark data sets: $RECSYS_SHARED_DATA, or shared/data beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RECSYS_SHARED_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no benchmark data in {folder}; set RECSYS_SHARED_DATA")
    return folder


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A program that a test runs sets up logging for the whole process, and its stderr is the test's own."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    logging.getLogger("uvicorn.access").disabled = False
    structlog.reset_defaults()
