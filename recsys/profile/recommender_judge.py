"""The generative recommender as the frozen one: log q(item) under the trie after a text and the recent items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recsys.generator import Constraints, GenerativeRecommender
from recsys.generator.lm.language import ItemLanguage
from recsys.profile.cases import Case
from recsys.profile.prompt import profile_prompt
from recsys.profile.utility import FloatArray


class RecommenderJudge:
    """Probabilities are over the whole catalogue, as the service gives them.

    Args:
        recommender: with a language model as its body.

    Raises:
        ConfigError: the model knows no words.
    """

    def __init__(self, recommender: GenerativeRecommender) -> None:
        self._recommender = recommender
        self._language = ItemLanguage.of(recommender.model)

    def count_tokens(self, text: str) -> int:
        """See `Judge.count_tokens`."""
        return len(self._language.backbone.text_tokens(text))

    def log_probs(self, case: Case, texts: Sequence[str]) -> FloatArray:
        """See `Judge.log_probs`."""
        items, place = np.unique(case.candidates, return_inverse=True)
        allow = np.zeros((len(texts), self._recommender.trie.num_items), dtype=bool)
        allow[:, items] = True
        prompts = [profile_prompt(self._language, text, case.recent) for text in texts]
        # As many beams as permitted items lose none of them, so every candidate gets its score.
        found = self._recommender.complete(prompts, len(items), constraints=Constraints(allow=allow), beams=len(items))
        scores = np.full(allow.shape, -np.inf)
        rows = np.arange(len(texts))[:, None]
        scores[rows, found.items] = found.scores
        return scores[:, items][:, place.reshape(-1)].reshape(len(texts), *case.candidates.shape)
