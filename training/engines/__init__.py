"""Who starts the processes that train: this one alone, torchrun on this machine, or a Ray cluster.

An engine calls one function in every process; what is trained there knows its `recsys.ranks.Ranks` and nothing else.
"""

from __future__ import annotations

from training.engines.config import EngineConfig, LocalEngine, RayEngine, TorchrunEngine
from training.engines.start import build_with, start

__all__ = ["EngineConfig", "LocalEngine", "RayEngine", "TorchrunEngine", "build_with", "start"]
