"""Candidates from several sources, and their fusion."""

from recsys.retrieval.artifact import Retrieval, load_fused, load_report
from recsys.retrieval.config import FusionConfig
from recsys.retrieval.fit import RankerFit, fit_ranker
from recsys.retrieval.fusion import FusedRecommender
from recsys.retrieval.towers import SasRecTower

__all__ = [
    "FusedRecommender",
    "FusionConfig",
    "RankerFit",
    "Retrieval",
    "SasRecTower",
    "fit_ranker",
    "load_fused",
    "load_report",
]
