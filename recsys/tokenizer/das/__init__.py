"""DAS: semantic IDs of items and users, quantized and aligned with behaviour in one stage (arXiv 2508.10584)."""

from recsys.tokenizer.das.config import DASConfig, View

__all__ = ["DASConfig", "View"]
