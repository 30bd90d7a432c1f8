"""The claim: tags mined from histories are of the catalogue, say what users choose next, and reach items of the tail;
explanations by rule keep to the facts, and the rubric catches those that do not.

Leave-last-out on MovieLens latest-small and Amazon Beauty, rules only, no model. For users spread evenly over all:

    next_item   share of users whose held-out next item fits one of their tags, against as many tags of another user and
                as many good tags of the catalogue drawn at random
    retrieval   Recall@100 of the skip-gram counter alone, and with the tags (reciprocal ranks, weight chosen on the
                validation item): of all targets, and of those in the tail, the less popular half of the items
    explanations, tags    what `recsys intents build` prints
    rubric      texts of the table, and the same with one lie each: how many of either pass

    recsys bench intents [--users 1500] [--data-root FOLDER] [--seed 0] [--json]
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from recsys.data import DataConfig, Dataset, Sequences, load_dataset
from recsys.evaluation.baselines import SkipGram
from recsys.profile.attributes import ItemAttributes
from recsys.profile.intents.build import SubjectReader, build_table
from recsys.profile.intents.config import IntentConfig
from recsys.profile.intents.mining import Interest, RuleMiner
from recsys.profile.intents.rubric import Claim, ExplanationRubric
from recsys.profile.intents.table import IntentTable
from recsys.profile.intents.tags import PartReader, Tag, TagVocabulary, fits

DATASETS = {"movielens": "ml_latest_small", "beauty": "amazon14_beauty"}
_DEPTH = 100
_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
_RRF = 60
_FORGED = 200
_BLOCK = 256


def main(arguments: list[str]) -> dict[str, Any]:
    """The metrics of both data sets."""
    parser = argparse.ArgumentParser(prog="recsys bench intents", description=__doc__)
    parser.add_argument("--users", type=int, default=1500, help="users of each data set at most")
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    metrics = {}
    for name, folder in DATASETS.items():
        started = time.perf_counter()
        dataset = load_dataset(DataConfig(source="files", path=options.data_root / folder))
        metrics[name] = {
            **_measure(dataset, options.users, options.seed),
            "seconds": round(time.perf_counter() - started, 1),
        }
    return metrics


def _measure(dataset: Dataset, most: int, seed: int) -> dict[str, Any]:
    catalog = dataset.catalog
    whole = [items for items in dataset.interactions.sequences() if len(items) >= 4]
    train = [items[:-2] for items in whole]
    counts = np.bincount(np.concatenate(train), minlength=catalog.num_items)
    is_tail = counts <= np.median(counts)
    users = whole[:: -(-len(whole) // most)]
    known, targets = [items[:-1].tolist() for items in users], np.array([items[-1] for items in users])
    table = build_table(catalog, known, IntentConfig())
    attributes = ItemAttributes(catalog)
    reader = PartReader(catalog, attributes, table.vocabulary.phrases)
    miner = RuleMiner(table.vocabulary, reader, attributes, table.config.interests)
    mined = miner.mine(known)
    counter = SkipGram().fit(Sequences.from_lists(train), catalog.num_items)
    before = [items[:-2].tolist() for items in users]
    on_valid = _recalls(
        counter, table.vocabulary, before, miner.mine(before), np.array([items[-2] for items in users]), is_tail
    )
    chosen = _chosen(on_valid)
    on_test = _recalls(counter, table.vocabulary, known, mined, targets, is_tail)
    alone, with_tags = on_test[0.0], on_test[chosen]
    return {
        "users": len(users),
        **{name: value for name, value in table.metrics.items() if name != "users"},
        "tail_items_of_tags": float(np.mean(_listed(table, mined)[is_tail])),
        "next_item": _next_item(table.vocabulary, reader, mined, targets, seed),
        "retrieval": {
            "weight_of_tags": chosen,
            "on_validation": {str(weight): recalls for weight, recalls in on_valid.items()},
            "alone": alone,
            "with_tags": with_tags,
            "tail_relative_gain": with_tags["tail"] / alone["tail"] - 1 if alone["tail"] else None,
        },
        "rubric": _forgeries(table, dataset, attributes, reader, seed),
    }


def _tags(interests: Sequence[Interest]) -> list[Tag]:
    return list(dict.fromkeys(tag for interest in interests for tag in interest.tags))


def _listed(table: IntentTable, mined: Sequence[Sequence[Interest]]) -> npt.NDArray[np.bool_]:
    """bool [num_items]: among the best items of some user's tag."""
    listed = np.zeros(table.vocabulary.num_items, dtype=bool)
    for tag in {tag for interests in mined for tag in _tags(interests)}:
        listed[table.vocabulary.items(tag, table.config.table.items_per_tag)] = True
    return listed


def _next_item(
    vocabulary: TagVocabulary,
    reader: PartReader,
    mined: Sequence[Sequence[Interest]],
    targets: npt.NDArray[np.int64],
    seed: int,
) -> dict[str, Any]:
    """Shares with the standard error of the difference to the better control."""
    random = np.random.default_rng(seed)
    own = [_tags(interests) for interests in mined]
    everything = sorted({tag for tags in own for tag in tags}, key=lambda tag: tag.parts)
    others = random.permutation(len(own))
    hits: dict[str, list[bool]] = defaultdict(list)
    for user, (tags, target) in enumerate(zip(own, targets.tolist(), strict=True)):
        parts = reader.of(target)
        theirs = own[others[user]]
        drawn = [everything[each] for each in random.choice(len(everything), len(tags), replace=False)]
        hits["own_tags"].append(any(fits(tag, parts) for tag in tags))
        hits["tags_of_another"].append(any(fits(tag, parts) for tag in theirs[: len(tags)]))
        hits["random_tags"].append(any(fits(tag, parts) for tag in drawn))
    shares = {name: float(np.mean(each)) for name, each in hits.items()}
    control = max(("tags_of_another", "random_tags"), key=lambda name: shares[name])
    gaps = np.array(hits["own_tags"], dtype=float) - np.array(hits[control], dtype=float)
    return {**shares, "difference": float(gaps.mean()), "standard_error": float(gaps.std() / np.sqrt(len(gaps)))}


def _recalls(
    counter: SkipGram,
    vocabulary: TagVocabulary,
    histories: Sequence[Sequence[int]],
    mined: Sequence[Sequence[Interest]],
    targets: npt.NDArray[np.int64],
    is_tail: npt.NDArray[np.bool_],
) -> dict[float, dict[str, float]]:
    """Recall of all and of tail targets by weight of the tags."""
    similarities = _similarities(vocabulary, mined)
    found: dict[float, list[bool]] = {weight: [] for weight in _WEIGHTS}
    for begin in range(0, len(histories), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        scores = counter.scores(Sequences.from_lists(histories[rows]))
        by_counter, by_tags = _ranks(scores), _ranks(similarities[rows].toarray())
        target = targets[rows]
        for weight in _WEIGHTS:
            fused = (1 - weight) / (_RRF + by_counter) + weight / (_RRF + by_tags)
            fused[np.isneginf(scores)] = -np.inf
            own = np.take_along_axis(fused, target[:, None], axis=1)
            found[weight] += ((fused > own).sum(axis=1) < _DEPTH).tolist()
    tail = is_tail[targets]
    return {
        weight: {"all": float(np.mean(hits)), "tail": float(np.mean(np.array(hits)[tail])) if tail.any() else 0.0}
        for weight, hits in found.items()
    }


def _similarities(vocabulary: TagVocabulary, mined: Sequence[Sequence[Interest]]) -> sparse.csr_array:
    """float [users, num_items]: cosines of the items with the user's tags, each by the weight of its interest."""
    parts = {part: column for column, part in enumerate(sorted(vocabulary.bearers))}
    items = sparse.lil_array((vocabulary.num_items, len(parts)))
    for part, column in parts.items():
        items[vocabulary.bearers[part], [column]] = vocabulary.weight(part)
    users = sparse.lil_array((len(mined), len(parts)))
    for user, interests in enumerate(mined):
        for interest in interests:
            for tag in interest.tags:
                weights = np.array([vocabulary.weight(part) for part in tag.parts])
                for part, weight in zip(tag.parts, weights / np.linalg.norm(weights), strict=True):
                    users[user, parts[part]] += interest.weight * weight
    lengths = np.sqrt((items.tocsr() ** 2).sum(axis=1))
    scaled = sparse.diags_array(1 / np.maximum(lengths, 1e-12)) @ items.tocsr()
    return sparse.csr_array(users.tocsr() @ scaled.T)


def _ranks(scores: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """float64 [B, N]: 1 for the best; equals by index."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.empty(scores.shape)
    np.put_along_axis(ranks, order, np.arange(1.0, scores.shape[1] + 1)[None, :], axis=1)
    return ranks


def _chosen(recalls: dict[float, dict[str, float]]) -> float:
    """The weight with the best tail recall of those that lose nothing overall."""
    allowed = [weight for weight in _WEIGHTS if recalls[weight]["all"] >= recalls[0.0]["all"]]
    return max(allowed, key=lambda weight: (recalls[weight]["tail"], -weight))


def _forgeries(
    table: IntentTable, dataset: Dataset, attributes: ItemAttributes, reader: PartReader, seed: int
) -> dict[str, Any]:
    """Shares of true texts, and of texts with one lie, that pass; kappa and balanced accuracy of the verdicts."""
    random = np.random.default_rng(seed)
    subjects = SubjectReader(attributes, reader)
    rubric = ExplanationRubric(attributes)
    index = {item_id: item for item, item_id in enumerate(dataset.catalog.item_ids)}
    keys = sorted(table.texts)
    names = sorted({each.name for item in range(dataset.catalog.num_items) for each in attributes.of(item)})
    titles = [title for title in attributes.titles if len(title.split()) > 1]

    def another_name(text: str, item: int) -> str:
        own = {each.name for each in attributes.of(item)} | attributes_said(text)
        return text[:-1] + f", also {random.choice([name for name in names if name not in own])}."

    def attributes_said(text: str) -> set[str]:
        return {each.name for each in attributes.named(text)}

    lies: dict[str, Callable[[str, int], str]] = {
        "attribute": another_name,
        "title": lambda text, item: text[:-1] + f', like "{random.choice(titles)}".',
        "price": lambda text, item: text[:-1] + ", for $9.99.",
        "superlative": lambda text, item: text[:-1] + ", the best there is.",
        "no_tag": lambda text, item: "Fits your taste.",
    }
    passed: dict[str, list[bool]] = defaultdict(list)
    for place in random.choice(len(keys), min(_FORGED, len(keys)), replace=False).tolist():
        tag_name, item_id = keys[place]
        tag = table.vocabulary.parse(tag_name)
        item, text = index[item_id], table.texts[keys[place]]
        if tag is None or tag.name != tag_name:
            continue  # two names that read alike
        claim = Claim(tag=tag, item=subjects.of(item), history=None)
        passed["true"].append(not rubric.broken(text, claim))
        for name, lie in lies.items():
            passed[name].append(not rubric.broken(lie(text, item), claim))
    shares = {name: float(np.mean(each)) for name, each in passed.items()}
    true_rate, false_rate = shares["true"], float(np.mean([shares[name] for name in lies]))
    agreement = (true_rate + 1 - false_rate) / 2
    chance = 0.5  # as many true texts as lies
    return {
        "texts": len(passed["true"]),
        "passed": shares,
        "balanced_accuracy": agreement,
        "kappa": (agreement - chance) / (1 - chance),
    }
