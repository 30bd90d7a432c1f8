"""Turns a history of item ids into an explained list of items. Knows no users, no store and no HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import structlog
import torch

from recsys.bundle import Bundle
from recsys.data import Catalog
from recsys.data.sequences import IntArray, Sequences
from recsys.errors import ArtifactError, ConfigError
from recsys.generator import Constraints, GenerativeRecommender, Recommendations, Recommender
from recsys.generator.constraints import Cap
from recsys.generator.diversity import walk_one
from recsys.generator.groups import Groups
from recsys.generator.lm.language import ItemLanguage
from recsys.generator.lm.reason import ReasonConfig, recommend_with_reasons
from recsys.profile.profile import Profile, Statement
from recsys.profile.prompt import fitting_text, profile_prompt

Mode = Literal["direct", "reason"]
Source = Literal["reasoning", "fusion", "generator", "popularity"]
FallbackReason = Literal["empty_history", "unknown_items", "reasoning_failed", "fusion_failed", "generator_failed"]
_FAILED: Mapping[Source, FallbackReason] = {
    "reasoning": "reasoning_failed",
    "fusion": "fusion_failed",
    "generator": "generator_failed",
}

_EXPLAINED_HISTORY = 50
"""The most recent items that a reason may name: what the model reads, or about that."""

_log = structlog.get_logger(__name__)


class NoReasonsError(ValueError):
    """The model that is served gives no reasons in words."""


class UnknownCategoryError(ValueError):
    """A category filter names no category of the catalogue."""


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why an item is in the list."""

    text: str
    because: int | None
    """The item of the history that is most like it; None without a history."""
    similarity: float | None
    """Cosine of the two items' embeddings."""


@dataclass(frozen=True, kw_only=True)
class Pick:
    """One recommended item."""

    item: int
    score: float
    """Log-probability: of the generator, over its chains of reasons where there are any, the fusion's calibrated one,
    or the item's share of all interactions."""
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A ranked list and how it came about."""

    picks: list[Pick]
    source: Source
    fallback_reason: FallbackReason | None
    """Why the list is not of the best source that the bundle has, or of the mode; None when it is."""
    chains: tuple[str, ...]
    """The reasons that the list follows from; none unless its source is `reasoning`."""
    unknown_items: list[str]
    """Ids of the request that the catalogue does not have; they were ignored."""
    used_profile: bool
    """Whether the model read any statement of the profile before the history; never in mode `reason`."""
    timings_ms: dict[str, float]
    """Time of each step."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What is being served."""

    name: str
    model_version: str
    created_at: datetime
    libraries: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Listed:
    """What a way to an answer leads to."""

    items: IntArray
    """int64 [n], best first."""
    scores: npt.NDArray[np.float32]
    """float32 [n]."""
    chains: tuple[str, ...] = ()


_Way: TypeAlias = Callable[[IntArray, int, Constraints, str | None, ReasonConfig], _Listed]
"""From a history, a length, restrictions, a session and a way of reasoning to a list."""


class RecommenderRuntime:
    """A model ready to answer; immutable, so that many threads may ask at a time.

    Args:
        info: names the model.
        catalog: all items.
        recommender: generates lists.
        reader: reads profiles, if its body is a language model and there is no fusion; `recommender` when None.
        fused: ranks what the generator and further sources propose; is asked first, where there is one.
        reasoner: writes reasons first in mode `reason`.
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
        self._ways: dict[Mode, dict[Source, _Way]] = {"direct": {}, "reason": {}}
        if fused is not None:
            self._ways["direct"]["fusion"] = partial(_ask, fused)
        self._ways["direct"]["generator"] = partial(_ask, recommender)
        if reasoner is not None:
            self._ways["reason"] = {"reasoning": partial(_reason, reasoner), **self._ways["direct"]}
        # Only the generator reads words, and only where it is the best source there is.
        self._reader = _word_reader(recommender if reader is None else reader) if fused is None else None
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        self._directions = embeddings / np.maximum(norms, np.finfo(np.float32).tiny)
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
            no_reasons=no_reasons,
            embeddings=bundle.embeddings.vectors,
            codes=bundle.semantic_ids.codes,
            item_counts=bundle.item_counts,
            report=bundle.report,
        )

    @property
    def reads_profiles(self) -> bool:
        """Whether `recommend` makes use of a profile."""
        return self._reader is not None

    def warm_up(self) -> None:
        """Generate one list, so that the first user does not wait for lazy initialisation, and a broken model is found.

        Raises:
            ArtifactError: the catalogue is empty, or a way to an answer fails.
        """
        if not self.catalog.num_items:
            raise ArtifactError(f"bundle: the catalogue of {self.info.name} has no items; build the bundle again")
        short = ReasonConfig(chains=1, max_tokens=1)
        first = self._by_popularity[:1]
        tries: dict[str, Callable[[], object]] = {
            source: partial(way, first, 1, Constraints(), None, short)
            for source, way in (self._ways["direct"] | self._ways["reason"]).items()
        }
        if self._reader is not None:
            profile = Profile(statements=(Statement(text="Likes this.", source="edited"),))
            tries["reader of profiles"] = partial(_ask_with, self._reader, profile, first, 1, Constraints())
        for source, attempt in tries.items():
            try:
                attempt()
            except Exception as error:  # it may fail in any way; unlike a request, a start has no substitute
                raise ArtifactError(
                    f"bundle: the {source} of {self.info.name} cannot answer: {error!r}; build the bundle again"
                ) from error

    def recommend(
        self,
        history: Sequence[str],
        *,
        k: int,
        exclude: Sequence[str] = (),
        categories: Sequence[str] = (),
        max_per_category: int | None = None,
        exclude_seen: bool = True,
        session: str | None = None,
        mode: Mode = "direct",
        reason: ReasonConfig | None = None,
        profile: Profile | None = None,
    ) -> Answer:
        """The k best items after `history`; fewer when the restrictions leave fewer.

        The fusion answers if there is one, else the generator, as long as the catalogue has any item of the history;
        if it has none, the most popular items do. In mode `reason` the generator answers, reasons first. What fails is
        logged and replaced by the next of these: a user gets a list as long as there is one.

        Args:
            history: item ids, oldest first; unknown ones are left out.
            k: length of the list.
            exclude: item ids that must not appear.
            categories: only items with one of these; no filter when empty.
            max_per_category: at most so many items of any category; an item counts in all of its own.
            exclude_seen: leave out the items of the history.
            session: whose history it is; it then stays encoded, so that the next request reads only what is new.
            mode: `reason` writes reasons first, which takes seconds.
            reason: how, in that mode; the default when None.
            profile: what is said about the user; read before the history in mode `direct` if the model
                knows words (`reads_profiles`).

        Raises:
            NoReasonsError: the model gives no reasons; see `no_reasons`.
            UnknownCategoryError: no item has that category.
        """
        if mode == "reason" and self.no_reasons is not None:
            raise NoReasonsError(self.no_reasons)
        clock = _Clock()
        with clock.step("constraints"):
            history_items = self.catalog.index_of(history)
            excluded = self.catalog.index_of(exclude)
            unknown = [*_unknown(history, history_items), *_unknown(exclude, excluded)]
            history_items = history_items[history_items >= 0]
            denied = excluded[excluded >= 0]
            if exclude_seen:
                denied = np.concatenate([denied, history_items])
            denied = np.unique(denied)
            allow = self._allowed(categories)
            caps = [] if max_per_category is None else [Cap(groups=self._category_groups, most=max_per_category)]
            held = Constraints(allow=allow, deny=[denied] if len(denied) else None, caps=caps)
        source: Source = "popularity"
        fallback_reason: FallbackReason | None = None
        found: _Listed | None = None
        used_profile = False
        if len(history_items):
            with clock.step("decode"):
                if mode == "direct" and profile is not None and self._reader is not None:
                    try:
                        found = _ask_with(self._reader, profile, history_items, k, held)
                    except Exception:
                        _log.exception("reading the profile failed, answering without it")
                    if found is not None:
                        source, used_profile = "generator", True
                for name, way in self._ways[mode].items() if found is None else ():
                    try:
                        found = way(history_items, k, held, session, reason or ReasonConfig())
                    except Exception:
                        _log.exception("recommender failed, falling back to the next", source=name)
                        fallback_reason = _FAILED[name]
                        continue
                    source = name
                    break
        else:
            fallback_reason = "unknown_items" if len(history) else "empty_history"
        if found is None:
            with clock.step("popularity"):
                found = self._most_popular(k, held)
        with clock.step("reasons"):
            reasons = self._reasons(found.items, history_items[-_EXPLAINED_HISTORY:])
        return Answer(
            picks=[
                Pick(item=int(item), score=float(score), reason=reason)
                for item, score, reason in zip(found.items, found.scores, reasons, strict=True)
            ],
            source=source,
            fallback_reason=fallback_reason,
            chains=found.chains,
            unknown_items=list(dict.fromkeys(unknown)),
            used_profile=used_profile,
            timings_ms=clock.timings_ms,
        )

    def _most_popular(self, k: int, held: Constraints) -> _Listed:
        permitted = np.ones(self.catalog.num_items, dtype=bool) if held.allow is None else held.allow.copy()
        for denied in held.deny or ():
            permitted[denied] = False
        items = walk_one(self._by_popularity[permitted[self._by_popularity]], held.caps, k)
        return _Listed(items=items, scores=self._popularity_scores[items].astype(np.float32))

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
        similarities = self._directions[items] @ self._directions[history].T
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


def _ask(
    recommender: Recommender, history: IntArray, k: int, held: Constraints, session: str | None, _: ReasonConfig
) -> _Listed:
    _one_thread()
    sessions = None if session is None else [session]
    result = recommender.recommend(Sequences.from_lists([history]), k, constraints=held, sessions=sessions)
    return _listed(result)


def _reason(
    recommender: GenerativeRecommender,
    history: IntArray,
    k: int,
    held: Constraints,
    _: str | None,
    config: ReasonConfig,
) -> _Listed:
    _one_thread()
    reasoned = recommend_with_reasons(recommender, Sequences.from_lists([history]), k, config, constraints=held)
    return _listed(reasoned.recommendations, tuple(reasoned.chains[0]))


def _listed(found: Recommendations, chains: tuple[str, ...] = ()) -> _Listed:
    """The list of the only request."""
    exists = found.items[0] >= 0
    return _Listed(items=found.items[0][exists], scores=found.scores[0][exists], chains=chains)


def _word_reader(recommender: Recommender) -> GenerativeRecommender | None:
    """The generator, if its body is a language model."""
    if not isinstance(recommender, GenerativeRecommender):
        return None
    try:
        ItemLanguage.of(recommender.model)
    except ConfigError:
        return None
    return recommender


def _ask_with(
    reader: GenerativeRecommender, profile: Profile, history: IntArray, k: int, held: Constraints
) -> _Listed | None:
    """As `_ask`, with the profile before the history; None where no statement of it fits before that."""
    _one_thread()
    language = ItemLanguage.of(reader.model)
    recent = history[-reader.config.model.max_history :].tolist()
    text = fitting_text(language, profile, recent)
    if not text:
        return None
    prompt = profile_prompt(language, text, recent)
    return _listed(reader.complete([prompt], k, constraints=held, reserve_new=True))


class _Clock:
    """Measures named steps in milliseconds."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timings_ms[name] = round((time.perf_counter() - started) * 1000, 3)


_thread = threading.local()


def _one_thread() -> None:
    """The number of threads belongs to the calling thread; one request a core beats many cores a request."""
    if not getattr(_thread, "ready", False):
        torch.set_num_threads(1)
        _thread.ready = True


def _unknown(ids: Sequence[str], items: IntArray) -> list[str]:
    return [item_id for item_id, item in zip(ids, items, strict=True) if item < 0]
