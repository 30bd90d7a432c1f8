"""What models say of the answers of pairs of items: each answer after its own history, one row an answer.

Shapes: P pairs, A answers of all pairs, D width of an item's vector, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from recsys.alignment.candidates import PolicyModel, candidate_log_probs
from recsys.alignment.noise.consistency import Ranker
from recsys.alignment.noise.peer_review import PairFeatures
from recsys.alignment.pairs import PreferencePairs
from recsys.alignment.reward_models.features import UserItemFeatures
from recsys.data.sequences import IntArray, Sequences
from recsys.generator.batches import history_batches

AnswerScores: TypeAlias = Callable[[Sequences, IntArray], npt.NDArray[np.float32]]
"""float32 [A]: how good each item (int64 [A]) is after its history; larger is better."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """All answers of a table, pair by pair, the chosen one first."""

    histories: Sequences
    """A of them: the pair's prompt, or the rejected answer's own."""
    items: IntArray
    """int64 [A]."""
    begins: IntArray
    """int64 [P + 1]: where each pair's answers begin."""

    @classmethod
    def of(cls, pairs: PreferencePairs) -> Answers:
        """Of pairs of items."""
        histories: list[list[int]] = []
        items: list[int] = []
        begins = [0]
        for prompt, chosen, rejected, prompts in pairs.frame.select(
            "prompt_items", "chosen_item", "rejected_items", "rejected_prompts"
        ).iter_rows():
            histories += [prompt, *(prompts or [prompt] * len(rejected))]
            items += [chosen, *rejected]
            begins.append(len(items))
        return cls(
            histories=Sequences.from_lists(histories),
            items=np.array(items, dtype=np.int64),
            begins=np.array(begins, dtype=np.int64),
        )


def ranker(scores: AnswerScores) -> Ranker:
    """The scores of the answers of each pair, for `ConsistencyFilter`."""

    def rank(pairs: PreferencePairs) -> list[list[float]]:
        answers = Answers.of(pairs)
        found = scores(answers.histories, answers.items)
        return [part.tolist() for part in np.split(found, answers.begins[1:-1])]

    return rank


def pair_features(item_vectors: npt.NDArray[np.float32], *, batch_size: int = 256) -> PairFeatures:
    """What two reviewers see of a pair: the chosen answer less the mean of the rejected, in `UserItemFeatures`.

    Args:
        item_vectors: float32 [N, D], unit rows.
        batch_size: pairs at a time.
    """
    features = UserItemFeatures(item_vectors)

    def differences(pairs: PreferencePairs) -> npt.NDArray[np.float32]:
        """float32 [P, F], every column of unit size."""
        found = []
        for begin in range(0, len(pairs), batch_size):
            answers = Answers.of(pairs.select(np.arange(begin, min(begin + batch_size, len(pairs)))))
            seen = features(answers.histories, torch.from_numpy(answers.items).unsqueeze(1)).squeeze(1).numpy()
            chosen = seen[answers.begins[:-1]]
            counts = np.diff(answers.begins)[:, None]
            totals = np.add.reduceat(seen, answers.begins[:-1], axis=0)
            found.append(chosen - (totals - chosen) / (counts - 1))
        rows = np.concatenate(found)
        size = np.sqrt(np.square(rows).mean(0))
        return (rows / np.where(size > 0, size, 1)).astype(np.float32)

    return differences


def generator_scores(model: PolicyModel, *, batch_size: int = 256) -> AnswerScores:
    """Log-probabilities of items by a generator, over legal children."""

    @torch.inference_mode()
    def score(histories: Sequences, items: IntArray) -> npt.NDArray[np.float32]:
        found = np.zeros(len(items), dtype=np.float32)
        device = model.learned.device
        for rows, batch, lengths in history_batches(histories, model.config.max_history, batch_size):
            candidates = torch.from_numpy(items[rows]).unsqueeze(1).to(device)
            found[rows] = candidate_log_probs(model, batch.to(device), lengths.to(device), candidates)[:, 0].cpu()
        return found

    return score
