"""Batches by load, deadlines in the queue, refusals; with a model that only sleeps or waits for the test."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from serving.batching import Batcher, OutOfTimeError, OverloadedError, StalledError
from serving.cost import CostModel

FAR = 60.0


class Observer:
    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.drops: list[str] = []
        self.depths: list[int] = []

    def queue_changed(self, stage: str, depth: int) -> None:
        self.depths.append(depth)

    def batch_ran(self, stage: str, size: int, seconds: float, waited_s: Sequence[float]) -> None:
        self.sizes.append(size)
        assert len(waited_s) == size

    def dropped(self, stage: str, reason: str) -> None:
        self.drops.append(reason)


class Model:
    """Doubles numbers once the test opens the gate; negative ones fail."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.gate = threading.Event()
        self.calls: list[list[int]] = []
        if is_open:
            self.gate.set()

    def __call__(self, queries: Sequence[int]) -> Sequence[int | Exception]:
        self.calls.append(list(queries))
        assert self.gate.wait(5)
        if any(query < 0 for query in queries):
            raise ValueError("negative")
        return [2 * query for query in queries]


def _batcher(model: Callable[[Sequence[int]], Any], observer: Observer, **further: Any) -> Batcher[int, int]:
    options = {"workers": 1, "max_batch": 8, "max_waiting": 100} | further
    batcher: Batcher[int, int] = Batcher(stage="test", run=model, observer=observer, **options)
    batcher.cost.observe(1, 0.001, time.monotonic())
    batcher.cost.observe(8, 0.002, time.monotonic())
    return batcher


async def _submit(batcher: Batcher[int, int], query: int, key: object = None, within: float = FAR) -> int:
    return (await batcher.submit(query, key=key, deadline=time.monotonic() + within)).result


def _run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(bounded())


async def _started(model: Model) -> None:
    while not model.calls:
        await asyncio.sleep(0.001)


def test_a_lone_request_waits_for_nobody_and_those_behind_it_share_the_next_call() -> None:
    model, observer = Model(), Observer()
    batcher = _batcher(model, observer)

    async def scenario() -> None:
        first = asyncio.create_task(_submit(batcher, 1))
        await _started(model)
        rest = [asyncio.create_task(_submit(batcher, query)) for query in range(2, 7)]
        await asyncio.sleep(0.01)
        assert (model.calls, batcher.depth) == ([[1]], 5)
        model.gate.set()
        assert await asyncio.gather(first, *rest) == [2, 4, 6, 8, 10, 12]

    _run(scenario)
    assert model.calls == [[1], [2, 3, 4, 5, 6]]
    assert observer.sizes == [1, 5]
    assert observer.depths[-1] == 0


def test_what_arrives_in_the_same_turn_of_the_loop_shares_a_call() -> None:
    model, observer = Model(is_open=True), Observer()
    batcher = _batcher(model, observer)

    async def scenario() -> None:
        assert await asyncio.gather(*(_submit(batcher, query) for query in range(4))) == [0, 2, 4, 6]

    _run(scenario)
    assert model.calls == [[0, 1, 2, 3]]


def test_only_equal_keys_share_a_call_and_no_batch_is_larger_than_allowed() -> None:
    model, observer = Model(), Observer()
    batcher = _batcher(model, observer, max_batch=3)

    async def scenario() -> None:
        first = asyncio.create_task(_submit(batcher, 0, "a"))
        await _started(model)
        keys = "abaabaa"
        rest = [asyncio.create_task(_submit(batcher, place, key)) for place, key in enumerate(keys, 1)]
        await asyncio.sleep(0.01)
        model.gate.set()
        assert await asyncio.gather(first, *rest) == [2 * place for place in range(8)]

    _run(scenario)
    assert model.calls == [[0], [1, 3, 4], [2, 5], [6, 7]]


def test_a_request_that_cannot_be_answered_does_not_fail_those_beside_it() -> None:
    model = Model(is_open=True)
    batcher = _batcher(model, Observer())

    async def scenario() -> None:
        answers = await asyncio.gather(*(_submit(batcher, query) for query in (1, -1, 3)), return_exceptions=True)
        assert (answers[0], answers[2]) == (2, 6)
        assert isinstance(answers[1], ValueError)

    _run(scenario)
    assert model.calls == [[1, -1, 3], [1], [-1], [3]]


def test_a_request_whose_time_is_up_in_the_queue_costs_no_model_time() -> None:
    model, observer = Model(), Observer()
    batcher = _batcher(model, observer)

    async def scenario() -> None:
        first = asyncio.create_task(_submit(batcher, 1))
        await _started(model)
        with pytest.raises(OutOfTimeError) as caught:
            await _submit(batcher, 2, within=0.05)
        assert caught.value.lateness == "waited"
        model.gate.set()
        assert await first == 2
        assert await _submit(batcher, 3) == 6

    _run(scenario)
    assert model.calls == [[1], [3]]
    assert observer.drops == ["expired"]


def test_a_request_whose_time_is_up_while_the_model_works_is_told_so() -> None:
    model = Model()
    batcher, another = _batcher(model, Observer()), _batcher(model, Observer())

    async def scenario() -> None:
        with pytest.raises(OutOfTimeError) as caught:
            await _submit(batcher, 1, within=0.05)
        assert caught.value.lateness == "ran"
        with pytest.raises(OutOfTimeError) as caught:
            # Nobody else was before it, and it took a hundred times as long as usual.
            await _submit(another, 1, within=0.15)
        assert caught.value.lateness == "overran"
        model.gate.set()

    _run(scenario)


def test_one_slow_batch_is_one_sign_however_many_waited_for_it() -> None:
    model = Model()
    batcher = _batcher(model, Observer())

    async def scenario() -> None:
        late = await asyncio.gather(*(_submit(batcher, 1, within=0.2) for _ in range(5)), return_exceptions=True)
        assert sorted(error.lateness for error in late if isinstance(error, OutOfTimeError)) == [
            "overran",
            *["ran"] * 4,
        ]
        model.gate.set()

    _run(scenario)


def test_who_cannot_be_served_in_time_is_refused_at_once() -> None:
    model, observer = Model(), Observer()
    batcher = _batcher(model, observer, max_waiting=3)

    async def scenario() -> None:
        with pytest.raises(OutOfTimeError):
            await _submit(batcher, 0, within=1e-6)
        tasks = [asyncio.create_task(_submit(batcher, 1))]
        await _started(model)
        tasks += [asyncio.create_task(_submit(batcher, query)) for query in (2, 3, 4)]
        await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError) as caught:
            await _submit(batcher, 5)
        assert caught.value.retry_after_s > 0
        model.gate.set()
        assert await asyncio.gather(*tasks) == [2, 4, 6, 8]

    _run(scenario)
    assert observer.drops == ["expired", "overloaded"]


def test_a_queue_that_takes_longer_than_the_deadline_refuses() -> None:
    model = Model()
    batcher = _batcher(model, Observer(), max_batch=1)
    batcher.cost = CostModel()
    batcher.cost.observe(1, 0.1, time.monotonic())

    async def scenario() -> None:
        tasks = [asyncio.create_task(_submit(batcher, query)) for query in range(4)]
        await _started(model)
        # About 0.4 s of work lies before it.
        with pytest.raises(OverloadedError):
            await _submit(batcher, 9, within=0.3)
        tasks.append(asyncio.create_task(_submit(batcher, 4, within=5.0)))
        model.gate.set()
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8]

    _run(scenario)


def test_a_model_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.batching._STALLED_S", 0.02)
    monkeypatch.setattr("serving.batching._STALLED", 1)
    model, observer = Model(), Observer()
    batcher = _batcher(model, observer)

    async def scenario() -> None:
        task = asyncio.create_task(_submit(batcher, 1))
        await _started(model)
        await asyncio.sleep(0.03)
        with pytest.raises(StalledError):
            await _submit(batcher, 2)
        model.gate.set()
        assert await task == 2
        assert await _submit(batcher, 3) == 6

    _run(scenario)
    assert observer.drops == ["stalled"]


@pytest.mark.parametrize(("usual_s", "patience_s"), [(3.0, 0.0), (0.001, 30.0)])
def test_a_slow_model_is_not_taken_to_hang_after_an_idle_hour_or_a_quick_trial(
    usual_s: float, patience_s: float
) -> None:
    model, now = Model(), 0.0
    batcher: Batcher[int, int] = Batcher(
        stage="test",
        run=model,
        workers=1,
        max_batch=1,
        max_waiting=9,
        observer=Observer(),
        patience_s=patience_s,
        clock=lambda: now,
    )
    batcher.cost.observe(1, usual_s, now)

    async def scenario() -> None:
        nonlocal now
        now = 3600.0
        task = asyncio.create_task(batcher.submit(1, key=None, deadline=now + FAR))
        await _started(model)
        now += 29
        assert not batcher.is_stalled
        now += 2
        assert batcher.is_stalled
        model.gate.set()
        assert (await task).result == 2

    _run(scenario)


def test_a_client_that_leaves_takes_its_request_along() -> None:
    model = Model()
    batcher = _batcher(model, Observer())

    async def scenario() -> None:
        first = asyncio.create_task(_submit(batcher, 1))
        await _started(model)
        gone = asyncio.create_task(_submit(batcher, 2))
        stays = asyncio.create_task(_submit(batcher, 3))
        await asyncio.sleep(0.01)
        gone.cancel()
        model.gate.set()
        assert await asyncio.gather(first, stays) == [2, 6]

    _run(scenario)
    assert model.calls == [[1], [3]]


def test_costs_are_a_fixed_part_and_one_for_each() -> None:
    cost = CostModel()
    for _ in range(20):
        for size in (1, 4, 16):
            cost.observe(size, 0.010 + 0.002 * size, now=0.0)
    assert cost.fixed_s == pytest.approx(0.010, rel=0.05)
    assert cost.each_s == pytest.approx(0.002, rel=0.05)
    assert cost.seconds(8, now=0.0) == pytest.approx(0.026, rel=0.05)
    assert cost.largest_useful(100) == pytest.approx(50, abs=3)
    assert cost.largest_useful(8) == 8


def test_batches_are_never_kept_so_small_that_sharing_could_not_show() -> None:
    cost = CostModel()
    for size in (1, 2):
        cost.observe(size, 0.010 * size, now=0.0)
    assert cost.largest_useful(32) == 8
    assert cost.largest_useful(1) == 1


def test_without_two_sizes_nothing_is_taken_to_be_shared() -> None:
    cost = CostModel(first_s=0.05)
    assert cost.seconds(1, now=0.0) == pytest.approx(0.05)
    cost.observe(2, 0.02, now=0.0)
    assert (cost.fixed_s, cost.each_s) == (pytest.approx(0.0), pytest.approx(0.01))
    assert cost.largest_useful(32) == 32


def test_hours_of_lone_requests_do_not_wash_away_what_is_known_of_batches() -> None:
    cost = CostModel()
    cost.observe(8, 0.026, now=0.0)
    for _ in range(1000):
        cost.observe(1, 0.012, now=0.0)
    assert cost.seconds(1, now=0.0) == pytest.approx(0.012, rel=0.01)
    assert cost.seconds(8, now=0.0) == pytest.approx(0.026, rel=0.1)


def test_a_slower_machine_is_slower_for_batches_of_all_sizes() -> None:
    cost = CostModel()
    for size in (1, 4, 16):
        for _ in range(20):
            cost.observe(size, 0.010 + 0.002 * size, now=0.0)
    for _ in range(60):
        cost.observe(1, 3 * 0.012, now=0.0)
    assert cost.seconds(1, now=0.0) == pytest.approx(3 * 0.012, rel=0.15)
    assert cost.seconds(16, now=0.0) > 1.5 * 0.042


def test_those_ahead_that_fit_the_same_batch_cost_what_they_add_to_it() -> None:
    batcher = _batcher(Model(), Observer(), max_batch=4)
    batcher.cost = CostModel()
    for _ in range(50):
        for size in (1, 4):
            batcher.cost.observe(size, 0.010 + 0.002 * size, now=time.monotonic())
    waits = [batcher.wait_s(ahead) for ahead in (0, 3, 4, 11)]
    assert waits == pytest.approx([0.012, 0.018, 0.018 + 0.012, 2 * 0.018 + 0.018], rel=0.02)


def test_a_slow_batch_is_forgotten_with_time_so_that_the_model_is_tried_again() -> None:
    cost = CostModel()
    cost.observe(1, 8.0, now=100.0)
    assert cost.seconds(1, now=100.0) == pytest.approx(8.0)
    assert cost.seconds(1, now=110.0) == pytest.approx(2.0)


def test_after_its_end_nothing_is_taken_and_what_runs_is_answered() -> None:
    async def run() -> None:
        model, observer = Model(), Observer()
        batcher = _batcher(model, observer)
        running = asyncio.create_task(batcher.submit(2, key=None, deadline=time.monotonic() + FAR))
        while not model.calls:
            await asyncio.sleep(0.001)
        batcher.close()
        with pytest.raises(StalledError, match="has ended"):
            await batcher.submit(3, key=None, deadline=time.monotonic() + FAR)
        model.gate.set()
        assert (await running).result == 4
        assert observer.drops == ["stalled"]

    asyncio.run(run())
