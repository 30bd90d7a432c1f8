"""Which encoder, by a table: how well item vectors alone find what users take next, tuned and zero-shot.

For each data set (Beauty and Scientific) and encoder: Recall@10 and Recall@50 of the test targets among all items, seen
ones masked, with a user as the unit mean of the unit vectors of the history's items and cosine as the score; the paired
difference to the untuned text encoder with its interval; and Recall@50 from an item to the next one, over transitions
that no training sequence holds. `zero_shot` is the text encoder tuned on the other data set alone. These sets have text
only: fusion of several modalities has nothing to show here.

    recsys bench encoders [--data beauty scientific] [--encoders text aligned ...] [--seeds 3] [--graph-seeds 1]
                          [--data-root FOLDER] [--json]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recsys.data import Catalog, IntArray, Sequences, Split
from recsys.encoder import EncoderConfig, ItemEmbeddings, encode_catalog
from recsys.encoder.alignment.config import AlignmentConfig
from recsys.encoder.alignment.retrieval import Vectors, bag_of_words, mean_item_vectors, target_ranks
from recsys.encoder.alignment.towers import apply_head
from recsys.encoder.alignment.tuning import tune_encoder
from recsys.encoder.config import SpectralConfig
from recsys.encoder.graph import CM3Config, LightGCNConfig, SIGERConfig
from recsys.encoder.text import item_texts
from recsys.evaluation.bootstrap import UserBootstrap
from recsys.evaluation.metrics import CaseMetric
from training.bench import COMPARED, compared_data

_REFERENCE = "text"
_SEEDED = ("aligned", "zero_shot", "lightgcn", "cm3", "cm3_plain", "siger")
_ENCODERS = ("bag_of_words", _REFERENCE, "cooccurrence", "text_and_cooccurrence", *_SEEDED)
_DEPTHS = (10, 50)
_TRANSITION_DEPTH = 50


@dataclass(frozen=True, kw_only=True)
class _Data:
    """A data set, split, and what its text encoder made of it."""

    catalog: Catalog
    split: Split
    text: ItemEmbeddings


def main(arguments: list[str]) -> dict[str, Any]:
    """One entry a data set and encoder."""
    parser = argparse.ArgumentParser(prog="recsys bench encoders", description=__doc__)
    parser.add_argument("--data", nargs="+", choices=list(COMPARED), default=list(COMPARED))
    parser.add_argument("--encoders", nargs="+", choices=_ENCODERS, default=list(_ENCODERS))
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 101), metavar="N", help="of the text tuning")
    parser.add_argument("--graph-seeds", type=int, default=1, choices=range(1, 101), metavar="N", help="of the graphs")
    parser.add_argument("--data-root", type=Path, help="folder that holds the data sets in the import format")
    options = parser.parse_args(arguments)
    needed = dict.fromkeys([*options.data, *(_other(data) for data in options.data)])
    if "zero_shot" not in options.encoders:
        needed = dict.fromkeys(options.data)
    loaded = {data: _load(data, options.data_root) for data in needed}
    return {data: _data_set(data, loaded, options) for data in options.data}


def _other(data: str) -> str:
    return next(name for name in COMPARED if name != data)


def _load(data: str, root: Path | None) -> _Data:
    dataset, split = compared_data(data, root)
    return _Data(catalog=dataset.catalog, split=split, text=encode_catalog(dataset.catalog, EncoderConfig()))


def _data_set(data: str, loaded: dict[str, _Data], options: argparse.Namespace) -> dict[str, Any]:
    here = loaded[data]
    reference = _hits(here, here.text.vectors)
    rows = {}
    for name in options.encoders:
        seeds = 1
        if name in _SEEDED:
            seeds = options.seeds if name in ("aligned", "zero_shot") else options.graph_seeds
        started = time.process_time()
        vectors = [_vectors(name, seed, data, loaded) for seed in range(seeds)]
        seconds = (time.process_time() - started) / seeds
        rows[name] = {**_row(here, vectors, reference), "cpu_seconds": round(seconds, 1), "seeds": seeds}
    return rows


def _vectors(name: str, seed: int, data: str, loaded: dict[str, _Data]) -> Vectors:
    here = loaded[data]
    fitted: dict[str, Callable[[], Vectors]] = {
        "bag_of_words": lambda: bag_of_words([""], item_texts(here.catalog, EncoderConfig()))[1],
        _REFERENCE: lambda: here.text.vectors,
        "cooccurrence": partial(_collaborative, here, SpectralConfig()),
        "text_and_cooccurrence": lambda: _fused(here, SpectralConfig()).vectors,
        "aligned": partial(_tuned, here, here, seed),
        "zero_shot": lambda: _tuned(loaded[_other(data)], here, seed),
        "lightgcn": partial(_collaborative, here, LightGCNConfig(seed=seed)),
        "cm3": partial(_collaborative, here, CM3Config(seed=seed)),
        "cm3_plain": partial(_collaborative, here, CM3Config(seed=seed, uniformity="plain")),
        "siger": partial(_collaborative, here, SIGERConfig(seed=seed)),
    }
    return fitted[name]()


def _fused(data: _Data, config: SpectralConfig | LightGCNConfig | CM3Config | SIGERConfig) -> ItemEmbeddings:
    encoder = EncoderConfig(collaborative_weight=1, collaborative=config)
    return encode_catalog(data.catalog, encoder, train=data.split.train)


def _collaborative(data: _Data, config: SpectralConfig | LightGCNConfig | CM3Config | SIGERConfig) -> Vectors:
    """The part beside the text alone."""
    fused = _fused(data, config)
    return fused.vectors[:, fused.text_dim :]


def _tuned(source: _Data, target: _Data, seed: int) -> Vectors:
    """Vectors of `target`'s items by the text encoder tuned on `source`."""
    with tempfile.TemporaryDirectory() as scratch:
        tuned = Path(scratch) / "model"
        tune_encoder(EncoderConfig(), source.catalog, source.split.train, AlignmentConfig(seed=seed), tuned)
        return apply_head(tuned, target.text.vectors)


def _hits(data: _Data, vectors: Vectors) -> dict[int, np.ndarray]:
    """float64 [U] a depth: whether each test target is found."""
    test = data.split.test
    ranks = target_ranks(mean_item_vectors(vectors, test.histories), vectors, test.targets, test.histories)
    return {depth: (ranks < depth).astype(np.float64) for depth in _DEPTHS}


def _row(data: _Data, vectors: list[Vectors], reference: dict[int, np.ndarray]) -> dict[str, Any]:
    hits = [_hits(data, matrix) for matrix in vectors]
    bootstrap = UserBootstrap(data.split.test.histories.users, n_resamples=1000, seed=0, confidence=0.95)
    row: dict[str, Any] = {}
    for depth in _DEPTHS:
        mean = np.mean([found[depth] for found in hits], axis=0)
        ones = np.ones_like(mean)
        (interval,) = bootstrap.intervals([CaseMetric(numerator=mean, denominator=ones)])
        (difference,) = bootstrap.differences(
            [
                (
                    CaseMetric(numerator=mean, denominator=ones),
                    CaseMetric(numerator=reference[depth], denominator=ones),
                )
            ]
        )
        values = [float(found[depth].mean()) for found in hits]
        row[f"recall@{depth}"] = {
            **asdict(interval),
            "values": values,
            "std": statistics.stdev(values) if len(values) > 1 else None,
            "difference_to_text": asdict(difference),
        }
    pairs = _unseen_transitions(data.split)
    found = [target_ranks(matrix[pairs[:, 0]], matrix, pairs[:, 1], _alone(pairs[:, 0])) for matrix in vectors]
    row[f"transition_recall@{_TRANSITION_DEPTH}"] = [float((ranks < _TRANSITION_DEPTH).mean()) for ranks in found]
    return row


def _unseen_transitions(split: Split) -> IntArray:
    """int64 [m, 2]: from the last item of each test history to the target, unless training has the two in a row."""
    train, test = split.train, split.test
    follows = np.ones(len(train.items), dtype=bool)
    follows[train.offsets[1:] - 1] = False
    rows = np.flatnonzero(follows)
    known = train.items[rows] * split.num_items + train.items[rows + 1]
    filled = np.flatnonzero(test.histories.lengths > 0)
    last = test.histories.items[test.histories.offsets[1:][filled] - 1]
    targets = test.targets[filled]
    unseen = ~np.isin(last * split.num_items + targets, known) & (last != targets)
    return np.stack([last, targets], axis=1)[unseen]


def _alone(items: IntArray) -> Sequences:
    return Sequences(users=np.arange(len(items)), offsets=np.arange(len(items) + 1), items=items)
