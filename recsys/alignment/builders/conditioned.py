"""Reward-conditioned pairs: the prompt says how good an answer is wanted, and the better one is what comes nearest.

Reward-augmented data (arXiv 2410.08067): a pair with scores g_w > g_l becomes two. Asked for g_w, y_w is chosen; asked
for g_l, y_l is, and the answers swap. Tuned on with a small beta (0.01) and label smoothing (0.3), the model can be
asked for the best at serving time.
"""

from __future__ import annotations

from recsys.alignment.pairs import PreferencePair, PreferencePairs
from recsys.errors import DataError

TEMPLATE = "Target score: {score:.2f}\n{prompt}"
"""How the wanted score is said."""


def conditioned_pairs(pairs: PreferencePairs, *, template: str = TEMPLATE) -> PreferencePairs:
    """Two pairs for each chosen and rejected text of `pairs`, whose prompts name the score that is wanted.

    Args:
        pairs: pairs of texts with scores.
        template: wording with `{score}` and `{prompt}`.

    Raises:
        DataError: a pair is not one of texts, or has no scores.
        ValueError: the template lacks a field.
    """
    if "{score" not in template or "{prompt}" not in template:
        raise ValueError(f"template must hold {{score}} and {{prompt}}, got {template!r}")
    rows = []
    for pair in pairs:
        if pair.chosen_text is None or pair.prompt_text is None or pair.chosen_score is None:
            raise DataError(f"pair {pair.pair_id!r}: conditioning on scores needs texts with scores")
        for number, (text, score) in enumerate(zip(pair.rejected_texts, pair.rejected_scores, strict=True)):
            better, worse = (pair.chosen_text, pair.chosen_score), (text, score)
            for name, wanted, other in (("high", better, worse), ("low", worse, better)):
                rows.append(
                    PreferencePair(
                        pair_id=f"{pair.pair_id}-{number}-{name}",
                        user_id=pair.user_id,
                        source=pair.source,
                        created_by=pair.created_by,
                        prompt_items=pair.prompt_items,
                        prompt_text=template.format(score=wanted[1], prompt=pair.prompt_text),
                        chosen_text=wanted[0],
                        rejected_texts=[other[0]],
                        chosen_score=wanted[1],
                        rejected_scores=[other[1]],
                        weight=pair.weight,
                        confidence=pair.confidence,
                        label_noise_prob=pair.label_noise_prob,
                        objective_id=pair.objective_id,
                        propensity=pair.propensity,
                        fold=pair.fold,
                    )
                )
    return PreferencePairs.from_rows(rows)
