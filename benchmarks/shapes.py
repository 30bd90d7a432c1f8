"""Which shape of generator, at equal training time: nested against flat, on the same items, semantic IDs and body.

Each shape is fitted for the same seconds under its own peak learning rate, warmed up and decayed by the share of the
seconds that is spent; looking at validation does not count, and the weights of the best look are kept. Then, on test
cases with seen items masked: Recall@10 and NDCG@10 by item, and of a model: parameters, milliseconds a request (alone
and in batches of 8, 50 beams) and peak memory of fitting and of serving.

    recsys bench shapes [--seconds 600] [--seeds 3] [--run RUN | --data-path FOLDER] [--shapes nested flat]
                        [--max-users N] [--json]

The data, item vectors and semantic IDs are those of a finished run (`--run`: nothing is encoded again), else Amazon
2014 Beauty with residual k-means of co-occurrence in training. `nested_codes_alone` is the nested shape without the
item vectors, which the flat shape does not read either.

One thread counts CPU seconds, which other processes disturb least; more threads count wall seconds. Every fit and every
service is a process of its own. Memory is the most that the process ever had resident (VmHWM, Linux only), beside what
it had before the first step or request: PyTorch itself, the data and the model. That of fitting ends at the first look
at validation, whose search would count too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import nn

from recsys.data import IntArray, Split, load_dataset, make_split
from recsys.encoder.collaborative import cooccurrence_embeddings
from recsys.encoder.encoder import FloatArray
from recsys.errors import ConfigError, RecsysError
from recsys.evaluation.bootstrap import UserBootstrap
from recsys.evaluation.metrics import CaseMetric, accuracy_metrics
from recsys.generator.config import GeneratorConfig, ModelConfig
from recsys.generator.constraints import Constraints
from recsys.generator.recommender import GenerativeRecommender, GeneratorModel, build_model
from recsys.progress import console
from recsys.tokenizer import RKMeansConfig, SemanticIds, build_tokenizer
from training.config import load_config
from training.fit import FitConfig, build_optimizer, learning_rate_factor
from training.layout import DATA, ENCODE, TOKENIZE
from training.objectives import WindowObjective
from training.random_twins import clock, clock_name, num_parameters
from training.results import find_run
from training.runs import packaged_config
from training.stages import data, encode, tokenize, train

_SHAPES: dict[str, dict[str, Any]] = {
    "nested": {"shape": "nested"},
    "nested_codes_alone": {"shape": "nested", "text_input": False},
    "flat": {"shape": "flat"},
}
_K = 10
_METRICS = (f"recall@{_K}", f"ndcg@{_K}")
_FACTS = (
    *_METRICS,
    "validation_ndcg@10",
    "epochs",
    "targets_per_second",
    "ms_1_request",
    "ms_8_requests",
    "fit_peak_mib",
    "serve_peak_mib",
)


def main(arguments: list[str]) -> dict[str, Any]:
    """`shapes`: for each shape its parameters, the mean and the spread of each fact; `differences` to the first one."""
    parser = argparse.ArgumentParser(prog="recsys bench shapes", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="of training, of each fit")
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 101), metavar="N", help="seeds 0 .. N - 1")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--run", type=Path, help="finished run whose data, vectors and semantic IDs are used")
    source.add_argument("--data-path", type=Path, help="folder with the data set in the import format")
    parser.add_argument("--config", default="beauty", help="configuration whose data set is used, without --run")
    parser.add_argument("--max-users", type=int, help="at most so many users, for a try")
    parser.add_argument("--shapes", nargs="+", default=["nested", "flat"], choices=_SHAPES)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.4)
    parser.add_argument("--max-history", type=int, default=50, help="items that either shape reads")
    parser.add_argument("--batch-positions", type=int, default=2048, help="items a step, padding included")
    parser.add_argument("--nested-rate", type=float, default=2e-3, help="peak learning rate of the nested shapes")
    parser.add_argument("--flat-rate", type=float, default=2e-3, help="peak learning rate of the flat shape")
    parser.add_argument("--looks", type=int, default=6, help="at validation, evenly over the seconds")
    parser.add_argument("--validation-users", type=int, default=2000)
    parser.add_argument("--beams", type=int, default=50, help="of test lists and of timed requests")
    parser.add_argument("--requests", type=int, default=40, help="timed requests alone; batches are a quarter of them")
    options = parser.parse_args(arguments)

    split, ids, vectors = _inputs(options)
    results: dict[str, list[dict[str, Any]]] = {shape: [] for shape in options.shapes}
    lists: dict[str, list[IntArray]] = {shape: [] for shape in options.shapes}
    with TemporaryDirectory() as directory:
        home = Path(directory)
        split.save(home / "split")
        ids.save(home / "ids")
        np.save(home / "vectors.npy", vectors)
        for seed in range(options.seeds):
            for shape in options.shapes:
                result, ranked = _one(shape, seed, options, home)
                results[shape].append(result)
                lists[shape].append(ranked)
    document = {
        "settings": {
            **{name: value for name, value in vars(options).items() if name not in ("run", "data_path")},
            "run": None if options.run is None else options.run.name,
            "items": split.num_items,
            "levels": ids.levels,
            "codebook_sizes": list(ids.codebook_sizes),
            "training_interactions": len(split.train.items),
            "test_cases": len(split.test),
            "threads": torch.get_num_threads(),
            "clock": clock_name(),
            "memory": "VmHWM",
        },
        "shapes": {shape: _summary(found) for shape, found in results.items()},
        "differences": _differences(split, lists),
    }
    _print(document)
    return document


def _inputs(options: argparse.Namespace) -> tuple[Split, SemanticIds, FloatArray]:
    """Split, semantic IDs and item vectors (float32 [N, V])."""
    if options.run is not None:
        run = find_run(options.run)
        split = data.load_split(run / DATA)
        ids, vectors = tokenize.load_ids(run / TOKENIZE), encode.load_embeddings(run / ENCODE).vectors
    else:
        overrides = [f"data.path={options.data_path}"] if options.data_path else []
        settings = load_config(packaged_config(options.config), overrides)
        split = make_split(load_dataset(settings.data).interactions, settings.data)
        vectors, _ = cooccurrence_embeddings(split.train, split.num_items, dim=min(64, split.num_items - 1))
        codebooks = {"levels": settings.tokenizer.levels, "codebook_size": settings.tokenizer.codebook_size}
        ids = build_tokenizer(RKMeansConfig.model_validate(codebooks)).fit(vectors)
    if len(split.held_out):
        raise ConfigError("bench shapes: the run holds items out; name one with data.split.held_out_items=0")
    if options.max_users is not None:
        split = replace(
            split,
            train=split.train.select(np.flatnonzero(split.train.users < options.max_users)),
            valid=split.valid.select(np.flatnonzero(split.valid.histories.users < options.max_users)),
            test=split.test.select(np.flatnonzero(split.test.histories.users < options.max_users)),
        )
    return split, ids, vectors


# ---------------------------------------------------------------------------------------------------------------------
# one model, in processes of its own
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What a process is to do, as JSON on its command line."""

    task: str
    """`fit`, then `serve`."""
    home: str
    """Directory of the split, semantic IDs and vectors, and of the model between the two tasks."""
    model: dict[str, Any]
    fit: dict[str, Any]
    seconds: float
    looks: int
    seed: int
    beams: int
    requests: int


def _one(shape: str, seed: int, options: argparse.Namespace, home: Path) -> tuple[dict[str, Any], IntArray]:
    """Facts of one fitted model, and its test lists."""
    job = _Job(
        task="fit",
        home=str(home),
        model={
            **_SHAPES[shape],
            "hidden_size": options.hidden_size,
            "num_layers": options.layers,
            "num_heads": options.heads,
            "dropout": options.dropout,
            "max_history": options.max_history,
        },
        fit={
            "batch_positions": options.batch_positions,
            "learning_rate": options.flat_rate if shape == "flat" else options.nested_rate,
            "validation_users": options.validation_users,
        },
        seconds=options.seconds,
        looks=options.looks,
        seed=seed,
        beams=options.beams,
        requests=options.requests,
    )
    console.print(f"{shape}, seed {seed}: {options.seconds:g} seconds of training", highlight=False)
    facts = {"seed": seed, **_in_process(job), **_in_process(replace(job, task="serve"))}
    return facts, np.load(home / "lists.npy")


def _in_process(job: _Job) -> dict[str, Any]:
    # -P: beside this script lie others that are called like libraries.
    command = [sys.executable, "-P", __file__, json.dumps(asdict(job))]
    imports = {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=imports, check=False)
    if done.returncode:
        raise RecsysError(f"bench shapes: the process of task {job.task!r} failed; its error is above")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def run_job(job: _Job) -> dict[str, Any]:
    """Fit a model and leave it in the job's directory, or load it, rank the test cases and time requests."""
    home = Path(job.home)
    split, ids = Split.load(home / "split"), SemanticIds.load(home / "ids")
    config = GeneratorConfig(model=ModelConfig.model_validate(job.model), beams=job.beams)
    takes_vectors = config.model.shape == "nested" and config.model.text_input
    vectors = np.load(home / "vectors.npy") if takes_vectors else None
    return (_fit if job.task == "fit" else _serve)(job, config, split, ids, vectors)


def _fit(
    job: _Job, config: GeneratorConfig, split: Split, ids: SemanticIds, vectors: FloatArray | None
) -> dict[str, Any]:
    torch.manual_seed(job.seed)
    model = build_model(config, ids.codes, ids.codebook_sizes, vectors)
    recommender = GenerativeRecommender(config, ids.codes, ids.codebook_sizes, vectors, model)
    fit = FitConfig(**job.fit)
    cases = train.sample(split.valid, fit.validation_users, job.seed)
    masked = not split.protocol.has_repeats

    def look() -> float:
        model.eval()
        lists = train.rank(recommender, cases.histories, _K, beams=fit.validation_beams, mask_seen=masked)
        return float(accuracy_metrics(lists, cases.targets, (_K,))[f"ndcg@{_K}"].numerator.mean())

    start_mib = _memory_mib("VmRSS")
    timed = _TimedFit(model, split, fit, job)
    best, best_state, peak_mib = -1.0, model.state_dict(), None
    for number in range(1, job.looks + 1):
        timed.until(job.seconds * number / job.looks)
        if number == 1:
            peak_mib = _memory_mib("VmHWM")
        ndcg = look()
        if ndcg > best:
            best, best_state = ndcg, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best_state)
    home = Path(job.home) / "model"
    home.mkdir(exist_ok=True)
    recommender.save(home)
    return {
        "parameters": num_parameters(model),
        "body_parameters": num_parameters(model.body),
        "seconds": timed.spent,
        "epochs": timed.epochs,
        "steps": timed.steps,
        "targets_per_second": timed.targets / timed.spent,
        "loss": timed.loss,
        "validation_ndcg@10": best,
        "fit_start_mib": start_mib,
        "fit_peak_mib": peak_mib,
    }


class _TimedFit:
    """Training that stops whenever its seconds are spent; its schedule is over the job's seconds, not over steps."""

    def __init__(self, model: GeneratorModel, split: Split, config: FitConfig, job: _Job) -> None:
        self.model = model
        self.config = config
        self.objective = WindowObjective(model, split.train, config.batch_positions, config.label_smoothing)
        self.optimizer = build_optimizer(model, config)
        self.spent = 0.0
        self.steps = 0
        self.targets = 0
        self.loss = 0.0
        """Of the last step, nats an item."""
        self._seconds, self._seed = job.seconds, job.seed
        self._epoch, self._batches, self._place = -1, list[Any](), 0
        torch.manual_seed(job.seed)

    @property
    def epochs(self) -> float:
        """Passes over the training sequences."""
        return self._epoch + self._place / max(1, len(self._batches))

    def until(self, seconds: float) -> None:
        """Train until so many seconds are spent since the beginning."""
        self.model.train()
        while self.spent < seconds:
            started = clock()
            if self._place == len(self._batches):
                self._epoch, self._place = self._epoch + 1, 0
                random = np.random.default_rng([self._seed, self._epoch])
                self._batches = list(self.objective.epoch(self._epoch, random))
            self._step(self._batches[self._place])
            self._place += 1
            self.spent += clock() - started

    def _step(self, batch: IntArray) -> None:
        # The last step begins in time and may end after it: the share is that of its beginning.
        factor = learning_rate_factor(self.spent / self._seconds, self.config.warmup_share)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor
        found = self.objective.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        found.loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.steps += 1
        self.targets += found.num_items
        self.loss = found.item_loss


def _serve(
    job: _Job, config: GeneratorConfig, split: Split, ids: SemanticIds, vectors: FloatArray | None
) -> dict[str, Any]:
    home = Path(job.home)
    recommender = GenerativeRecommender.load(home / "model", ids.codes, ids.codebook_sizes, vectors)
    start_mib = _memory_mib("VmRSS")
    histories = split.test.histories
    random = np.random.default_rng(0)
    milliseconds = {
        size: _milliseconds(recommender, split, random.integers(0, len(histories), (turns + 1, size)))
        for size, turns in ((1, job.requests), (8, max(1, job.requests // 4)))
    }
    # What a service needs, before the test lists are made in batches that no service has.
    peak_mib = _memory_mib("VmHWM")
    masked = not split.protocol.has_repeats
    lists = train.rank(recommender, histories, _K, beams=config.beams, mask_seen=masked)
    np.save(home / "lists.npy", lists)
    measured = accuracy_metrics(lists, split.test.targets, (_K,))
    return {
        **{name: float(measured[name].numerator.mean()) for name in _METRICS},
        **{f"ms_{size}_request{'s' if size > 1 else ''}": found for size, found in milliseconds.items()},
        "serve_start_mib": start_mib,
        "serve_peak_mib": peak_mib,
    }


def _milliseconds(recommender: GenerativeRecommender, split: Split, rows: IntArray) -> float:
    """The median over batches (int64 [turns, size], the first one warms up), of a batch by its requests."""
    times: list[float] = []
    for chosen in rows:
        histories = split.test.histories.select(chosen)
        constraints = None if split.protocol.has_repeats else Constraints(deny=list(histories))
        started = clock()
        recommender.recommend(histories, _K, constraints=constraints)
        times.append(clock() - started)
    return 1000 * statistics.median(times[1:]) / rows.shape[1]


def _memory_mib(field: str) -> float | None:
    """`VmRSS` (now) or `VmHWM` (the most since this program began; `ru_maxrss` would count its parent's); None where
    the system does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = (line for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(next(lines).split()[1]) / 1024


# ---------------------------------------------------------------------------------------------------------------------
# the table
# ---------------------------------------------------------------------------------------------------------------------


def _summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Parameters, and of each fact the mean and the standard deviation over seeds."""
    spreads: dict[str, Any] = {}
    for name in _FACTS:
        values = [run[name] for run in found if run[name] is not None]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else None
            spreads[name] = {"mean": statistics.fmean(values), "std": spread}
    return {
        "parameters": found[0]["parameters"],
        "body_parameters": found[0]["body_parameters"],
        **spreads,
        "runs": list(found),
    }


def _differences(split: Split, lists: dict[str, list[IntArray]]) -> dict[str, Any]:
    """How much better the first shape is than each other in the mean over seeds, with intervals over users."""
    bootstrap = UserBootstrap(split.test.histories.users, n_resamples=1000, seed=0, confidence=0.95)
    means = {shape: [_over_seeds(split, ranked, name) for name in _METRICS] for shape, ranked in lists.items()}
    first, *others = means
    return {
        f"{first}_minus_{other}": {
            name: asdict(interval)
            for name, interval in zip(
                _METRICS, bootstrap.differences(list(zip(means[first], means[other], strict=True))), strict=True
            )
        }
        for other in others
    }


def _over_seeds(split: Split, lists: Sequence[IntArray], name: str) -> CaseMetric:
    """The mean of a metric over lists of several seeds, case by case."""
    measured = [accuracy_metrics(ranked, split.test.targets, (_K,))[name] for ranked in lists]
    return CaseMetric(numerator=np.mean([m.numerator for m in measured], axis=0), denominator=measured[0].denominator)


def _print(document: dict[str, Any]) -> None:
    """On stderr: stdout holds the result."""
    shapes = document["shapes"]
    table = Table("", *shapes)
    table.add_row("parameters", *(f"{found['parameters']:,}" for found in shapes.values()))
    table.add_row("of which body", *(f"{found['body_parameters']:,}" for found in shapes.values()))
    for name in _FACTS:
        table.add_row(name, *(_shown(found.get(name)) for found in shapes.values()))
    console.print(table)
    for pair, metrics in document["differences"].items():
        for name, interval in metrics.items():
            bounds = f"{interval['low']:+.4f} to {interval['high']:+.4f}"
            console.print(f"{pair} {name}: {interval['value']:+.4f} ({bounds})", highlight=False)


def _shown(spread: dict[str, float | None] | None) -> str:
    if spread is None:
        return ""
    mean, deviation = spread["mean"], spread["std"]
    return f"{mean:,.4g}" + ("" if deviation is None else f" ± {deviation:.2g}")


if __name__ == "__main__":
    print(json.dumps(run_job(_Job(**json.loads(sys.argv[1])))))
