"""The generator: models that emit semantic IDs, the item trie, and the one constrained decoder."""

from recsys.generator.config import GeneratorConfig, ModelConfig
from recsys.generator.consistency import Consistency
from recsys.generator.constraints import Cap, Constraints
from recsys.generator.groups import Groups
from recsys.generator.recommendations import Recommendations, Recommender, SearchesBeams
from recsys.generator.recommender import GenerativeRecommender, build_model
from recsys.generator.slates import SampledSlates
from recsys.generator.trie import ItemTrie

__all__ = [
    "Cap",
    "Consistency",
    "Constraints",
    "GenerativeRecommender",
    "GeneratorConfig",
    "Groups",
    "ItemTrie",
    "ModelConfig",
    "Recommendations",
    "Recommender",
    "SampledSlates",
    "SearchesBeams",
    "build_model",
]
