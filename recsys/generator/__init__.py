"""The generator: models that emit semantic IDs, the item trie, and the one constrained decoder."""

from recsys.generator.config import GeneratorConfig, ModelConfig
from recsys.generator.constraints import Constraints
from recsys.generator.recommendations import Recommendations
from recsys.generator.recommender import GenerativeRecommender, build_model
from recsys.generator.trie import ItemTrie

__all__ = [
    "Constraints",
    "GenerativeRecommender",
    "GeneratorConfig",
    "ItemTrie",
    "ModelConfig",
    "Recommendations",
    "build_model",
]
