"""The exact twin of every search: all items scored through the path that training uses, and sorted."""

from __future__ import annotations

import numpy as np
import torch
from padding import padded

from recsys.generator.recommender import GenerativeRecommender


def score_catalogue(recommender: GenerativeRecommender, history: np.ndarray) -> np.ndarray:
    """Log-probability of every item as the next one after `history`, by the path that training uses."""
    items, lengths = padded([np.append(history, item) for item in range(recommender.trie.num_items)])
    with torch.inference_mode():
        log_probs = recommender.model.target_log_probs(items, lengths, first_target=lengths - 1)
    return log_probs.numpy()


def exact_order(recommender: GenerativeRecommender, scores: np.ndarray) -> np.ndarray:
    """All items, best score first; equal ones in the order of their semantic IDs."""
    by_sid = np.lexsort(recommender.codes.T[::-1])
    return by_sid[np.argsort(-scores[by_sid], kind="stable")]
