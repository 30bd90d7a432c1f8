"""Candidates from several sources, and their fusion."""

from recsys.retrieval.config import FusionConfig

__all__ = ["FusionConfig"]
