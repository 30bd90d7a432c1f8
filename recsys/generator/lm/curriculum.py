"""The order in which batches of alignment and of reasoning are taught. Knows nothing of what is in them.

As in the code of GREAM (arXiv 2510.20815): alignment is cut into three shards. In the first two, reasoning comes in
with a probability that grows with the place, and what is left of it follows; the third is shuffled. Each shard has all
of the reasoning.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SHARDS = 3
# So that about three quarters of the reasoning come in on the way: the probabilities of a shard add up to 0.75 of it.
_SLOPE = 1.5


@dataclass(frozen=True)
class Step:
    """One batch."""

    reasoning: bool
    """Whether it is a batch of reasoning; otherwise it is one of alignment."""
    number: int
    """Which one of its kind."""


def curriculum(num_alignment: int, num_reasoning: int, *, seed: int) -> tuple[list[Step], ...]:
    """Three shards, to be taught one after the other in the order given.

    After alignment batch i of N of a shard, a batch of reasoning comes with probability 1.5 (i / N) (R / N), where R is
    `num_reasoning`. The draws share one random offset instead of being independent (systematic sampling): each has its
    probability, and the share of reasoning grows evenly also where there are few batches. A probability above 1 is that
    many batches at once, on average.

    Args:
        num_alignment: alignment batches; each is taught once, in a random shard.
        num_reasoning: reasoning batches; each is taught once a shard.
        seed: of all that is random.
    """
    random = np.random.default_rng(seed)
    alignment = np.array_split(random.permutation(num_alignment), _SHARDS)
    return (
        _rising(alignment[0].tolist(), random.permutation(num_reasoning).tolist(), random),
        _rising(alignment[1].tolist(), random.permutation(num_reasoning).tolist(), random),
        _mixed(alignment[2].tolist(), num_reasoning, random),
    )


def _rising(alignment: list[int], reasoning: list[int], random: np.random.Generator) -> list[Step]:
    size = len(alignment)
    probability = _SLOPE * np.arange(size) * len(reasoning) / max(1, size) ** 2
    due = np.floor(np.cumsum(probability) + random.random()).astype(int).tolist()
    steps, taught = [], 0
    for number, until in zip(alignment, due, strict=True):
        steps.append(Step(reasoning=False, number=number))
        steps += [Step(reasoning=True, number=each) for each in reasoning[taught:until]]
        taught = until
    return steps + [Step(reasoning=True, number=each) for each in reasoning[taught:]]


def _mixed(alignment: list[int], num_reasoning: int, random: np.random.Generator) -> list[Step]:
    steps = [Step(reasoning=False, number=number) for number in alignment]
    steps += [Step(reasoning=True, number=number) for number in range(num_reasoning)]
    return [steps[place] for place in random.permutation(len(steps)).tolist()]
