"""The first lists of a model, before it answers anybody. Knows no requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from recsys.errors import ArtifactError
from recsys.generator.lm.reason import ReasonConfig
from recsys.profile.profile import Profile, Statement
from serving.runtime import RecommenderRuntime
from serving.stages import Asked, StageName

_QUICK_S = 0.5
"""A warm-up tries a batch only of what answers one request in this time."""
_TRIAL_BATCH = 8
_LARGEST_BATCH = 32
"""Up to which graphs are recorded: that of `serving.settings.BatchingSettings` where nobody says another."""
_SAID_OF: Mapping[StageName, str] = {"profile": "reader of profiles"}


def warm_up(runtime: RecommenderRuntime, observe: Callable[[StageName, int, float], None] | None = None) -> None:
    """Generate lists, so that the first user does not wait for lazy initialisation, and a broken model is found.

    Args:
        runtime: the model.
        observe: is told how many requests a call of a stage had, and how many seconds it took.

    Raises:
        ArtifactError: the catalogue is empty, or a way to an answer fails.
    """
    if not runtime.catalog.num_items:
        raise ArtifactError(f"bundle: the catalogue of {runtime.info.name} has no items; build the bundle again")
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
                for size in range(_LARGEST_BATCH.bit_length()):
                    stage.lists([replace(trial, denied=trial.history)] * (1 << size))
        except Exception as error:  # it may fail in any way; unlike a request, a start has no substitute
            raise ArtifactError(
                f"bundle: the {_SAID_OF.get(stage.name, stage.name)} of {runtime.info.name} cannot answer: {error!r}; "
                "build the bundle again"
            ) from error
