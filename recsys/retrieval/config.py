"""The `fusion` section of a run's configuration: where candidates come from, and how the ranker over them is fitted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from recsys.config import StrictConfig


class FusionConfig(StrictConfig):
    """Candidates of the generator, SASRec, the skip-gram counter, content and popularity; one ranker over all."""

    depth: int = Field(default=50, ge=1)
    """Candidates that each source gives; raised to k when k is larger. On validation cases of Amazon Beauty twice as
    many did not help."""
    index: Literal["auto", "flat", "hnsw", "ivf_pq", "ivf_rabitq", "cagra"] = "auto"
    """How the Faiss indices of SASRec's and the content vectors search. `auto`: exact up to 50,000 items, a
    graph up to 5 million, codes of one bit a component above. `cagra` is a graph that needs a GPU to be built, and a
    Faiss with cuVS; any other loads it."""
    content_decay: float = Field(default=0.7, gt=0, le=1)
    """Weight of an item of the history beside that of the one after it, in the content source."""
    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)
    """L2 penalties on the ranker's standardised weights, for a mean log-likelihood; the best one on held-out validation
    users is taken."""
    held_out_users: float = Field(default=0.25, gt=0, lt=1)
    """Share of validation users that choose the penalty and judge the calibration; in the end all are fitted on."""
    seed: int = Field(default=0, ge=0)
    """Of the choice of those users."""

    @field_validator("penalties")
    @classmethod
    def _some_penalty(cls, penalties: tuple[float, ...]) -> tuple[float, ...]:
        if not penalties or min(penalties) < 0:
            raise ValueError(f"penalties={list(penalties)}: give at least one, none below 0")
        return tuple(sorted(penalties))
