"""What a taught language model can do beside next items: each task in the phrasing that training never saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from recsys.generator import GenerativeRecommender
from recsys.generator.lm.examples import Example, Items
from recsys.generator.lm.language import ItemLanguage
from recsys.generator.lm.rows import rectangle
from recsys.generator.lm.tasks import TASKS, TaskMix

_BATCH = 16
_EPOCH = 2**31 - 1
"""A number of an epoch that no fit reaches: its draws are nobody else's."""


def language_report(recommender: GenerativeRecommender, mix: TaskMix, line_rows: int, samples: int) -> dict[str, Any]:
    """For each task, over at most `samples` of its examples in the held-out phrasing.

    Returns:
        By task: `samples`; where the response is one item `recall@10` and `recall@1` among all items, and where it is
        text `nats_per_token`. The examples are those of training, so this says what was learned, not what generalises;
        the wording is new.
    """
    examples = mix.epoch(_EPOCH, held_out=True)
    report: dict[str, Any] = {}
    for task in TASKS:
        chosen = [examples[int(number)] for number in examples.numbers(task)[:samples]]
        if not chosen or task == "next_item":
            continue
        entry: dict[str, Any] = {"samples": len(chosen)}
        if task != "reasoning" and isinstance(chosen[0].response[-1], Items):
            entry |= _recalls(recommender, chosen)
        else:
            entry["nats_per_token"] = _nats_per_token(recommender, chosen, line_rows)
        report[task] = entry
    return report


def _recalls(recommender: GenerativeRecommender, examples: list[Example]) -> dict[str, float]:
    ranks = []
    for begin in range(0, len(examples), _BATCH):
        batch = examples[begin : begin + _BATCH]
        lists = recommender.complete([example.prompt for example in batch], k=10).items
        for example, ranked in zip(batch, lists, strict=True):
            target = example.response[-1]
            assert isinstance(target, Items), "callers have looked"
            found = np.flatnonzero(ranked == target.indices[0])
            ranks.append(int(found[0]) if len(found) else 10)
    places = np.array(ranks)
    return {"recall@1": float((places < 1).mean()), "recall@10": float((places < 10).mean())}


@torch.no_grad()
def _nats_per_token(recommender: GenerativeRecommender, examples: list[Example], line_rows: int) -> float:
    language = ItemLanguage.of(recommender.model)
    written = [language.writer(line_rows).write(example) for example in examples]
    total, count = 0.0, 0
    for begin in range(0, len(written), _BATCH):
        batch = written[begin : begin + _BATCH]
        found = language.target_log_probs(rectangle(batch, [[index] for index in range(len(batch))]))
        total, count = total - float(found.text.sum()), count + len(found.text)
    return total / max(1, count)
