"""The claim: one pass over whole histories trains several times faster than a padded sample a prefix, as well.

The flat shape, twice from the same initial weights, on the same data, for as many epochs over the same targets, with as
many targets a step, the same optimizer and schedule: ours (every item of a window is a target, the loss is over the
trie's legal children) and the recipe of LC-Rec and MiniOneRec with the Hugging Face `Trainer` (every prefix of a
history is a sample, padded to the longest of its batch; cross-entropy over the vocabulary on the last item's tokens).
Both are evaluated by the same constrained decoder.

    recsys bench train [--config quickstart] [--epochs 2] [key=value ...] [--json]

The data set is that of `configs/<config>.yaml` with its overrides (for example `data.path=FOLDER`); its semantic IDs
are residual k-means of co-occurrence in training. Ours is trained before and after the other, under two seeds. One
thread counts CPU seconds, which other processes disturb least; more threads count wall seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from recsys.data import IntArray, Sequences, Split, load_dataset, make_split
from recsys.data.windows import cut_windows
from recsys.encoder.collaborative import cooccurrence_embeddings
from recsys.evaluation.bootstrap import UserBootstrap
from recsys.evaluation.metrics import CaseMetric, accuracy_metrics
from recsys.generator.config import GeneratorConfig, ModelConfig
from recsys.generator.constraints import Constraints
from recsys.generator.flat import FlatModel
from recsys.generator.recommender import GenerativeRecommender, build_model
from recsys.tokenizer import RKMeansConfig, SemanticIds, build_tokenizer
from training.config import load_config
from training.fit import FitConfig, fit_generator
from training.runs import packaged_config
from training.transformers_twin import causal_lm, item_tokens, load_causal_lm

_K = 10
_METRICS = (f"recall@{_K}", f"ndcg@{_K}")


def main(arguments: list[str]) -> dict[str, Any]:
    """`speedup` is the ratio of targets a second, which is that of loss-carrying tokens a second too."""
    parser = argparse.ArgumentParser(prog="recsys bench train", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the configuration")
    parser.add_argument("--config", default="quickstart", help="configuration whose data set and codebooks are used")
    parser.add_argument("--epochs", type=int, default=2, help="over all targets, of both")
    parser.add_argument("--targets-per-step", type=int, default=256, help="of both")
    parser.add_argument("--max-history", type=int, default=20, help="items that either model sees")
    parser.add_argument("--hidden-size", type=int, default=32)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--group-by-length", action="store_true", help="the Trainer's option against padding")
    options = parser.parse_args(arguments)

    settings = load_config(packaged_config(options.config), options.overrides)
    split = make_split(load_dataset(settings.data).interactions, settings.data)
    vectors, _ = cooccurrence_embeddings(split.train, split.num_items, dim=min(64, split.num_items - 1))
    tokenizer = build_tokenizer(
        RKMeansConfig(levels=settings.tokenizer.levels, codebook_size=settings.tokenizer.codebook_size)
    )
    ids = tokenizer.fit(vectors)

    first, first_lists = _ours(split, ids, options, seed=0)
    theirs, their_lists = _theirs(split, ids, options)
    second, second_lists = _ours(split, ids, options, seed=1)
    fastest = max(first["targets_per_second"], second["targets_per_second"])
    return {
        "speedup": fastest / theirs["targets_per_second"],
        "settings": {
            "config": options.config,
            "items": split.num_items,
            "levels": ids.levels,
            "training_interactions": len(split.train.items),
            "test_cases": len(split.test),
            "epochs": options.epochs,
            "max_history": options.max_history,
            "body_parameters": sum(p.numel() for p in _model(ids, options, seed=0).body.parameters()),
            "group_by_length": options.group_by_length,
            "threads": torch.get_num_threads(),
            "clock": "cpu seconds" if torch.get_num_threads() == 1 else "wall seconds",
        },
        "ours": [first, second],
        "trainer": theirs,
        "ours_minus_trainer": _differences(split, [first_lists, second_lists], their_lists),
    }


def _clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def _config(options: argparse.Namespace) -> GeneratorConfig:
    return GeneratorConfig(
        model=ModelConfig(
            shape="flat",
            body="llama",
            hidden_size=options.hidden_size,
            num_layers=options.layers,
            num_heads=max(1, options.hidden_size // 32),
            max_history=options.max_history,
            dropout=0.0,
        )
    )


def _model(ids: SemanticIds, options: argparse.Namespace, seed: int) -> FlatModel:
    torch.manual_seed(seed)
    model = build_model(_config(options), ids.codes, ids.codebook_sizes, None)
    assert isinstance(model, FlatModel)
    with torch.no_grad():
        for head in model.heads:
            head.bias.zero_()
    return model


def _ours(split: Split, ids: SemanticIds, options: argparse.Namespace, seed: int) -> tuple[dict[str, Any], IntArray]:
    model = _model(ids, options, seed)
    windows = cut_windows(split.train, options.max_history + 1)
    targets = len(split.train.items)
    fit = FitConfig(
        epochs=options.epochs,
        batch_positions=round(options.targets_per_step * int(windows.lengths.sum()) / targets),
        learning_rate=options.learning_rate,
        # Neither side looks at validation; the last weights are kept.
        validate_every=options.epochs,
        device="cpu",
    )
    started = _clock()
    result = fit_generator(model, split.train, fit, seed=seed, validate=lambda: 0.0)
    seconds = _clock() - started
    facts = _facts(targets * options.epochs, ids.levels, seconds)
    facts |= {"seed": seed, "steps": int(result.curve[-1]["steps"]), "loss": result.curve[-1]["loss"]}
    facts["read_tokens"] = int((windows.lengths * ids.levels).sum()) * options.epochs
    lists = _lists(model, split, ids, options)
    return {**facts, **_means(split, lists)}, lists


class _Prefixes(Dataset[dict[str, list[int]]]):
    """Every item of every sequence with what came before it: token ids, and labels on the item's tokens alone."""

    def __init__(self, sequences: Sequences, tokens: Tensor, max_history: int) -> None:
        self.tokens = tokens.tolist()
        self.items = sequences.items
        self.start = np.repeat(sequences.offsets[:-1], sequences.lengths)
        self.start = np.maximum(self.start, np.arange(len(self.items)) - max_history)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        history = self.items[self.start[index] : index + 1].tolist()
        ids = [0, *(token for item in history for token in self.tokens[item])]
        response = len(self.tokens[0])
        return {"input_ids": ids, "labels": [-100] * (len(ids) - response) + ids[-response:]}


class _Padding:
    """The usual collator, which also counts the tokens that it hands out, padding included."""

    def __init__(self) -> None:
        self.tokens = 0

    def __call__(self, samples: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        longest = max(len(sample["input_ids"]) for sample in samples)
        self.tokens += longest * len(samples)

        def pad(name: str, value: int) -> Tensor:
            return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in samples])

        seen = torch.tensor([[1] * len(row["labels"]) + [0] * (longest - len(row["labels"])) for row in samples])
        return {"input_ids": pad("input_ids", 0), "labels": pad("labels", -100), "attention_mask": seen}


def _theirs(split: Split, ids: SemanticIds, options: argparse.Namespace) -> tuple[dict[str, Any], IntArray]:
    model = _model(ids, options, seed=0)
    lm = causal_lm(model)
    data = _Prefixes(split.train, item_tokens(model), options.max_history)
    padding = _Padding()
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(
            model=lm,
            args=_arguments(directory, options),
            train_dataset=data,
            data_collator=padding,
        )
        trainer.remove_callback(PrinterCallback)
        started = _clock()
        outcome = trainer.train()
        seconds = _clock() - started
    load_causal_lm(model, lm.eval())
    facts = _facts(len(data) * options.epochs, ids.levels, seconds)
    facts |= {"steps": outcome.global_step, "read_tokens": padding.tokens}
    lists = _lists(model, split, ids, options)
    return {**facts, **_means(split, lists)}, lists


def _arguments(directory: str, options: argparse.Namespace) -> TrainingArguments:
    """Our optimizer and schedule, as the Trainer names them."""
    fit = FitConfig()
    return TrainingArguments(
        output_dir=directory,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.targets_per_step,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=fit.warmup_share,
        weight_decay=fit.weight_decay,
        adam_beta2=0.98,
        max_grad_norm=fit.max_grad_norm,
        optim="adamw_torch_fused",
        train_sampling_strategy="group_by_length" if options.group_by_length else "random",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )


def _facts(targets: int, levels: int, seconds: float) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "targets": targets,
        "targets_per_second": targets / seconds,
        "sid_tokens_per_second": targets * levels / seconds,
    }


def _lists(model: FlatModel, split: Split, ids: SemanticIds, options: argparse.Namespace) -> IntArray:
    recommender = GenerativeRecommender(_config(options), ids.codes, ids.codebook_sizes, None, model)
    histories = split.test.histories
    seen = None if split.protocol.has_repeats else list(histories)
    return recommender.recommend(histories, _K, constraints=Constraints(deny=seen)).items


def _measured(split: Split, lists: IntArray) -> dict[str, CaseMetric]:
    return accuracy_metrics(lists, split.test.targets, (_K,))


def _means(split: Split, lists: IntArray) -> dict[str, float]:
    measured = _measured(split, lists)
    return {name: float(measured[name].numerator.mean()) for name in _METRICS}


def _differences(split: Split, ours: Sequence[IntArray], theirs: IntArray) -> dict[str, Any]:
    """How much better ours is in the mean over its seeds, with intervals over users."""
    bootstrap = UserBootstrap(split.test.histories.users, n_resamples=1000, seed=0, confidence=0.95)
    sides = [[_measured(split, lists)[name] for lists in ours] for name in _METRICS]
    means = [
        CaseMetric(numerator=np.mean([m.numerator for m in side], axis=0), denominator=side[0].denominator)
        for side in sides
    ]
    other = [_measured(split, theirs)[name] for name in _METRICS]
    found = bootstrap.differences(list(zip(means, other, strict=True)))
    return {name: asdict(interval) for name, interval in zip(_METRICS, found, strict=True)}
