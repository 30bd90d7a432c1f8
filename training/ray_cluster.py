"""The connection to Ray, for whoever asks for it: the cluster that RAY_ADDRESS names, else one of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from recsys.extras import require_extra


@contextmanager
def ray_cluster(asked_by: str) -> Iterator[None]:
    """Be connected; a connection that was not there before ends with the block, and so does a cluster made for it.

    Args:
        asked_by: the setting or option, for the error.

    Raises:
        ConfigError: Ray is not installed.
    """
    require_extra("ray", needed_by=asked_by)
    # Before ray is imported: nothing is sent anywhere unless asked for.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(**({} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}))
    try:
        yield
    finally:
        ray.shutdown()
