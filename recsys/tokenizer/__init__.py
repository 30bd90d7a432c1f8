"""Semantic IDs: from item embeddings to unique tuples of codes, and the report on their quality."""

from recsys.tokenizer.config import RKMeansConfig, RQVAEConfig, TokenizerConfig
from recsys.tokenizer.interface import SemanticIdTokenizer, build_tokenizer, load_tokenizer
from recsys.tokenizer.report import tokenizer_report
from recsys.tokenizer.semantic_ids import SemanticIds

__all__ = [
    "RKMeansConfig",
    "RQVAEConfig",
    "SemanticIdTokenizer",
    "SemanticIds",
    "TokenizerConfig",
    "build_tokenizer",
    "load_tokenizer",
    "tokenizer_report",
]
