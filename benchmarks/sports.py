"""The claim: on Amazon 2014 Sports the fusion is ahead of the generator and of a tuned SASRec.

TIGER's paper row: Recall@10 0.0400, NDCG@10 0.0225. Leave-last-out, full ranking at item level, seen items masked; the
ranker is fitted on validation cases.

    recsys bench sports [--seeds 3] [--data-path FOLDER] [--json]
"""

from __future__ import annotations

from typing import Any

from training.bench import fusion_bench


def main(arguments: list[str]) -> dict[str, Any]:
    """Run `configs/sports.yaml` under several seeds; each model's metrics, and how far the fusion is ahead."""
    return fusion_bench("sports", arguments, __doc__)
