"""Reading the texts of rollouts: words, sentences, repetition. Knows no catalogue."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from recsys.alignment.rollouts import Rollouts
from recsys.errors import RewardError

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")


def rollout_texts(rollouts: Rollouts, reward: str) -> Sequence[Sequence[str]]:
    """B x G texts; RewardError naming `reward` when the policy wrote none or not one a proposal."""
    texts = rollouts.texts
    if texts is None:
        raise RewardError(f"reward {reward!r} reads texts, and this policy writes none; drop the term")
    if [len(row) for row in texts] != [rollouts.items.shape[1]] * len(rollouts.items):
        raise RewardError(f"reward {reward!r}: texts are not one for each of {list(rollouts.items.shape)} proposals")
    return texts


def as_rewards(values: Sequence[Sequence[float]], rollouts: Rollouts) -> Tensor:
    """float32 [B, G] of B x G numbers; 0 where there is no proposal."""
    rewards = torch.tensor(values, dtype=torch.float32, device=rollouts.items.device).view(rollouts.items.shape)
    return torch.where(rollouts.is_real, rewards, 0.0)


def words(text: str) -> list[str]:
    """Lower-case words, without punctuation."""
    return _WORD.findall(text.lower())


def tokens(text: str) -> list[str]:
    """Lower-case words and marks of punctuation, each a token."""
    return _TOKEN.findall(text.lower())


def num_sentences(text: str) -> int:
    """Stretches of text that hold a word and end in . ! ? or with the text."""
    return sum(1 for piece in _SENTENCE_END.split(text) if _WORD.search(piece))


def repeated_share(text: str, size: int) -> float:
    """Share, 0..1, of the runs of `size` words that occurred before in the text; 0 when it is shorter."""
    own = words(text)
    runs = [tuple(own[begin : begin + size]) for begin in range(len(own) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
