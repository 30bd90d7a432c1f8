"""Semantic IDs: from item embeddings to unique tuples of codes, and the report on their quality."""

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

__all__ = [
    "DASConfig",
    "MPQConfig",
    "RKMeansConfig",
    "RQVAEConfig",
    "Retokenization",
    "SemanticIdTokenizer",
    "SemanticIds",
    "TokenizerConfig",
    "build_tokenizer",
    "drift_report",
    "load_tokenizer",
    "new_item_report",
    "retokenize",
    "tokenizer_report",
]
