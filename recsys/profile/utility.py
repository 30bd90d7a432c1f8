"""What a profile is worth: how much likelier a frozen recommender finds what came next once it has read it.

LettinGo (arXiv 2506.18309) labels a profile by whether one prediction came true, which is noise for the most part.
Here U(p) = mean over held-out items t of log q(t | p, recent) - log q(t | no profile, recent), of the frozen
recommender q. Knows no language models and no wording.

Shapes: P profiles, T targets, C candidates a target, of which the first is the target.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from recsys.config import StrictConfig
from recsys.profile.cases import Case

FloatArray = npt.NDArray[np.float64]


class Judge(Protocol):
    """A frozen recommender that reads a text and items."""

    def log_probs(self, case: Case, texts: Sequence[str]) -> FloatArray:
        """float64 [P, T, C]: log q(candidate | text, recent items); an empty text is no profile."""
        ...

    def count_tokens(self, text: str) -> int:
        """How long a profile is to this recommender."""
        ...


class LengthConfig(StrictConfig):
    """Longer texts must be worth their length, or tuning makes them longer and longer."""

    free_tokens: int = Field(default=200, ge=1)
    """Tokens that cost nothing."""
    weight: float = Field(default=0.1, ge=0)
    """Utility that further `free_tokens` cost."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A profile's text and what it is worth to its user."""

    user: int
    """User index."""
    text: str
    """The profile; empty: none."""
    utility: float
    """U(p), in nats a target; 0 for the empty one."""
    reward: float
    """The same less the cost of length."""
    tokens: int
    """Its length."""
    is_faithful: bool
    """Whether it names only what the history has. Another text must not be preferred."""
    ndcg: float
    """NDCG@10 of the targets among their candidates, mean."""


def score(
    judge: Judge,
    case: Case,
    texts: Sequence[str],
    faithful: Sequence[bool],
    length: LengthConfig,
) -> list[Scored]:
    """What each text is worth as a profile of the case's user.

    Args:
        judge: the frozen recommender.
        case: the user.
        texts: P profiles.
        faithful: whether each of them is.
        length: what length costs.
    """
    # No profile comes first; equal texts, of which several writers may give one, are judged once.
    different = list(dict.fromkeys(["", *texts]))
    log_probs = judge.log_probs(case, different)[[different.index(text) for text in texts] + [0]]
    gains = (log_probs[:, :, 0] - log_probs[-1, :, 0]).mean(axis=1)
    ndcg = ndcg_at_10(log_probs)
    scored = []
    for row, (text, is_faithful) in enumerate(zip(texts, faithful, strict=True)):
        tokens = judge.count_tokens(text) if text else 0
        utility = float(gains[row]) if text else 0.0
        scored.append(
            Scored(
                user=case.user,
                text=text,
                utility=utility,
                reward=with_length(utility, tokens, length),
                tokens=tokens,
                is_faithful=is_faithful,
                ndcg=float(ndcg[row]),
            )
        )
    return scored


def with_length(utility: float, tokens: int, config: LengthConfig) -> float:
    """U - weight * max(0, tokens - free) / free."""
    return utility - config.weight * max(0, tokens - config.free_tokens) / config.free_tokens


def ndcg_at_10(log_probs: FloatArray) -> FloatArray:
    """float64 [P] from [P, T, C]: 1 / log2(rank + 1) of the target if its rank is at most 10, mean over targets. A tie
    counts against the target, so that a recommender that says nothing gets nothing."""
    ranks = (log_probs[..., 1:] >= log_probs[..., :1]).sum(axis=-1) + 1
    return np.asarray(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0).mean(axis=-1))


def by_user(scored: Iterable[Scored]) -> dict[int, list[Scored]]:
    """The scored profiles of each user, in their order."""
    users: dict[int, list[Scored]] = {}
    for each in scored:
        users.setdefault(each.user, []).append(each)
    return users
