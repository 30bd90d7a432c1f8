"""The claim: where exact hits are rare, the prefix reward leaves far fewer groups without anything to learn from.

Groups of the supervised generators `runs/beauty-seed-*` (of `recsys bench beauty`) for validation histories, whose next
items they have not seen; a group whose rewards are all the same has no advantages. Nothing is trained.

    recsys bench reward_variance [--seeds 3] [--cases 2000] [--group-sizes 16 64] [--json]
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recsys.alignment.group_policy import Policy
from recsys.alignment.group_policy.advantages import group_advantages
from recsys.alignment.rewards import RewardContext, RewardsConfig, build_rewards
from recsys.alignment.rollouts import Rollouts
from training.config import stored_config
from training.layout import DATA, ENCODE, RUNS, TOKENIZE, TRAIN
from training.stages import data, encode, tokenize, train

_REWARDS: dict[str, list[dict[str, Any]]] = {
    "exact": [{"kind": "exact"}],
    "prefix": [{"kind": "prefix"}],
    "prefix_and_rank": [{"kind": "prefix"}, {"kind": "rank", "weight": 0.3}],
}


def main(arguments: list[str]) -> dict[str, Any]:
    """By size of the groups: shares of groups with equal rewards, mean and each seed's; `fewer` is 1 - prefix / exact.

    Smaller groups are the beginnings of the largest ones.
    """
    parser = argparse.ArgumentParser(prog="recsys bench reward_variance", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 101), metavar="N", help="seeds 0 .. N - 1")
    parser.add_argument("--cases", type=int, default=2000, help="validation histories")
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[16, 64], help="proposals a group")
    options = parser.parse_args(arguments)
    found = [
        _proposed(RUNS / f"beauty-seed-{seed}", options.cases, max(options.group_sizes), seed)
        for seed in range(options.seeds)
    ]
    by_size = {
        size: _shares([(_first(rollouts, size), context) for rollouts, context in found])
        for size in options.group_sizes
    }
    return {
        "fewer": {size: shares["fewer"] for size, shares in by_size.items()},
        "cases": options.cases,
        "groups": by_size,
    }


def _first(rollouts: Rollouts, size: int) -> Rollouts:
    return replace(rollouts, items=rollouts.items[:, :size], scores=rollouts.scores[:, :size])


def _shares(found: list[tuple[Rollouts, RewardContext]]) -> dict[str, Any]:
    shares: dict[str, list[float]] = {name: [] for name in _REWARDS}
    for rollouts, context in found:
        for name, terms in _REWARDS.items():
            values = build_rewards(RewardsConfig.model_validate({"terms": terms}), context)(rollouts)
            advantages = group_advantages(values.total, rollouts.is_real, "grpo")
            shares[name].append(float((advantages == 0).all(1).float().mean()))
    means = {name: statistics.fmean(values) for name, values in shares.items()}
    return {
        "fewer": 1 - means["prefix"] / means["exact"],
        "zero_variance": means,
        "zero_variance_by_seed": shares,
        "groups_with_a_hit": [float(rollouts.hits.any(1).float().mean()) for rollouts, _ in found],
    }


def _proposed(run: Path, cases: int, group_size: int, seed: int) -> tuple[Rollouts, RewardContext]:
    config, ids = stored_config(run), tokenize.load_ids(run / TOKENIZE)
    embeddings = encode.load_embeddings(run / ENCODE)
    recommender = train.load_recommender(run / TRAIN, config.generator, ids, embeddings)
    chosen = train.sample(data.load_split(run / DATA).valid, cases, seed)
    futures = torch.from_numpy(chosen.targets).unsqueeze(1)
    policy = Policy(recommender.model)
    sampled = policy.propose(chosen.histories, group_size, futures=futures, mask_seen=config.evaluation.mask_seen)
    return sampled.rollouts, RewardContext.of(ids)
