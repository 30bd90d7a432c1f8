"""Turns a history of item ids into an explained list of items. Knows no users, no store and no HTTP."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from recsys.bundle import Bundle
from recsys.data import Catalog
from recsys.data.rows import Rows
from recsys.data.sequences import IntArray, Sequences
from recsys.errors import ConfigError
from recsys.generator import GenerativeRecommender, Recommender
from recsys.generator.depth import mixture
from recsys.generator.gpu import Device
from recsys.generator.graphs import GraphCounts
from recsys.generator.lm.reason import ReasonConfig
from recsys.generator.mask_counts import frozen
from recsys.profile.intents.table import IntentTable
from recsys.retrieval.content import content_source
from recsys.retrieval.single import SourceRecommender
from recsys.retrieval.sources import TowerSource
from serving.answers import Answer, Candidates, FallbackReason, ItemStatus, Pick, Query, Reason, SearchBy, Source, Task
from serving.arranging import arrange
from serving.asking import asked_of
from serving.catalog_rules import RuleError
from serving.clock import Clock
from serving.lookups import RankStage, WordsStage, searches_of
from serving.nearness import Nearness
from serving.overlay import ChangedItem, Overlay
from serving.placing import BundlePlacer, Placement, Placer, placed_all
from serving.shown import best
from serving.stages import (
    FAILED,
    Asked,
    Listed,
    ProfileStage,
    ReasoningStage,
    RecommenderStage,
    Stage,
    StageName,
    narrower,
    one_thread,
    walk_down,
    word_reader,
)
from serving.tables import ItemTables
from serving.ways import BoolArray, Ways

_EVIDENCE = 3
"""Items of the history that a reason names, at most."""

_log = structlog.get_logger(__name__)


class NoReasonsError(ValueError):
    """The model that is served gives no reasons in words."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What is being served."""

    name: str
    model_version: str
    created_at: datetime
    libraries: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Changes:
    """What the catalogue of a runtime is, beside that of its bundle; see the attributes of `RecommenderRuntime`."""

    version: int = 0
    listed: BoolArray | None = None
    waiting: BoolArray | None = None
    tables: ItemTables | None = None
    """None: they are made anew."""
    stood: Mapping[str, tuple[ChangedItem, Placement]] = field(default_factory=dict)
    """Where items stand that the bundle does not have, and what is known of them; by id."""


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
        content: lists items whose vectors are like those of the history, for similar items; made from `embeddings` when
            None.
        searches: ways to find items by a text, best first, before that of looking for its words.
        no_reasons: why there is no `reasoner`, in one line.
        embeddings: float32 [num_items, dim], for the reasons.
        codes: int64 [num_items, levels], the semantic IDs.
        item_counts: int64 [num_items], interactions an item, for the fallback.
        report: the evaluation, shown as it is.
        intents: tags and explanations, if there are any.
        placer: says where new items stand; None: the model takes none.
        changes: since the bundle was made.
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
        content: TowerSource | None = None,
        searches: Sequence[Stage] = (),
        no_reasons: str | None = "this model gives no reasons in words",
        embeddings: npt.NDArray[np.float32] | Rows,
        codes: IntArray | Rows[np.int64],
        item_counts: IntArray,
        report: Mapping[str, Any],
        intents: IntentTable | None = None,
        placer: Placer | None = None,
        changes: Changes | None = None,
    ) -> None:
        changes = changes or Changes()
        vectors = embeddings if isinstance(embeddings, Rows) else Rows.of(embeddings)
        self.info = info
        self.intents = intents
        self.placer = placer
        self.catalog_version = changes.version
        """0 for the catalogue of the bundle; each change of it in the store counts one."""
        self.waiting = changes.waiting
        """bool [num_items]: items without a semantic ID of their own yet, which are not generated; None: there are
        none."""
        self.listed = changes.listed
        """bool [num_items]: items that are not removed; None: none is."""
        if content is None and catalog.num_items:
            content = content_source(vectors.first)
        self._ways = Ways(
            recommender=recommender,
            reader=reader,
            fused=fused,
            reasoner=reasoner,
            dense=dense,
            counter=counter,
            content=content,
            searches=tuple(searches),
        )
        self.catalog = catalog
        self.codes = codes if isinstance(codes, Rows) else Rows.of(codes)
        self.item_counts = item_counts
        self.report = report
        self.no_reasons = None if reasoner is not None else no_reasons
        """Why mode `reason` is refused, in one line; None where it is not."""
        num_items = catalog.num_items
        best_stage = RecommenderStage("generator", "generator", recommender, num_items, within=self._generatable)
        direct: list[RecommenderStage] = [best_stage]
        if fused is not None:
            best_stage = RecommenderStage("fusion", "fusion", fused, num_items)
            direct.insert(0, best_stage)
        if dense is not None:
            direct.append(RecommenderStage("dense", "dense", dense, num_items))
        if counter is not None:
            direct.append(RecommenderStage("counter", "counter", counter, num_items))
        self._direct: tuple[Stage, ...] = tuple(direct)
        self.narrower: Mapping[StageName, tuple[Stage, ...]] = {best_stage.name: narrower(best_stage)}
        """By stage, the same source with fewer beams, best first; none for a stage that is not here."""
        self._reasoning = None if reasoner is None else ReasoningStage(reasoner, self._generatable)
        # Only the generator reads words, and only where it is the best source there is.
        words = word_reader(recommender if reader is None else reader) if fused is None else None
        self._profile = None if words is None else ProfileStage(words, self._generatable)
        self.nearness = Nearness(vectors)
        """How much alike items are."""
        self._stood = changes.stood
        self._tables = changes.tables or ItemTables.of(catalog, item_counts, self.listed, self.with_codes)
        self.popularity = self._tables.popularity
        """Orders items when there is nothing else to go by."""
        self.rules = self._tables.rules
        """What rules of requests need of the catalogue."""
        self.words = self._tables.words
        """Finds items by their words."""
        self._lookups: dict[Task, tuple[Stage, ...]] = {"similar": (), "rank": (), "search": ()}
        if content is not None:
            similar = SourceRecommender(content, num_items)
            self._lookups["similar"] = (RecommenderStage("similar", "dense", similar, num_items),)
            # Copies: a stage is of one version of the catalogue, since requests to the same one may share a call.
            self._lookups["search"] = (*map(copy.copy, searches), WordsStage(self.words))
        if isinstance(recommender, GenerativeRecommender):
            self._lookups["rank"] = (RankStage(recommender),)

    @classmethod
    def from_bundle(
        cls, bundle: Bundle, onnx: Path | None = None, *, search_by: SearchBy = "words", device: Device = "cpu"
    ) -> RecommenderRuntime:
        """The runtime of a loaded bundle.

        Args:
            bundle: the model with everything it needs.
            search_by: how a search finds items; `text_encoder` loads that of the bundle.
            onnx: what `recsys export` made of the same model: ONNX Runtime then decodes, in the fusion too. PyTorch
                still writes reasons and reads profiles.
            device: what the generator, and what an export is of it, runs on.

        Raises:
            ConfigError: there is no such device.
            ArtifactError: the export is damaged, or was made of another model; or the bundle cannot search in that way.
        """
        if device == "cuda":
            bundle = bundle.on_gpu()
        manifest, no_reasons = bundle.manifest, bundle.no_reasons
        recommender, fused = bundle.recommender, bundle.fused
        sources = {} if fused is None else fused.pool.sources
        num_items = bundle.catalog.num_items
        content = bundle.content
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
            # An exported language model has one catalogue for good.
            placer=None if onnx is not None and recommender.config.model.lm is not None else BundlePlacer(bundle),
            # An export reads items alone.
            reader=bundle.recommender,
            fused=fused,
            reasoner=bundle.recommender if no_reasons is None else None,
            dense=SourceRecommender(sources.get("sasrec", content), num_items),
            counter=SourceRecommender(sources["skip_gram"], num_items) if "skip_gram" in sources else None,
            content=content,
            searches=searches_of(bundle, content.index, search_by),
            no_reasons=no_reasons,
            embeddings=bundle.embeddings.vectors,
            codes=bundle.semantic_ids.codes,
            item_counts=bundle.item_counts,
            report=bundle.report,
            intents=bundle.intents,
        )

    @property
    def longest_history(self) -> int:
        """Items that the generator reads at most; 1 where something else makes lists."""
        generator = self._ways.recommender
        return generator.config.model.max_history if isinstance(generator, GenerativeRecommender) else 1

    @property
    def graph_counts(self) -> GraphCounts | None:
        """What passes over the generator came to; None where it has no CUDA graphs."""
        generator = self._ways.recommender
        graphs = generator.graphs if isinstance(generator, GenerativeRecommender) else None
        return None if graphs is None else graphs.counts

    def over(
        self,
        overlay: Overlay,
        placed: Mapping[str, Placement],
        *,
        previous: RecommenderRuntime | None = None,
        new_item_slots: int = 0,
    ) -> RecommenderRuntime:
        """The model over a changed catalogue; asked of the runtime of the bundle itself, which stays as it is.

        Added items that have no placement stand where their categories are, and wait for their own.

        Args:
            overlay: what was changed.
            placed: where added items stand, by their ids.
            previous: over an earlier version: what the changes since then do not touch is taken from it.
            new_item_slots: see `Ways.over`.
        """
        added = overlay.added(self.catalog) if self.placer is not None else []
        stood: Mapping[str, tuple[ChangedItem, Placement]] = {} if previous is None else previous._stood
        standing = (
            {} if self.placer is None else placed_all(self.placer, self.codes.first.shape[1], added, placed, stood)
        )
        items = [item for item in added if item.item_id in standing]
        vectors, codes, ways = self.nearness.vectors, self.codes, self._ways
        waiting: BoolArray | None = None
        settled: BoolArray | None = None
        if items:
            own = np.array([item.item_id in placed for item in items])
            if not own.all():
                waiting = np.append(np.zeros(self.catalog.num_items, dtype=bool), ~own)
            settled = _settled(waiting)
            same = previous is not None and previous._stands(standing, waiting)
            if previous is not None and same:
                vectors, codes, ways = previous.nearness.vectors, previous.codes, previous._ways
            else:
                found = list(standing.values())
                vectors = Rows(self.nearness.vectors.first, np.stack([each.vector for each in found]))
                codes = Rows(codes.first, np.array([each.codes for each in found], dtype=np.int64))
                ways = ways.over(codes, vectors, settled, new_item_slots)
        goes_on = previous is not None and previous._tables.precedes(overlay, items)
        before = previous._tables if previous is not None and goes_on else self._tables
        tables = before.over(overlay, items, settled)
        return RecommenderRuntime(
            info=self.info,
            catalog=tables.catalog,
            recommender=ways.recommender,
            reader=ways.reader,
            fused=ways.fused,
            reasoner=ways.reasoner,
            dense=ways.dense,
            counter=ways.counter,
            content=ways.content,
            searches=ways.searches,
            no_reasons=self.no_reasons,
            embeddings=vectors,
            codes=codes,
            item_counts=tables.popularity.counts,
            report=self.report,
            intents=self.intents,
            placer=self.placer,
            changes=Changes(
                version=overlay.version,
                listed=tables.listed,
                waiting=waiting,
                tables=tables,
                stood={item.item_id: (item, standing[item.item_id]) for item in items},
            ),
        )

    def _stands(self, standing: Mapping[str, Placement], waiting: BoolArray | None) -> bool:
        """Whether all added items stand here as they do there, and the same ones wait."""
        same = len(standing) == len(self._stood) and all(
            item_id == other and placement is here
            for (item_id, placement), (other, (_, here)) in zip(standing.items(), self._stood.items(), strict=True)
        )
        if waiting is None or self.waiting is None:
            return same and waiting is self.waiting
        return same and np.array_equal(waiting, self.waiting)

    @property
    def further_codes(self) -> IntArray:
        """int64 [K, levels]: of the items that the bundle does not have, and that have a semantic ID of their own."""
        waiting = None if self.waiting is None else self.waiting[len(self.codes.first) :]
        return self.codes.further if waiting is None else self.codes.further[~waiting]

    @property
    def with_codes(self) -> BoolArray | None:
        """bool [num_items]: items that are not removed and have a semantic ID of their own; None: all."""
        if self.listed is None or self._generatable is None:
            return self._generatable if self.listed is None else self.listed
        return self.listed & self._generatable

    @cached_property
    def _generatable(self) -> BoolArray | None:
        return _settled(self.waiting)

    def find(self, item_id: str) -> int | None:
        """The number of an item that is there; None for one that is unknown or removed."""
        (item,) = self.catalog.index_of([item_id]).tolist()
        return None if item < 0 or (self.listed is not None and not self.listed[item]) else item

    @property
    def candidates_version(self) -> str:
        """Names the items that lists are made of: the model, and what was changed since its bundle was made."""
        version = self.info.model_version
        return version if self.catalog_version == 0 else f"{version}+{self.catalog_version}"

    @property
    def num_listed(self) -> int:
        """Items that are not removed."""
        return self.catalog.num_items if self.listed is None else int(self.listed.sum())

    def count_items(self) -> dict[ItemStatus, int]:
        """Items of the catalogue by what becomes of them."""
        listed = np.ones(self.catalog.num_items, dtype=bool) if self.listed is None else self.listed
        waiting = 0 if self.waiting is None else int((self.waiting & listed).sum())
        return {
            "generatable": self.num_listed - waiting,
            "retrievable": waiting,
            "removed": self.catalog.num_items - self.num_listed,
        }

    def status(self, item: int) -> ItemStatus:
        """What becomes of an item (number)."""
        if self.listed is not None and not self.listed[item]:
            return "removed"
        return "generatable" if self.is_generatable(item) else "retrievable"

    def is_generatable(self, item: int) -> bool:
        """Whether an item (number) has a semantic ID of its own."""
        return self.waiting is None or not self.waiting[item]

    @property
    def objectives(self) -> Mapping[str, float]:
        """What the generator's heads are for, with their weights; empty for a generator with one."""
        return {} if self.generator is None else self.generator.objectives

    @property
    def generator(self) -> GenerativeRecommender | None:
        """What emits semantic IDs; None where something else stands in its place."""
        generator = self._ways.recommender
        return generator if isinstance(generator, GenerativeRecommender) else None

    @property
    def reads_profiles(self) -> bool:
        """Whether `recommend` makes use of a profile."""
        return self._profile is not None

    @property
    def all_stages(self) -> tuple[Stage, ...]:
        """Every way to a list that this model has, popularity aside."""
        further: tuple[Stage | None, ...] = (self._reasoning, self._profile)
        behind = (*self.narrower.values(), *self._lookups.values())
        return (
            *(stage for stage in further if stage is not None),
            *self._direct,
            *(stage for stages in behind for stage in stages),
        )

    def stages(self, query: Query) -> tuple[Stage, ...]:
        """The ways to a list for `query`, best first; behind them stands `popular`, which always has one.

        Raises:
            NoReasonsError: the model gives no reasons; see `no_reasons`.
        """
        if query.task != "next":
            return self._lookups[query.task]
        if query.mode == "reason":
            if self._reasoning is None:
                raise NoReasonsError(self.no_reasons)
            return (self._reasoning, *self._direct)
        if query.profile is not None and self._profile is not None:
            return (self._profile, *self._direct)
        return self._direct

    def ask(self, query: Query, reason: ReasonConfig | None = None) -> tuple[Asked, list[str]]:
        """`query` in the catalogue's numbers, and the ids of it that the catalogue does not have.

        Raises:
            RuleError: a rule of it does not fit the catalogue, or the model has no such objectives.
        """
        self._check_objectives(query.objectives)
        return asked_of(query, self.catalog, self.rules, reason)

    def code_log_probs(self, query: Query, item_ids: Sequence[str]) -> Mapping[str, Sequence[float]]:
        """By id, the log-probability of each code of an item after the history; none where no generator tells it.

        Raises:
            RuleError: as `ask`.
        """
        generator = self.generator
        if generator is None:
            return {}
        one_thread()
        asked, _ = self.ask(query)
        if asked.objectives:
            generator = generator.weighted(dict(asked.objectives))
        histories = Sequences.from_lists([asked.history])
        (found,) = generator.score_codes(histories, [self.catalog.index_of(item_ids)], sessions=[asked.session])
        return {item_id: [round(float(each), 4) for each in row] for item_id, row in zip(item_ids, found, strict=True)}

    def _check_objectives(self, weights: Mapping[str, float]) -> None:
        if not weights:
            return
        if not self.objectives:
            raise RuleError("this model's generator has one head for all; leave objectives out", ("objectives",))
        try:
            mixture(tuple(self.objectives), weights)
        except ConfigError as error:
            raise RuleError(str(error), ("objectives",)) from error

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
            RuleError: a rule does not fit the catalogue.
        """
        query = Query(history=history, k=k, **further)
        stages = self.stages(query)
        clock = Clock()
        with clock.step("constraints"):
            asked, unknown = self.ask(query, reason)
        source: Source = "popularity"
        failed: FallbackReason | None = self.cold(query, asked)
        found: Listed | None = None
        served = "popularity"
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
                        source, served = stage.source, stage.name
                        break
        if found is None:
            found = self.popular(asked)
        return best(self.answer(asked, found, source, failed, unknown, clock, stage=served), k).answer

    def cold(self, query: Query, asked: Asked) -> FallbackReason | None:
        """Why no model has anything to go by; None if one has."""
        if len(asked.history) or query.task in ("rank", "search"):
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
        *,
        stage: str = "popularity",
    ) -> Answer:
        """What a stage found, boosted and diversified, with reasons."""
        items, scores = found.items, found.scores
        candidates = None
        if asked.arrangement is not None:
            candidates = Candidates(items=items, scores=scores)
            with clock.step("arrange"):
                items, scores = arrange(items, scores, asked.arrangement, self.nearness.directions_of)
        with clock.step("reasons"):
            reasons = self._reasons(asked, items, source)
        return Answer(
            picks=[
                Pick(item=int(item), score=float(score), reason=reason)
                for item, score, reason in zip(items, scores, reasons, strict=True)
            ],
            pins=asked.pins,
            dropped_pins=asked.dropped_pins,
            source=source,
            fallback_reason=fallback_reason,
            chains=found.chains,
            unknown_items=list(unknown),
            used_profile=found.used_profile,
            timings_ms=clock.timings_ms,
            stage=stage,
            candidates=candidates,
            certified=found.certified,
        )

    def popular(self, asked: Asked) -> Listed:
        """The most popular items that may stand in the list."""
        items, _ = walk_down(lambda count: self.popularity.order[:count], self.catalog.num_items, asked)
        return Listed(items=items, scores=self.popularity.scores(items))

    def _reasons(self, asked: Asked, items: IntArray, source: Source) -> list[Reason]:
        if asked.words and source != "popularity":
            return [Reason(text=f"Found for {asked.words}")] * len(items)
        if not len(asked.history):
            return [Reason(text=f"Popular: {self.item_counts[item]} interactions") for item in items]
        nearest, cosines = self.nearness.nearest(items, asked.history, _EVIDENCE)
        return [
            Reason(text=f"Similar to {self.title(evidence[0])}", evidence=evidence, similarity=similarity)
            for evidence, similarity in zip(nearest.tolist(), cosines[:, 0].tolist(), strict=True)
        ]

    def categories_of(self, item: int) -> list[str]:
        """The categories of an item (dense index)."""
        return self.rules.categories_of(item)

    def title(self, item: int) -> str:
        """What to call an item: its title, or its id when it has none."""
        return self.catalog.titles[item] or self.catalog.item_ids[item]


def _settled(waiting: BoolArray | None) -> BoolArray | None:
    """bool [N]: the items that do not wait; None: none does."""
    return None if waiting is None else frozen(~waiting)
