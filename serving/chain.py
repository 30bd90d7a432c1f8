"""From a query to an answer before its deadline: the best source that can still make it, then the next ones.

    reasoning / profile -> fusion -> generator -> dense -> counter -> popularity

A source is passed over when its circuit breaker is open, when it hangs, or when what is left of the deadline is less
than it takes; the best one is then asked with half or a quarter of its beams, if there is time for so many. A source
that is at work when its time is up goes on in its thread, and the next one is asked meanwhile; the last ones take next
to no time, and popularity always answers. Only where the best source is overloaded, not broken, the request is refused:
a lower one for everybody would hide that there are too few machines. Knows no HTTP.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial

import anyio.to_thread
import structlog

from recsys.generator.lm.reason import ReasonConfig
from serving.answers import Answer, FallbackReason, Query, Source
from serving.asking import is_quick
from serving.batching import Batcher, OutOfTimeError, OverloadedError, StalledError, Timed
from serving.breaker import CircuitBreaker
from serving.clock import Clock
from serving.path_metrics import PathMetrics
from serving.runtime import RecommenderRuntime
from serving.settings import ServingSettings
from serving.stages import FAILED, Asked, Listed, Stage, StageName
from serving.warming import warm_up

_LEAST_DEADLINE_S = 1.0
_DEADLINE_FACTOR = 10
_MOST_RESERVE = 0.4
"""Share of what is left of a deadline that a source leaves to those behind it, at most."""
_CHEAPER = 5
"""What is asked after a source that did not come to answer takes that much less: under load, a second search costs the
time of those who wait for their first."""
_CHEAP_S = 0.005
"""What takes no more is asked in any case."""
_JITTER_S = 0.01
"""What a change to the next source takes on a busy machine."""

_log = structlog.get_logger(__name__)


class AnswerChain:
    """The ways of one model to an answer, with their queues and breakers. Used from one event loop.

    Args:
        runtime: the model.
        settings: sizes and times.
        metrics: of the request path.
    """

    def __init__(self, runtime: RecommenderRuntime, settings: ServingSettings, metrics: PathMetrics) -> None:
        self._runtime = runtime
        self._settings = settings
        self._batchers: dict[StageName, Batcher[tuple[Stage, Asked], Listed | None]] = {}
        self._breakers: dict[StageName, CircuitBreaker] = {}
        for stage in runtime.all_stages:
            self._batchers[stage.name] = Batcher(
                stage=stage.name,
                run=_lists,
                workers=1 if stage.is_exclusive else settings.model_threads,
                max_batch=settings.batching.max_batch if stage.shares_calls else 1,
                max_waiting=settings.batching.max_waiting,
                observer=metrics,
                # The warm-up writes one word; how long whole reasons take differs from request to request.
                patience_s=settings.deadline.reason_ms / 1000 if stage.name == "reasoning" else 0.0,
            )
            self._breakers[stage.name] = CircuitBreaker(
                max_failures=settings.breaker.max_failures,
                open_s=settings.breaker.open_s,
                on_change=partial(metrics.breaker_changed, stage.name),
            )
        # One thread for all: who wants details must not take the cores of those who want lists.
        self._codes: Batcher[_CodesAsked, Mapping[str, Sequence[float]]] = Batcher(
            stage="codes",
            run=_code_log_probs,
            workers=1,
            max_batch=1,
            max_waiting=settings.batching.max_waiting,
            observer=metrics,
        )
        self._shares: dict[StageName, float] = {}
        """Of the time that all beams take, by stage with fewer of them; known after the warm-up."""
        self._default_s = _LEAST_DEADLINE_S

    def over(self, runtime: RecommenderRuntime) -> AnswerChain:
        """The same chain, with its queues, breakers and costs, for the same model over another catalogue.

        Requests of both may be in it at a time; those of one call are of one catalogue.
        """
        twin = copy.copy(self)
        twin._runtime = runtime
        return twin

    @property
    def default_deadline_s(self) -> float:
        """How long an answer of mode `direct` may take where nobody says so."""
        return self._default_s

    def warm_up(self) -> None:
        """Warm the model up and learn what its stages take.

        Raises:
            ArtifactError: the model cannot answer.
        """

        def observe(stage: StageName, size: int, seconds: float) -> None:
            self._batchers[stage].cost.observe(size, seconds, time.monotonic())

        warm_up(self._runtime, observe, largest_batch=self._settings.batching.max_batch)
        for name, narrows in self._runtime.narrower.items():
            whole_s = self._batchers[name].cost.last_seconds(1)
            for narrow in narrows:
                self._shares[narrow.name] = min(1.0, self._batchers[narrow.name].cost.last_seconds(1) / whole_s)
        given = self._settings.deadline.default_ms
        best = self._runtime.stages(Query(history=[], k=1))[0]
        alone = self._batchers[best.name].alone_s()
        self._default_s = max(_LEAST_DEADLINE_S, _DEADLINE_FACTOR * alone) if given is None else given / 1000

    def wait_s(self, pending: int, deadline_s: float) -> float:
        """Seconds until a request is answered that has the `pending` ones before it.

        0 where there are none, or where their absence would not help, because the best source takes longer than
        `deadline_s` all alone, or hangs: then a faster source can answer, and nobody need be refused.
        """
        batcher = self._batchers[self._runtime.stages(Query(history=[], k=1))[0].name]
        if pending == 0 or batcher.alone_s() > deadline_s or batcher.is_stalled:
            return 0.0
        return batcher.wait_s(max(0, pending - batcher.num_running))

    async def answer(
        self, query: Query, deadline: float, missing: FallbackReason | None = None, reason: ReasonConfig | None = None
    ) -> Answer:
        """The best list that can be had until `deadline`, in seconds of the monotonic clock.

        Args:
            query: the request.
            deadline: when an answer is of no more use.
            missing: why nothing is known of the user, where that is not the user's doing.
            reason: how reasons are written.

        Raises:
            NoReasonsError: the model gives no reasons.
            RuleError: a rule does not fit the catalogue.
            OverloadedError: the best source cannot answer in time because of those who came before.
        """
        clock = Clock()
        with clock.step("constraints"):
            stages = self._runtime.stages(query)
            if is_quick(query, self._runtime.rules):
                asked, unknown = self._runtime.ask(query, reason)
            else:
                asked, unknown = await anyio.to_thread.run_sync(self._runtime.ask, query, reason)
        found: Listed | None = None
        source: Source = "popularity"
        served = "popularity"
        cold = self._runtime.cold(query, asked)
        failed = missing or cold
        if cold is None:
            most_s = math.inf
            for place, stage in enumerate(stages):
                if self._batchers[stage.name].alone_s() > most_s:
                    continue
                until = self._until(stages[place + 1 :], deadline)
                outcome = await self._try(stage, asked, until, is_best=place == 0)
                if isinstance(outcome, OutOfTimeError) and outcome.lateness == "too_near":
                    narrow = self._narrower(stage, until)
                    if narrow is not None:
                        stage, failed = narrow, "fewer_beams"
                        outcome = await self._try(stage, asked, until, is_best=False)
                if isinstance(outcome, Timed):
                    clock.timings_ms["queue"] = round(outcome.waited_s * 1000, 3)
                    clock.timings_ms["decode"] = round(outcome.ran_s * 1000, 3)
                    found = outcome.result
                    if found is not None:
                        source, served = stage.source, stage.name
                        break
                elif isinstance(outcome, OutOfTimeError):
                    failed = "no_time"
                    if outcome.lateness != "too_near":
                        most_s = max(_CHEAP_S, self._batchers[stage.name].alone_s() / _CHEAPER)
                else:
                    failed = outcome or failed
        if found is None or (source in ("dense", "counter") and len(found.items) < query.k - len(asked.pins)):
            popular = self._runtime.popular(asked)
            if found is None or len(popular.items) > len(found.items):
                found, source, served = popular, "popularity", "popularity"
        return self._runtime.answer(asked, found, source, failed, unknown, clock, stage=served)

    async def code_log_probs(
        self, query: Query, item_ids: Sequence[str], deadline: float
    ) -> Mapping[str, Sequence[float]]:
        """See `RecommenderRuntime.code_log_probs`; one request at a time.

        Args:
            query: the request.
            item_ids: of items with a semantic ID.
            deadline: as of `answer`.

        Raises:
            OverloadedError: those before it leave no time.
            OutOfTimeError: the deadline came, or is too near.
            StalledError: the model hangs.
        """
        asked = (self._runtime, query, item_ids)
        return (await self._codes.submit(asked, key=None, deadline=deadline)).result

    def close(self) -> None:
        """Let the model's threads end."""
        for batcher in self._batchers.values():
            batcher.close()
        self._codes.close()

    def _until(self, further: Sequence[Stage], deadline: float) -> float:
        """When a stage must be done, so that those behind it still have time."""
        left = deadline - time.monotonic()
        needed = sum(self._batchers[stage.name].alone_s() + _JITTER_S for stage in further)
        return deadline - min(needed, _MOST_RESERVE * left)

    def _narrower(self, stage: Stage, until: float) -> Stage | None:
        """The source with as many of its beams as there is time for.

        What fewer beams save is known from the warm-up. They are rarely asked for, and what was learnt of a stage that
        nobody asks fades; so the time that all beams took last is the measure.
        """
        last_s = self._batchers[stage.name].cost.last_seconds(1)
        for narrow in self._runtime.narrower.get(stage.name, ()):
            expected_s = max(self._shares.get(narrow.name, 1.0) * last_s, self._batchers[narrow.name].alone_s())
            if expected_s <= until - time.monotonic():
                return narrow
        return None

    async def _try(
        self, stage: Stage, asked: Asked, deadline: float, *, is_best: bool
    ) -> Timed[Listed | None] | OutOfTimeError | FallbackReason | None:
        breaker, batcher = self._breakers[stage.name], self._batchers[stage.name]
        if not breaker.allows():
            return "circuit_open"
        try:
            outcome = await batcher.submit((stage, asked), key=(stage, stage.key(asked)), deadline=deadline)
        except OverloadedError:
            if is_best:
                raise
            return "no_time"
        except OutOfTimeError as error:
            # That others came before, or that the machine is busy, says nothing about the source.
            if error.lateness == "overran":
                breaker.fail()
            return error
        except StalledError:
            breaker.fail()
            return FAILED[stage.name]
        except Exception:
            _log.exception("recommender failed, falling back to the next", source=stage.name)
            breaker.fail()
            return FAILED[stage.name]
        breaker.succeed()
        return outcome


_CodesAsked = tuple[RecommenderRuntime, Query, Sequence[str]]


def _code_log_probs(batch: Sequence[_CodesAsked]) -> Sequence[Mapping[str, Sequence[float]]]:
    return [runtime.code_log_probs(query, item_ids) for runtime, query, item_ids in batch]


def _lists(batch: Sequence[tuple[Stage, Asked]]) -> Sequence[Listed | None]:
    """The lists of requests to one stage."""
    return batch[0][0].lists([asked for _, asked in batch])
