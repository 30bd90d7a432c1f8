"""The claim: a profile that goes on from the last one is worth as much as one written anew, at fewer tokens.

On MovieLens latest-small: histories of 40 events, a first profile after 20 and four updates of 5, by the template and
by SmolLM2-135M. Anew: each update reads all events so far; streamed: the last profile and the new events. Both final
profiles are judged on what the user chose next, as in `recsys bench profiles` (AlignXplore check A1), beside no
profile and the first one left as it was. Then made-up users whose taste changes at once (A2).

    recsys bench profile_streaming [--users 80] [--drifters 24] [--targets 2] [--precision bfloat16] [--kept FOLDER]
                                   [--data-root FOLDER] [--seed 0] [--threads 2] [--json]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys.data import IntArray, load_dataset
from recsys.errors import DataError
from recsys.evaluation.bootstrap import UserBootstrap
from recsys.evaluation.metrics import CaseMetric
from recsys.profile.attributes import ItemAttributes
from recsys.profile.cases import CaseConfig, make_cases
from recsys.profile.generated import LanguageProfiler
from recsys.profile.kept import KeptJudge, KeptWriter
from recsys.profile.ladder import CONFIDENCE, NONE, RESAMPLES, judged
from recsys.profile.profile import Profile
from recsys.profile.profiler import Profiler
from recsys.profile.streaming import Count, StreamConfig, anew, drifters, half_life, old_taste, streamed
from recsys.profile.template import TemplateConfig, TemplateProfiler
from recsys.profile.utility import Judge, LengthConfig, Scored
from recsys.profile.wording import Wording
from recsys.profile.writers import TextWriter
from training.bench import SMALL_MOVIELENS, small_movielens
from training.profiles import Kept, WriterConfig, local_writer, title_judge

_MODEL = "smollm2-135m-instruct"
_STREAM = StreamConfig()
_WRITER = WriterConfig(name=_MODEL, max_tokens=48, batch_size=16)


def main(arguments: list[str]) -> dict[str, Any]:
    """By writer: what both ways are worth, their differences and their tokens; and how long an old taste stays."""
    parser = argparse.ArgumentParser(prog="recsys bench profile_streaming", description=__doc__)
    parser.add_argument("--users", type=int, default=80, help="users with 40 events and more")
    parser.add_argument("--drifters", type=int, default=24, help="made-up users whose taste changes")
    parser.add_argument("--targets", type=int, default=2, help="items of a user that the judge asks for")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of all models")
    parser.add_argument("--kept", type=Path, help="folder from which a killed benchmark goes on")
    parser.add_argument("--data-root", type=Path, help=f"folder that holds {SMALL_MOVIELENS}; fetched when not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads; what PyTorch chooses when not given")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    started = time.monotonic()
    dataset = load_dataset(small_movielens(options.data_root))
    attributes = ItemAttributes(dataset.catalog)
    counts = np.bincount(dataset.interactions.frame["item"].to_numpy(), minlength=dataset.catalog.num_items)
    settings = CaseConfig(targets=options.targets, min_compressed=_STREAM.length, seed=options.seed)
    cases = make_cases(dataset.interactions.sequences(), counts, settings)
    if len(cases) < options.users:
        raise DataError(f"--users {options.users}: only {len(cases)} users have histories that are long enough")
    chosen = np.random.default_rng(options.seed).permutation(len(cases))[: options.users]
    cases = [cases[row] for row in chosen]
    histories = [case.compressed[-_STREAM.length :] for case in cases]
    judge: Judge = title_judge(_MODEL, attributes, options.precision)
    writer: TextWriter = local_writer(_WRITER, options.precision)
    if options.kept is not None:
        answers = Kept(options.kept).answers
        judge = KeptJudge(judge, answers, f"{_MODEL} {options.precision}")
        writer = KeptWriter(writer, answers, f"{_WRITER.model_dump_json()} {options.precision}")
    wording = Wording.load()
    writers: dict[str, tuple[Profiler, Count]] = {
        "template": (TemplateProfiler(attributes, TemplateConfig(), wording), lambda text: len(text.split())),
        "generated": (
            LanguageProfiler(writer, attributes, wording, max_events=_STREAM.length, seed=options.seed),
            writer.count_tokens,
        ),
    }
    arms: dict[str, list[Profile]] = {NONE: [Profile()] * len(cases)}
    tokens, texts, drift = {}, {}, {}
    for name, (profiler, count) in writers.items():
        first = _first(profiler, histories)
        ways = {
            "anew": anew(profiler, histories, _STREAM, count),
            "streamed": streamed(profiler, first, histories, _STREAM, count),
        }
        arms |= {f"{name}_first": first} | {f"{name}_{way}": stream.profiles[-1] for way, stream in ways.items()}
        tokens[name] = {way: stream.tokens for way, stream in ways.items()}
        tokens[name]["share"] = tokens[name]["streamed"] / tokens[name]["anew"]
        last = [profile.text for profile in ways["streamed"].profiles[-1]]
        texts[name] = {
            "as_first": _share_of_equals(last, first),
            "as_anew": _share_of_equals(last, ways["anew"].profiles[-1]),
        }
        drift[name] = _drift(profiler, count, attributes, counts, options.drifters, options.seed)
    scored = judged(judge, cases, arms, LengthConfig())
    return {
        "users": len(cases),
        "targets": options.targets,
        "precision": options.precision,
        "stream": _STREAM.model_dump(),
        **_compared(scored, list(writers), options.seed),
        "tokens": tokens,
        "equal_texts": texts,
        "drift": drift,
        "examples": {name: profiles[0].text for name, profiles in arms.items()},
        "seconds": time.monotonic() - started,
    }


def _first(profiler: Profiler, histories: Sequence[Sequence[int]]) -> list[Profile]:
    return [written.profile for written in profiler.write([items[: _STREAM.first] for items in histories])]


def _share_of_equals(texts: Sequence[str], profiles: Sequence[Profile]) -> float:
    """Share of the users whose streamed text is another profile's, word for word."""
    return float(np.mean([text == profile.text for text, profile in zip(texts, profiles, strict=True)]))


def _compared(scored: dict[str, list[Scored]], writers: Sequence[str], seed: int) -> dict[str, Any]:
    """Each arm's values, and those of each writer's streamed profiles less its others."""
    users = np.array([each.user for each in scored[NONE]], dtype=np.int64)
    bootstrap = UserBootstrap(users, n_resamples=RESAMPLES, seed=seed, confidence=CONFIDENCE)
    values = {
        "utility": {name: CaseMetric.mean_of([each.utility for each in arm]) for name, arm in scored.items()},
        "ndcg@10": {name: CaseMetric.mean_of([each.ndcg for each in arm]) for name, arm in scored.items()},
    }
    table: dict[str, dict[str, Any]] = {name: {} for name in scored}
    differences: dict[str, dict[str, Any]] = {name: {} for name in writers}
    for metric, by_arm in values.items():
        for name, interval in zip(by_arm, bootstrap.intervals(list(by_arm.values())), strict=True):
            table[name][metric] = asdict(interval)
        for name in writers:
            found = by_arm[f"{name}_streamed"]
            for other in ("anew", "first"):
                (interval,) = bootstrap.differences([(found, by_arm[f"{name}_{other}"])])
                differences[name][f"{metric}_minus_{other}"] = asdict(interval)
            (gain,) = bootstrap.differences([(found, by_arm[NONE])])
            differences[name][f"{metric}_minus_none"] = asdict(gain)
    for name in writers:
        ways = [table[f"{name}_{way}"]["ndcg@10"]["value"] for way in ("streamed", "anew")]
        differences[name]["ndcg@10_relative"] = ways[0] / ways[1] - 1
    return {"arms": table, "streamed": differences}


def _drift(
    profiler: Profiler, count: Count, attributes: ItemAttributes, item_counts: IntArray, users: int, seed: int
) -> dict[str, Any]:
    """Shares of the users whose profile names, and leads with, the old taste: before the change, after each update."""
    made = drifters(attributes, item_counts, users, _STREAM, seed)
    histories = [user.history for user in made]
    first = _first(profiler, histories)
    steps = [first, *streamed(profiler, first, histories, _STREAM, count).profiles]
    shares = [old_taste(attributes, made, profiles) for profiles in steps]
    report: dict[str, Any] = {"users": len(made)}
    for what in ("named", "leads"):
        report[what] = [step[what] for step in shares]
        report[f"{what}_half_life"] = half_life(report[what])
    return report
