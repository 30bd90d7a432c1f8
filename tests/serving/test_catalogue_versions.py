"""Any order of additions, changes and removals answers as what is made anew over the final catalogue does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_bundle import GENRES, NUM_ITEMS, write_toy_bundle

from feature_store import StoredItem
from recsys.bundle import Bundle
from recsys.data import Catalog
from recsys.generator.filters import Containment, Contains, Eq, Equality, InRange, Range
from recsys.retrieval.content import content_source
from recsys.retrieval.single import SourceRecommender
from serving.answers import Query
from serving.overlay import ChangedItem, ItemFacts, Overlay
from serving.placing import BundlePlacer, Placement, place
from serving.runtime import Changes, RecommenderRuntime
from serving.tables import ItemTables

HISTORY = ("i3", "i7", "n0")
NEW = tuple(f"n{number}" for number in range(6))
FILTERS = (
    Eq(eq=Equality(column="title", value="Film number 3")),
    InRange(range=Range(column="year", min=1960, max=2005)),
    Contains(contains=Containment(column="categories", value="Heist")),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("versions") / "bundle"
    write_toy_bundle(path)
    return Bundle.load(path)


items = st.sampled_from([*NEW, *(f"i{number}" for number in range(0, NUM_ITEMS, 5))])
facts = st.builds(
    ItemFacts,
    title=st.sampled_from([None, "Film number 3", "Another film"]),
    categories=st.lists(st.sampled_from([*GENRES, "Heist"]), max_size=3).map(tuple),
    attributes=st.sampled_from([{}, {"year": "1999"}, {"year": "unknown"}]),
)
changes = st.one_of(
    st.tuples(st.just("put"), items, facts),
    st.tuples(st.just("remove"), items, st.none()),
    st.tuples(st.just("place"), st.sampled_from(NEW), st.none()),
)


class Log:
    """What a store would tell of changes, and where new items were placed."""

    def __init__(self, bundle: Bundle) -> None:
        self.stored: dict[str, StoredItem] = {}
        self.placed: dict[str, Placement] = {}
        self.version = 0
        self._bundle = bundle
        self._random = np.random.default_rng(0)

    def apply(self, change: tuple[str, str, ItemFacts | None], runtime: RecommenderRuntime) -> list[StoredItem]:
        kind, item_id, put = change
        before = self.stored.get(item_id)
        if kind == "place":
            if before is not None and before.text is not None and item_id not in self.placed:
                vector = self._random.normal(size=self._bundle.embeddings.vectors.shape[1]).astype(np.float32)
                (found,) = place(BundlePlacer(self._bundle), vector[None, :], runtime.further_codes)
                assert found is not None
                self.placed[item_id] = found
                self.version += 1
            return []
        if kind == "remove" and before is None and item_id in NEW:
            return []
        text = put.model_dump_json() if put is not None else None if before is None else before.text
        number = None if before is None else before.number
        if number is None and text is not None:
            number = sum(item.number is not None for item in self.stored.values())
        self.stored[item_id] = StoredItem(item_id=item_id, text=text, number=number, is_removed=kind == "remove")
        self.version += 1
        return [self.stored[item_id]]


def anew(bundle: Bundle, log: Log, codes: np.ndarray) -> RecommenderRuntime:
    """A runtime over the final catalogue, of which nothing was made from an earlier version."""
    put = {item_id: ItemFacts.model_validate_json(item.text) for item_id, item in log.stored.items() if item.text}
    numbers = {item_id: item.number or 0 for item_id, item in log.stored.items()}
    added = sorted((item_id for item_id in put if item_id in NEW), key=numbers.__getitem__)
    rows: list[dict[str, Any]] = bundle.catalog.frame.to_dicts() + [{"item_id": item_id} for item_id in added]
    for row in rows:
        if row["item_id"] in put:
            found = put[row["item_id"]]
            row |= {
                "title": found.title,
                "categories": list(found.categories),
                "year": found.attributes.get("year"),
            }
    catalog = Catalog(frame=pl.DataFrame(rows, schema=bundle.catalog.frame.schema))
    placer = BundlePlacer(bundle)
    further = [
        log.placed[item_id].vector if item_id in log.placed else placer.stand_in(put[item_id].categories)[0]
        for item_id in added
    ]
    vectors = np.concatenate([bundle.embeddings.vectors, np.array(further, dtype=np.float32).reshape(-1, 16)])
    listed = np.array([not (i in log.stored and log.stored[i].is_removed) for i in catalog.item_ids])
    waiting = np.array([item_id in NEW and item_id not in log.placed for item_id in catalog.item_ids])
    recommender = bundle.recommender.with_catalog(codes, vectors, np.arange(NUM_ITEMS), shares_weights=True)
    content = content_source(vectors)
    base = RecommenderRuntime.from_bundle(bundle)
    return RecommenderRuntime(
        info=base.info,
        catalog=catalog,
        recommender=recommender,
        dense=SourceRecommender(content, len(vectors)),
        content=content,
        embeddings=vectors,
        codes=codes,
        item_counts=np.pad(bundle.item_counts, (0, len(added))),
        report={},
        placer=placer,
        changes=Changes(
            version=log.version,
            listed=None if listed.all() else listed,
            waiting=waiting if waiting.any() else None,
        ),
    )


def answers(runtime: RecommenderRuntime, history: Sequence[str]) -> dict[str, Any]:
    """All that a service says of a catalogue."""
    catalog = runtime.catalog
    queries = [Query(history=history, k=NUM_ITEMS + 6, max_per_category=2)]
    queries += [Query(history=history, k=8, filter=node) for node in FILTERS]
    queries += [Query(history=history, k=5, categories=[name]) for name, _ in runtime.rules.categories[:2]]
    told: dict[str, Any] = {
        "rows": catalog.frame.to_dicts(),
        "ids": (list(catalog.item_ids), list(catalog.titles), catalog.index_of(catalog.item_ids).tolist()),
        "categories": (runtime.rules.categories, [runtime.categories_of(item) for item in range(len(catalog))]),
        "found": [runtime.words.find(words, limit=50) for words in ("film", "heist another", "n1", "")],
        "items": runtime.count_items(),
    }
    for number, query in enumerate(queries):
        asked, unknown = runtime.ask(query)
        told[f"{number} asked"] = (unknown, None if asked.allow is None else asked.allow.tolist())
        lists = {stage.name: stage.lists([asked])[0] for stage in runtime.stages(query)}
        lists["popular"] = runtime.popular(asked)  # type: ignore[index]
        told |= {f"{number} {name}": found for name, found in lists.items()}
    return told


@settings(max_examples=8, deadline=None, derandomize=True)
@given(steps=st.lists(changes, min_size=4, max_size=12), bulk=st.sampled_from([1, 4]))
def test_any_order_of_changes_answers_as_what_is_made_anew(
    bundle: Bundle, steps: list[tuple[str, str, ItemFacts | None]], bulk: int
) -> None:
    base = RecommenderRuntime.from_bundle(bundle)
    log, overlay, runtime = Log(bundle), Overlay(), base
    half: tuple[RecommenderRuntime, dict[str, Any]] | None = None
    for begin in range(0, len(steps), bulk):
        changed = {item.item_id: item for step in steps[begin : begin + bulk] for item in log.apply(step, runtime)}
        overlay = overlay.updated(log.version, changed.values())
        runtime = base.over(overlay, log.placed, previous=runtime)
        # Filters and groups that were asked for are kept up to date.
        for node in FILTERS:
            if node is not FILTERS[1] or runtime.rules._table.has_numbers("year"):
                runtime.rules.permitted(node)
        runtime.rules.groups("title")
        if half is None and begin + bulk >= len(steps) // 2:
            half = runtime, answers(runtime, HISTORY)
    assert_same(answers(runtime, HISTORY), answers(anew(bundle, log, runtime.codes.whole()), HISTORY))
    assert half is not None
    earlier, told = half
    assert_same(answers(earlier, HISTORY), told)


def test_an_item_that_gets_its_place_later_has_a_row_from_then_on(bundle: Bundle) -> None:
    first, second = (
        ChangedItem(item_id=item_id, facts=ItemFacts(title=item_id), number=number, is_removed=False)
        for number, item_id in enumerate(NEW[:2])
    )
    overlay = Overlay(version=1, items={NEW[0]: first, NEW[1]: second})
    tables = ItemTables.of(bundle.catalog, bundle.item_counts, None, None)
    without = tables.over(overlay, [first], None)
    assert without.catalog.num_items == NUM_ITEMS + 1
    later = Overlay(version=2, items=overlay.items)
    assert without.precedes(later, [first, second])
    found = without.over(later, [first, second], None)
    assert found.catalog.item_ids[NUM_ITEMS:] == list(NEW[:2])
    assert found.words.find(NEW[1], limit=1) == ([NUM_ITEMS + 1], 1)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if not hasattr(value, "items") or isinstance(value, dict):
            assert found[name] == value, name
            continue
        assert found[name].items.tolist() == value.items.tolist(), name
        np.testing.assert_allclose(found[name].scores, value.scores, atol=1e-5, err_msg=name)
