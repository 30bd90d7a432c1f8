"""Which tokenizer, by a table: every one on the same text vectors, split and generator budget, over seeds.

For each data set (Beauty and Scientific) and tokenizer: collisions before resolution, perplexity, how often a held-out
transition shares a prefix, seconds of fitting, Recall@10 and NDCG@10 of the generator, the paired difference to the
text-only RQ-VAE with its interval, and Recall@10 on items that were held out of everything and then added.

    recsys bench tokenizers [--data beauty scientific] [--tokenizers rqvae das ...] [--seeds 3] [--cold-seeds 1]
                            [--data-root FOLDER] [--epochs 12] [--read-only] [--json]

Each cell is a run under runs/; finished ones are only read, so that several processes can share the work. With
`--read-only` the table is of what is there: a row says how many seeds it has, and is compared under the same ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.data import Split
from training.bench import COMPARED, data_overrides, run_seeds, seeds_summary
from training.comparison import paired_differences
from training.layout import DATA, EVALUATE, LISTS, RUNS, STAGE_FILE, TOKENIZE
from training.pipeline import is_finished
from training.results import read_report, read_tokenizer_report

_REFERENCE = "rqvae"
_REFERENCES = {"rqvae_fused_codes_alone": "rqvae_codes_alone"}
_TOKENIZERS: dict[str, dict[str, str]] = {
    "rkmeans": {"tokenizer": "{method: rkmeans, levels: 4}"},
    "rkmeans_balanced": {"tokenizer": "{method: rkmeans, levels: 4, balanced: lower}"},
    "rqvae": {"tokenizer": "{method: rqvae, levels: 4}"},
    "rqvae_simvq": {"tokenizer": "{method: rqvae, levels: 4, codebook: simvq}"},
    "rqvae_uniform": {"tokenizer": "{method: rqvae, levels: 4, codebook: gradient, uniform_last_level: true}"},
    "letter": {"tokenizer": "{method: rqvae, levels: 4, collaborative_weight: 1}"},
    "mpq": {"tokenizer": "{method: mpq}"},
    "mpq_any_order": {"tokenizer": "{method: mpq}", "generator.model.shape": "any_order"},
    "das": {"tokenizer": "{method: das, levels: 4}"},
    "rqvae_fused": {"tokenizer": "{method: rqvae, levels: 4}", "encoder.collaborative_weight": "1"},
    "das_fused": {"tokenizer": "{method: das, levels: 4}", "encoder.collaborative_weight": "1"},
    # The generator also reads the vectors; without them, whatever differs comes from the codes.
    "rqvae_codes_alone": {"tokenizer": "{method: rqvae, levels: 4}", "generator.model.text_input": "false"},
    "rqvae_fused_codes_alone": {
        "tokenizer": "{method: rqvae, levels: 4}",
        "encoder.collaborative_weight": "1",
        "generator.model.text_input": "false",
    },
}
_HELD_OUT = "0.05"
_METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
_FACTS = (
    "dup_rate_before",
    "in_group_rate_before",
    "exact_dup_rate",
    "dup_rate",
    "perplexity",
    "share",
    "lift",
    "i2i_recall@50",
    "rel_recon",
)


def main(arguments: list[str]) -> dict[str, Any]:
    """One entry a data set and tokenizer."""
    parser = argparse.ArgumentParser(prog="recsys bench tokenizers", description=__doc__)
    parser.add_argument("--data", nargs="+", choices=list(COMPARED), default=list(COMPARED))
    parser.add_argument("--tokenizers", nargs="+", choices=list(_TOKENIZERS), default=list(_TOKENIZERS))
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 101), metavar="N", help="seeds 0 .. N - 1")
    parser.add_argument("--cold-seeds", type=int, default=1, choices=range(101), metavar="N", help="0 for no such runs")
    parser.add_argument("--epochs", type=int, default=12, help="of the generator, the same for all")
    parser.add_argument("--data-root", type=Path, help="folder that holds the data sets in the import format")
    parser.add_argument("--read-only", action="store_true", help="run nothing, read finished runs")
    options = parser.parse_args(arguments)
    return {data: _data_set(data, options) for data in options.data}


def _data_set(data: str, options: argparse.Namespace) -> dict[str, Any]:
    runs = {name: _runs(data, name, options, options.seeds) for name in options.tokenizers}
    rows = {}
    for name, found in runs.items():
        if not found:
            continue
        row = _row(found)
        reference = runs.get(_REFERENCES.get(name, _REFERENCE), [])[: len(found)]
        if len(reference) == len(found) and reference != found:
            differences = paired_differences(found, reference)
            row["difference_to"] = {
                "reference": _REFERENCES.get(name, _REFERENCE),
                **{metric: asdict(differences[metric]) for metric in ("recall@10", "ndcg@10")},
            }
        if cold := _runs(data, name, options, options.cold_seeds, cold=True):
            row["cold"] = _cold(cold)
        rows[name] = row
    return rows


def _runs(data: str, name: str, options: argparse.Namespace, seeds: int, *, cold: bool = False) -> list[Path]:
    settings = {
        "encoder.collaborative_weight": "0",
        "fit.epochs": str(options.epochs),
        # The same budget for all: no early stop, and the best of the same epochs is kept.
        "fit.patience": str(options.epochs),
        "fit.validate_every": "3",
        "fit.validation_users": "2000",
        "evaluation.baselines": "[popularity]",
        "fusion": "null",
    }
    if cold:
        settings |= {"data.split.held_out_items": _HELD_OUT, "generator.new_item_slots": "2"}
    settings |= _TOKENIZERS[name]
    label = f"bench-tokenizers-{data}-{name}{'-cold' if cold else ''}"
    if options.read_only:
        runs = [RUNS / f"{label}-seed-{seed}" for seed in range(seeds)]
        return [run for run in runs if is_finished(run, EVALUATE)]
    return run_seeds(
        data,
        label,
        seeds,
        [f"{key}={value}" for key, value in settings.items()] + data_overrides(data, options.data_root),
    )


def _row(runs: Sequence[Path]) -> dict[str, Any]:
    summary = seeds_summary(runs)
    reports = [read_tokenizer_report(run) for run in runs]
    return {
        "seeds": len(runs),
        "generator": {metric: summary["models"]["generator"][metric] for metric in _METRICS},
        "tokenizer": {fact: [report[fact] for report in reports] for fact in _FACTS if fact in reports[0]},
        "tokenizer_seconds": [costs["seconds"]["tokenize"] for costs in summary["runs"]],
        "train_seconds": [costs["seconds"]["train"] for costs in summary["runs"]],
        "tokenizer_peak_memory_gib": [_peak_memory_gib(run, TOKENIZE) for run in runs],
    }


def _peak_memory_gib(run: Path, stage: str) -> float:
    """Of the process until that stage was done."""
    marker = json.loads((run / stage / STAGE_FILE).read_text())
    return round(marker["peak_memory_mib"] / 1024, 2)


def _cold(runs: Sequence[Path]) -> dict[str, Any]:
    """Recall@10 of targets that were held out of every fit, with two places a list reserved for new items."""
    hits = [_held_out_hits(run) for run in runs]
    return {
        "held_out_share": float(_HELD_OUT),
        "cases": [len(found) for found in hits],
        "recall@10": {
            "mean": statistics.fmean(found.mean() for found in hits),
            "values": [found.mean() for found in hits],
        },
        "all_cases_recall@10": [read_report(run)["models"]["generator"]["recall@10"]["value"] for run in runs],
    }


def _held_out_hits(run: Path) -> np.ndarray:
    """bool [n]: whether each held-out target is among its list's first ten."""
    lists = pl.read_parquet(run / EVALUATE / LISTS)
    lists = lists.filter(pl.col("target").is_in(Split.load(run / DATA / "split").held_out.tolist()))
    return lists.select(pl.col("generator").list.head(10).list.contains(pl.col("target"))).to_series().to_numpy()
