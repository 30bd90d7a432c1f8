"""Three times what the model can do: those who are let in are answered in time, about as many as without the others."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from recsys.generator import Recommendations
from serving.admission import Admission
from serving.answers import Query
from serving.batching import OverloadedError
from serving.chain import AnswerChain
from serving.path_metrics import PathMetrics
from serving.runtime import RecommenderRuntime
from serving.settings import ServingSettings

FIXED_S, EACH_S, DEADLINE_S = 0.02, 0.004, 0.4
CAPACITY = 32 / (FIXED_S + 32 * EACH_S)


class Sleeper:
    """A model whose calls take a fixed time and some for each request, and no processor."""

    def recommend(self, histories, k: int, *, constraints=None, sessions=None) -> Recommendations:
        time.sleep(FIXED_S + EACH_S * len(histories))
        shape = (len(histories), k)
        items = np.broadcast_to(np.arange(k), shape)
        return Recommendations(items=items, scores=np.zeros(shape, dtype=np.float32))


async def _offer(runtime: RecommenderRuntime, rate: float, seconds: float) -> Counter[str]:
    metrics = PathMetrics(CollectorRegistry())
    chain = AnswerChain(runtime, ServingSettings(model_threads=1), metrics)
    await asyncio.to_thread(chain.warm_up)
    admission = Admission(chain.wait_s, lambda: chain.default_deadline_s, metrics)
    outcomes: Counter[str] = Counter()

    async def ask(due: float) -> None:
        try:
            ticket = admission.enter(DEADLINE_S)
        except OverloadedError:
            outcomes["refused"] += 1
            return
        try:
            answer = await chain.answer(Query(history=["i1"], k=1), due + DEADLINE_S)
        except OverloadedError:
            outcomes["refused"] += 1
        else:
            late = time.monotonic() > due + DEADLINE_S
            outcomes["late" if late else "fallback" if answer.is_degraded else "good"] += 1
        finally:
            admission.leave(ticket)

    started = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for place in range(int(rate * seconds)):
            due = started + place / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.create_task(ask(due))
    chain.close()
    assert admission.pending == 0
    return outcomes


@pytest.mark.slow  # in real time, so on a quiet machine only
def test_goodput_is_flat_under_overload(make_runtime) -> None:
    runtime = make_runtime(Sleeper())
    below = asyncio.run(_offer(runtime, 0.8 * CAPACITY, 1.0))
    above = asyncio.run(_offer(runtime, 3 * CAPACITY, 1.0))
    assert below["good"] / below.total() > 0.9
    assert above["good"] > 0.7 * CAPACITY
    # Those who were let in were let in for something.
    admitted = above.total() - above["refused"]
    assert above["good"] / admitted > 0.7


def test_queues_may_be_shorter_after_late_answers_and_longer_again_after_those_in_time() -> None:
    now = [0.0]
    admission = Admission(
        lambda pending, _: 0.4 * pending, lambda: 1.0, PathMetrics(CollectorRegistry()), clock=lambda: now[0]
    )

    def lets_in() -> bool:
        try:
            admission.leave(admission.enter(None))
        except OverloadedError:
            return False
        return True

    held = admission.enter(None)
    assert lets_in()  # 0.4 s of waiting fit into 0.45 of a second
    for _ in range(3):
        ticket = admission.enter(10.0)
        now[0] += 9.5
        admission.leave(ticket)
    assert admission.filled == pytest.approx(0.45 * 0.9**3)
    assert not lets_in()
    for _ in range(100):
        admission.leave(admission.enter(10.0))
    assert lets_in()
    admission.leave(held)
    assert admission.pending == 0


def test_who_steps_aside_is_not_waited_for_and_never_late() -> None:
    now = [0.0]
    metrics = PathMetrics(CollectorRegistry())
    admission = Admission(lambda pending, _: 0.4 * pending, lambda: 1.0, metrics, clock=lambda: now[0])
    slow, other = admission.enter(None), admission.enter(None)
    for _ in range(2):
        admission.step_aside(slow)
        assert admission.pending == 1
    admission.leave(other)
    now[0] += 20.0
    admission.leave(slow)
    assert (admission.pending, admission.filled) == (0, 0.45)


def test_clients_that_leave_no_time_do_not_shorten_the_line_of_others() -> None:
    now = [0.0]
    metrics = PathMetrics(CollectorRegistry())
    # As `AnswerChain.wait_s`: nobody before it, or a deadline below what one answer takes.
    admission = Admission(
        lambda pending, deadline_s: 0.05 * pending if deadline_s > 0.05 else 0.0,
        lambda: 1.0,
        metrics,
        clock=lambda: now[0],
    )

    def hurry() -> None:
        for _ in range(20):
            hasty = admission.enter(0.001)
            now[0] += 0.2
            admission.leave(hasty)

    hurry()
    admission.enter(None)
    hurry()
    assert (admission.filled, admission.pending) == (0.45, 1)
