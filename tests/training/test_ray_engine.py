"""The engine `ray`, on a cluster of this machine: what it learns is what one process does, through a kill too."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from test_engines import check, fit, read

from recsys.errors import DataError
from training.engines import RayEngine, start

pytestmark = pytest.mark.ray


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the processes call functions of these tests
        ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, _node_ip_address="127.0.0.1")
        yield
        ray.shutdown()


def test_two_processes_on_ray_learn_what_one_does_though_one_of_them_is_killed(tmp_path: Path) -> None:
    start(RayEngine(name="ray", processes=2, max_restarts=1), partial(fit, tmp_path, None, 9), tmp_path / "engine")
    assert (tmp_path / "killed").exists()
    check(tmp_path)


def test_an_error_of_the_input_comes_back_as_it_is_and_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="enough"):
        start(RayEngine(name="ray", processes=2), partial(fit, tmp_path, 3, None), tmp_path / "engine")
    assert list(read(tmp_path)) == ["0", "1", "2", "3"]
