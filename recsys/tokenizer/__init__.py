"""Semantic IDs: from item embeddings to unique tuples of codes, and the report on their quality.

`UserIndexer` and `spectral_users` are imported when they are asked for, because importing torch takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recsys.tokenizer.choice import TokenizerConfig
from recsys.tokenizer.config import RKMeansConfig, RQVAEConfig
from recsys.tokenizer.das.config import DASConfig
from recsys.tokenizer.drift import drift_report
from recsys.tokenizer.interface import SemanticIdTokenizer, build_tokenizer, load_tokenizer
from recsys.tokenizer.mpq_config import MPQConfig
from recsys.tokenizer.new_item_report import new_item_report
from recsys.tokenizer.report import tokenizer_report
from recsys.tokenizer.retokenize import Retokenization, retokenize
from recsys.tokenizer.semantic_ids import SemanticIds
from recsys.tokenizer.user_config import UserIndexerConfig

if TYPE_CHECKING:
    from recsys.tokenizer.users import UserIndexer, spectral_users

__all__ = [
    "DASConfig",
    "MPQConfig",
    "RKMeansConfig",
    "RQVAEConfig",
    "Retokenization",
    "SemanticIdTokenizer",
    "SemanticIds",
    "TokenizerConfig",
    "UserIndexer",
    "UserIndexerConfig",
    "build_tokenizer",
    "drift_report",
    "load_tokenizer",
    "new_item_report",
    "retokenize",
    "spectral_users",
    "tokenizer_report",
]


def __getattr__(name: str) -> Any:
    if name in ("UserIndexer", "spectral_users"):
        from recsys.tokenizer import users

        return getattr(users, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
