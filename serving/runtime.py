"""Turns a history of item ids into an explained list of items. Knows no users, no store and no HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from recsys.bundle import Bundle
from recsys.data import Catalog
from recsys.data.sequences import IntArray
from recsys.errors import ArtifactError
from recsys.generator import GenerativeRecommender, Recommender
from recsys.generator.constraints import Cap
from recsys.generator.diversity import walk_one
from recsys.generator.groups import Groups
from recsys.generator.lm.reason import ReasonConfig
from recsys.profile.profile import Profile, Statement
from recsys.retrieval.index import ItemIndex
from recsys.retrieval.single import SourceRecommender
from recsys.retrieval.sources import Source as Candidates
from recsys.retrieval.sources import TowerSource
from recsys.retrieval.towers import ContentTower
from serving.answers import Answer, FallbackReason, Pick, Query, Reason, Source
from serving.stages import (
    FAILED,
    Asked,
    Listed,
    ProfileStage,
    ReasoningStage,
    RecommenderStage,
    Stage,
    StageName,
    word_reader,
)

_QUICK_S = 0.5
"""A warm-up tries a batch only of what answers one request in this time."""
_TRIAL_BATCH = 8
_SAID_OF: Mapping[StageName, str] = {"profile": "reader of profiles"}

_EXPLAINED_HISTORY = 50
"""The most recent items that a reason may name: what the model reads, or about that."""

_log = structlog.get_logger(__name__)


class NoReasonsError(ValueError):
    """The model that is served gives no reasons in words."""


class UnknownCategoryError(ValueError):
    """A category filter names no category of the catalogue."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What is being served."""

    name: str
    model_version: str
    created_at: datetime
    libraries: Mapping[str, str]


class RecommenderRuntime:
    """A model ready to answer; immutable, so that many threads may ask at a time.

    Args:
        info: names the model.
        catalog: all items.
        recommender: generates lists.
        reader: reads profiles, if its body is a language model and there is no fusion; `recommender` when None.
        fused: ranks what the generator and further sources propose; is asked first, where there is one.
        reasoner: writes reasons first in mode `reason`.
        dense: lists when these cannot, by one vector a user; faster, and worse.
        counter: lists when that cannot, by what followed the history's items in the log; faster and worse again.
        no_reasons: why there is no `reasoner`, in one line.
        embeddings: float32 [num_items, dim], for the reasons.
        codes: int64 [num_items, levels], the semantic IDs.
        item_counts: int64 [num_items], interactions an item, for the fallback.
        report: the evaluation, shown as it is.
    """

    def __init__(
        self,
        *,
        info: ModelInfo,
        catalog: Catalog,
        recommender: Recommender,
        reader: Recommender | None = None,
        fused: Recommender | None = None,
        reasoner: GenerativeRecommender | None = None,
        dense: Recommender | None = None,
        counter: Recommender | None = None,
        no_reasons: str | None = "this model gives no reasons in words",
        embeddings: npt.NDArray[np.float32],
        codes: IntArray,
        item_counts: IntArray,
        report: Mapping[str, Any],
    ) -> None:
        self.info = info
        self.catalog = catalog
        self.codes = codes
        self.item_counts = item_counts
        self.report = report
        self.no_reasons = None if reasoner is not None else no_reasons
        """Why mode `reason` is refused, in one line; None where it is not."""
        num_items = catalog.num_items
        direct = (
            None if fused is None else RecommenderStage("fusion", "fusion", fused, num_items),
            RecommenderStage("generator", "generator", recommender, num_items),
            None if dense is None else RecommenderStage("dense", "dense", dense, num_items),
            None if counter is None else RecommenderStage("counter", "counter", counter, num_items),
        )
        self._direct: tuple[Stage, ...] = tuple(stage for stage in direct if stage is not None)
        self._reasoning = None if reasoner is None else ReasoningStage(reasoner)
        # Only the generator reads words, and only where it is the best source there is.
        words = word_reader(recommender if reader is None else reader) if fused is None else None
        self._profile = None if words is None else ProfileStage(words)
        # Not divided by their lengths here: they may be a map of a file, which all processes share.
        self._vectors = embeddings
        # Equal counts are ordered by dense index, so that a list does not change from one start to the next.
        self._by_popularity = np.argsort(-item_counts, kind="stable")
        smoothed = item_counts + 1.0
        self._popularity_scores = np.log(smoothed / smoothed.sum())
        self._categories: list[list[str]] = catalog.frame["categories"].list.drop_nulls().to_list()
        self._category_groups = Groups.from_labels(self._categories)
        members = catalog.frame.with_row_index("index").select("index", "categories").explode("categories")
        self._items_of_category: dict[str, IntArray] = {
            category: group["index"].to_numpy().astype(np.int64)
            for (category,), group in members.drop_nulls().group_by("categories")
        }
        self.categories = sorted(
            ((category, len(items)) for category, items in self._items_of_category.items()),
            key=lambda entry: (-entry[1], entry[0]),
        )
        """Categories with their number of items, largest first."""

    @classmethod
    def from_bundle(cls, bundle: Bundle, onnx: Path | None = None) -> RecommenderRuntime:
        """The runtime of a loaded bundle.

        Args:
            bundle: the model with everything it needs.
            onnx: what `recsys export` made of the same model: ONNX Runtime then decodes, in the fusion too. PyTorch
                still writes reasons and reads profiles.

        Raises:
            ArtifactError: the export is damaged, or was made of another model.
        """
        manifest, no_reasons = bundle.manifest, bundle.no_reasons
        recommender, fused = bundle.recommender, bundle.fused
        sources = {} if fused is None else fused.pool.sources
        num_items = bundle.catalog.num_items
        if onnx is not None:
            # Imported here: it is needed by few.
            from recsys.generator.onnx import onnx_recommender

            recommender = onnx_recommender(bundle.recommender, onnx, threads=1)
            fused = None if fused is None else fused.with_generator(recommender)
        return cls(
            info=ModelInfo(
                name=manifest.name,
                model_version=manifest.model_version,
                created_at=manifest.created_at,
                libraries=manifest.libraries,
            ),
            catalog=bundle.catalog,
            recommender=recommender,
            # An export reads items alone.
            reader=bundle.recommender,
            fused=fused,
            reasoner=bundle.recommender if no_reasons is None else None,
            dense=SourceRecommender(sources.get("sasrec") or _content_source(bundle), num_items),
            counter=SourceRecommender(sources["skip_gram"], num_items) if "skip_gram" in sources else None,
            no_reasons=no_reasons,
            embeddings=bundle.embeddings.vectors,
            codes=bundle.semantic_ids.codes,
            item_counts=bundle.item_counts,
            report=bundle.report,
        )

    @property
    def reads_profiles(self) -> bool:
        """Whether `recommend` makes use of a profile."""
        return self._profile is not None

    @property
    def all_stages(self) -> tuple[Stage, ...]:
        """Every way to a list that this model has, popularity aside."""
        further: tuple[Stage | None, ...] = (self._reasoning, self._profile)
        return tuple(stage for stage in further if stage is not None) + self._direct

    def stages(self, query: Query) -> tuple[Stage, ...]:
        """The ways to a list for `query`, best first; behind them stands `popular`, which always has one.

        Raises:
            NoReasonsError: the model gives no reasons; see `no_reasons`.
        """
        if query.mode == "reason":
            if self._reasoning is None:
                raise NoReasonsError(self.no_reasons)
            return (self._reasoning, *self._direct)
        if query.profile is not None and self._profile is not None:
            return (self._profile, *self._direct)
        return self._direct

    def warm_up(self, observe: Callable[[StageName, int, float], None] | None = None) -> None:
        """Generate lists, so that the first user does not wait for lazy initialisation, and a broken model is found.

        Args:
            observe: is told how many requests a call of a stage had, and how many seconds it took.

        Raises:
            ArtifactError: the catalogue is empty, or a way to an answer fails.
        """
        if not self.catalog.num_items:
            raise ArtifactError(f"bundle: the catalogue of {self.info.name} has no items; build the bundle again")
        trial = Asked(
            k=1,
            history=self._by_popularity[:1],
            denied=np.zeros(0, dtype=np.int64),
            profile=Profile(statements=(Statement(text="Likes this.", source="edited"),)),
            reason=ReasonConfig(chains=1, max_tokens=1),
        )
        for stage in self.all_stages:
            try:
                stage.lists([trial])
                started = time.perf_counter()
                stage.lists([trial])
                seconds = time.perf_counter() - started
                if observe is not None:
                    observe(stage.name, 1, seconds)
                    if stage.shares_calls and seconds < _QUICK_S:
                        started = time.perf_counter()
                        stage.lists([trial] * _TRIAL_BATCH)
                        observe(stage.name, _TRIAL_BATCH, time.perf_counter() - started)
            except Exception as error:  # it may fail in any way; unlike a request, a start has no substitute
                raise ArtifactError(
                    f"bundle: the {_SAID_OF.get(stage.name, stage.name)} of {self.info.name} cannot answer: {error!r}; "
                    "build the bundle again"
                ) from error

    def ask(self, query: Query, reason: ReasonConfig | None = None) -> tuple[Asked, list[str]]:
        """`query` in the catalogue's numbers, and the ids of it that the catalogue does not have.

        Raises:
            UnknownCategoryError: no item has that category.
        """
        history, excluded = self.catalog.index_of(query.history), self.catalog.index_of(query.exclude)
        unknown = [*_unknown(query.history, history), *_unknown(query.exclude, excluded)]
        history = history[history >= 0]
        denied = excluded[excluded >= 0]
        if query.exclude_seen:
            denied = np.concatenate([denied, history])
        most = query.max_per_category
        asked = Asked(
            k=query.k,
            history=history,
            denied=np.unique(denied),
            allow=self._allowed(query.categories),
            categories=tuple(sorted(set(query.categories))),
            caps=[] if most is None else [Cap(groups=self._category_groups, most=most)],
            max_per_category=most,
            session=query.session,
            profile=query.profile,
            reason=reason or ReasonConfig(),
        )
        return asked, list(dict.fromkeys(unknown))

    def recommend(
        self, history: Sequence[str], *, k: int, reason: ReasonConfig | None = None, **further: Any
    ) -> Answer:
        """The k best items after `history`; fewer when the restrictions leave fewer. Without deadlines, in this thread.

        The fusion answers if there is one, else the generator, as long as the catalogue has any item of the history;
        if it has none, the most popular items do. In mode `reason` the generator answers, reasons first. What fails is
        logged and replaced by the next of these: a user gets a list as long as there is one.

        Args:
            history: item ids, oldest first; unknown ones are left out.
            k: length of the list.
            reason: how reasons are written, in mode `reason`; the default when None.
            further: fields of `Query`.

        Raises:
            NoReasonsError: the model gives no reasons; see `no_reasons`.
            UnknownCategoryError: no item has that category.
        """
        query = Query(history=history, k=k, **further)
        stages = self.stages(query)
        clock = Clock()
        with clock.step("constraints"):
            asked, unknown = self.ask(query, reason)
        source: Source = "popularity"
        failed: FallbackReason | None = self.cold(query, asked)
        found: Listed | None = None
        if failed is None:
            with clock.step("decode"):
                for stage in stages:
                    try:
                        (found,) = stage.lists([asked])
                    except Exception:
                        _log.exception("recommender failed, falling back to the next", source=stage.name)
                        failed = FAILED[stage.name]
                        continue
                    if found is not None:
                        source = stage.source
                        break
        if found is None:
            found = self.popular(asked)
        return self.answer(asked, found, source, failed, unknown, clock)

    def cold(self, query: Query, asked: Asked) -> FallbackReason | None:
        """Why no model has anything to go by; None if one has."""
        if len(asked.history):
            return None
        return "unknown_items" if len(query.history) else "empty_history"

    def answer(
        self,
        asked: Asked,
        found: Listed,
        source: Source,
        fallback_reason: FallbackReason | None,
        unknown: Sequence[str],
        clock: Clock,
    ) -> Answer:
        """What was found, with reasons."""
        with clock.step("reasons"):
            reasons = self._reasons(found.items, asked.history[-_EXPLAINED_HISTORY:])
        return Answer(
            picks=[
                Pick(item=int(item), score=float(score), reason=reason)
                for item, score, reason in zip(found.items, found.scores, reasons, strict=True)
            ],
            source=source,
            fallback_reason=fallback_reason,
            chains=found.chains,
            unknown_items=list(unknown),
            used_profile=found.used_profile,
            timings_ms=clock.timings_ms,
            certified=found.certified,
        )

    def popular(self, asked: Asked) -> Listed:
        """The most popular items that may stand in the list."""
        permitted = np.ones(self.catalog.num_items, dtype=bool) if asked.allow is None else asked.allow.copy()
        permitted[asked.denied] = False
        items = walk_one(self._by_popularity[permitted[self._by_popularity]], asked.caps, asked.k)
        return Listed(items=items, scores=self._popularity_scores[items].astype(np.float32))

    def _allowed(self, categories: Sequence[str]) -> npt.NDArray[np.bool_] | None:
        if not categories:
            return None
        allow = np.zeros(self.catalog.num_items, dtype=bool)
        for category in categories:
            if category not in self._items_of_category:
                raise UnknownCategoryError(f"no item has the category {category!r}")
            allow[self._items_of_category[category]] = True
        return allow

    def _reasons(self, items: IntArray, history: IntArray) -> list[Reason]:
        if not len(history):
            return [
                Reason(text=f"Popular: {self.item_counts[item]} interactions", because=None, similarity=None)
                for item in items
            ]
        similarities = _directions(self._vectors[items]) @ _directions(self._vectors[history]).T
        nearest = similarities.argmax(axis=1)
        return [
            Reason(
                text=f"Similar to {self.title(int(history[column]))}",
                because=int(history[column]),
                similarity=float(similarities[row, column]),
            )
            for row, column in enumerate(nearest)
        ]

    def categories_of(self, item: int) -> list[str]:
        """The categories of an item (dense index)."""
        return self._categories[item]

    def title(self, item: int) -> str:
        """What to call an item: its title, or its id when it has none."""
        return self.catalog.titles[item] or self.catalog.item_ids[item]


class Clock:
    """Measures named steps in milliseconds."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timings_ms[name] = round((time.perf_counter() - started) * 1000, 3)


def _directions(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Of length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: npt.NDArray[np.float32] = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return found


def _content_source(bundle: Bundle) -> Candidates:
    """Items whose embeddings are like those of the history."""
    tower = ContentTower(bundle.embeddings.vectors)
    num_items = bundle.catalog.num_items
    return TowerSource(tower, np.arange(num_items), num_items, ItemIndex(tower.item_vectors))


def _unknown(ids: Sequence[str], items: IntArray) -> list[str]:
    return [item_id for item_id, item in zip(ids, items, strict=True) if item < 0]
