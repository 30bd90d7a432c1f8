"""Makes the offline table: mines the histories, matches tags with items, has texts written and checks each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from recsys.data import Catalog
from recsys.profile.attributes import ItemAttributes
from recsys.profile.intents.config import IntentConfig
from recsys.profile.intents.explain import Explainer, RuleExplainer
from recsys.profile.intents.language import LanguageExplainer, LanguageMiner
from recsys.profile.intents.mining import Interest, RuleMiner
from recsys.profile.intents.rubric import PRINCIPLES, Claim, ExplanationRubric, Subject
from recsys.profile.intents.table import IntentTable
from recsys.profile.intents.tags import Part, PartReader, Tag, TagVocabulary
from recsys.profile.writers import TextWriter

_RANDOM_TAGS = 500
_RANDOM_ITEMS = 200
_ROUNDING = 1e-9


class SubjectReader:
    """Items as texts about them see them.

    Args:
        attributes: of the catalogue.
        parts: of the same catalogue.
    """

    def __init__(self, attributes: ItemAttributes, parts: PartReader) -> None:
        self._attributes = attributes
        self._parts = parts

    def of(self, item: int) -> Subject:
        """An item (dense index)."""
        return Subject(
            title=self._attributes.titles[item], attributes=self._attributes.of(item), parts=self._parts.of(item)
        )


def build_table(
    catalog: Catalog,
    histories: Sequence[Sequence[int]],
    config: IntentConfig,
    writer: TextWriter | None = None,
    writer_name: str = "language model",
) -> IntentTable:
    """The table of a catalogue and the users whose histories are known.

    Args:
        catalog: all items.
        histories: dense indices, oldest first.
        config: sizes.
        writer: a language model that reads the interests and writes the texts; rules do when None.
        writer_name: what the table calls it.
    """
    attributes = ItemAttributes(catalog)
    vocabulary = TagVocabulary.of(catalog, attributes, config.tags)
    parts = PartReader(catalog, attributes, vocabulary.phrases)
    subjects = SubjectReader(attributes, parts)
    histories = histories[:: -(-len(histories) // config.table.max_users) or 1]
    miner: RuleMiner | LanguageMiner
    explainer: Explainer
    if writer is None:
        miner = RuleMiner(vocabulary, parts, attributes, config.interests)
        explainer = RuleExplainer(attributes.commonplace)
    else:
        miner = LanguageMiner(writer, vocabulary, parts, attributes, config.interests)
        explainer = LanguageExplainer(writer, writer_name)
    mined = miner.mine(histories)
    users_of = Counter(tag for interests in mined for tag in {tag for each in interests for tag in each.tags})
    ranked = sorted(users_of, key=lambda tag: (-users_of[tag], tag.name))
    pairs = list(islice(_pairs(vocabulary, ranked, config), config.table.max_texts))
    claims = [Claim(tag=tag, item=subjects.of(item), history=None) for tag, item in pairs]
    written = explainer.explain(claims)
    rubric = ExplanationRubric(attributes)
    broken = [rubric.broken(text, claim) for text, claim in zip(written, claims, strict=True)]
    kept = zip(pairs, written, broken, strict=True)
    return IntentTable(
        config=config,
        vocabulary=vocabulary,
        texts={(tag.name, catalog.item_ids[item]): text for (tag, item), text, faults in kept if not faults},
        explainer=explainer.name,
        metrics={
            **_mining_metrics(mined),
            **({"said": dict(+miner.counts)} if isinstance(miner, LanguageMiner) else {}),
            "tags": len(ranked),
            "tag_validity": tag_validity(vocabulary, ranked),
            "items_with_a_tag": _share_of_items(vocabulary, ranked),
            "explanations": len(written),
            "explanations_passed": _share(sum(not faults for faults in broken), len(broken)),
            "kept": {name: _share(sum(name not in faults for faults in broken), len(broken)) for name in PRINCIPLES},
        },
    )


def tag_validity(vocabulary: TagVocabulary, tags: Sequence[Tag], seed: int = 0) -> float | None:
    """Share of the tags that retrieve at least one item with a cosine that reaches the 99th percentile of what random
    tags, of any two parts each, have with random items. None without tags."""
    if not tags:
        return None
    random = np.random.default_rng(seed)
    parts: list[Part] = sorted(vocabulary.bearers)
    drawn = random.integers(len(parts), size=(_RANDOM_TAGS, 2))
    cosines = [
        vocabulary.cosines(vocabulary.tag(parts[first], parts[second]))[
            random.integers(vocabulary.num_items, size=_RANDOM_ITEMS)
        ]
        for first, second in drawn
    ]
    bound = float(np.quantile(np.concatenate(cosines), 0.99))
    valid = 0
    for tag in tags:
        best = vocabulary.items(tag, 1)
        valid += len(best) > 0 and float(vocabulary.cosines(tag)[best[0]]) >= bound - _ROUNDING
    return valid / len(tags)


def _pairs(vocabulary: TagVocabulary, tags: Sequence[Tag], config: IntentConfig) -> Iterator[tuple[Tag, int]]:
    for tag in tags:
        for item in vocabulary.items(tag, config.table.items_per_tag).tolist():
            yield tag, item


def _mining_metrics(mined: Sequence[Sequence[Interest]]) -> dict[str, Any]:
    with_any = sum(bool(interests) for interests in mined)
    return {
        "users": len(mined),
        "users_with_interests": _share(with_any, len(mined)),
        "interests_per_user": _share(sum(map(len, mined)), len(mined)),
        "tags_per_user": _share(sum(len(each.tags) for interests in mined for each in interests), len(mined)),
    }


def _share_of_items(vocabulary: TagVocabulary, tags: Sequence[Tag]) -> float | None:
    covered = np.zeros(vocabulary.num_items, dtype=bool)
    for tag in tags:
        covered[vocabulary.fitting(tag)] = True
    return _share(int(covered.sum()), vocabulary.num_items)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
