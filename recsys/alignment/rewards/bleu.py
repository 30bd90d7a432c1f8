"""Smoothed BLEU of one text. Knows no rewards.

BLEU (Papineni et al. 2002) with one added to the matches and to the counts of runs longer than one word (Lin & Och
2004, "ORANGE", section 4), so that a text without a common run of four words is not worth 0. It agrees with
sacreBLEU's `add-k`, k = 1, on the same tokens; of texts shorter than `order` tokens only the runs that they have
count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def smoothed_bleu(candidate: Sequence[str], references: Sequence[Sequence[str]], order: int = 4) -> float:
    """0..1; 0 for an empty candidate or one without any common token.

    Args:
        candidate: its tokens.
        references: tokens of each, at least one.
        order: the longest runs that count.

    Raises:
        ValueError: no references.
    """
    if not references:
        raise ValueError("BLEU needs at least one reference")
    if not candidate:
        return 0.0
    log_precisions = []
    for size in range(1, min(order, len(candidate)) + 1):
        own = _runs(candidate, size)
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= _runs(reference, size)
        smoothing = int(size > 1)
        matches = (own & most).total() + smoothing
        if matches == 0:
            return 0.0
        log_precisions.append(math.log(matches / (own.total() + smoothing)))
    # The reference whose length is nearest; of two equally near the shorter one.
    nearest = min((abs(len(reference) - len(candidate)), len(reference)) for reference in references)[1]
    brevity = min(0.0, 1 - nearest / len(candidate))
    return math.exp(brevity + sum(log_precisions) / len(log_precisions))


def _runs(tokens: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[begin : begin + size]) for begin in range(len(tokens) - size + 1))
