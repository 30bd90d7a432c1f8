"""The first lists of a model, before it answers anybody. Knows no requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product

import numpy as np

from recsys.errors import ArtifactError
from recsys.generator.lm.reason import ReasonConfig
from recsys.profile.profile import Profile, Statement
from serving.runtime import RecommenderRuntime
from serving.stages import Asked, StageName

_QUICK_S = 0.5
"""A warm-up tries a batch only of what answers one request in this time."""
_TRIAL_BATCH = 8
_SAID_OF: Mapping[StageName, str] = {"profile": "reader of profiles"}


def warm_up(
    runtime: RecommenderRuntime,
    observe: Callable[[StageName, int, float], None] | None = None,
    *,
    largest_batch: int = 1,
) -> None:
    """Generate lists, so that the first user does not wait for lazy initialisation, and a broken model is found.

    Args:
        runtime: the model.
        observe: is told how many requests a call of a stage had, and how many seconds it took.
        largest_batch: requests of a call; where there are CUDA graphs, those of calls of all sizes are recorded.

    Raises:
        ArtifactError: the catalogue is empty, or a way to an answer fails.
    """
    if not runtime.catalog.num_items:
        raise ArtifactError(f"bundle: the catalogue of {runtime.info.name} has no items; build the bundle again")
    runtime.catalog.prepare()
    trial = Asked(
        k=1,
        history=runtime.popularity.order[:1],
        denied=np.zeros(0, dtype=np.int64),
        items=runtime.popularity.order[:1],
        words="a",
        profile=Profile(statements=(Statement(text="Likes this.", source="edited"),)),
        reason=ReasonConfig(chains=1, max_tokens=1),
    )
    for stage in runtime.all_stages:
        try:
            stage.lists([trial])
            started = time.perf_counter()
            stage.lists([trial])
            seconds = time.perf_counter() - started
            if observe is not None:
                observe(stage.name, 1, seconds)
                if stage.shares_calls and seconds < _QUICK_S:
                    started = time.perf_counter()
                    stage.lists([trial] * _TRIAL_BATCH)
                    observe(stage.name, _TRIAL_BATCH, time.perf_counter() - started)
            if stage.shares_calls and runtime.graph_counts is not None:
                # Each size has a graph of its own, which the first request would wait for.
                for count, length in product(_powers_of_two(largest_batch), _powers_of_two(runtime.longest_history)):
                    known = runtime.popularity.order[:length]
                    stage.lists([replace(trial, history=known, denied=known)] * count)
        except Exception as error:  # it may fail in any way; unlike a request, a start has no substitute
            raise ArtifactError(
                f"bundle: the {_SAID_OF.get(stage.name, stage.name)} of {runtime.info.name} cannot answer: {error!r}; "
                "build the bundle again"
            ) from error


def _powers_of_two(largest: int) -> list[int]:
    """From 1 to the first that is no less than `largest`."""
    return [1 << power for power in range((largest - 1).bit_length() + 1)]
