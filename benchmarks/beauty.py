"""The claim: on Amazon 2014 Beauty the fusion reaches test Recall@10 >= 0.092 and NDCG@10 >= 0.054, a tuned SASRec's
figures (TIGER's paper row: 0.0648 and 0.0384), and the generator alone Recall@10 >= 0.070.

Leave-last-out, full ranking at item level, seen items masked; the ranker is fitted on validation cases.

    recsys bench beauty [--seeds 3] [--data-path FOLDER] [--json]
"""

from __future__ import annotations

from typing import Any

from training.bench import fusion_bench


def main(arguments: list[str]) -> dict[str, Any]:
    """Run `configs/beauty.yaml` under several seeds; each model's metrics, and how far the fusion is ahead."""
    return fusion_bench("beauty", arguments, __doc__)
