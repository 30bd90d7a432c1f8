"""From what a service has to do to the machines that do it."""

from __future__ import annotations

import json
import math

import pytest
from typer.testing import CliRunner

from recsys.errors import ConfigError
from serving.cli import app
from serving.sizing.costs import Costs, measured
from serving.sizing.plan import Needs, plan

COSTS = Costs(
    cpu="a test",
    answer_ms=4.0,
    answer_ms_per_doubling=0.5,
    fusion_ms=2.0,
    event_ms=1.0,
    store_read_ms=0.1,
    store_event_ms=0.2,
    offline_event_ms=0.05,
    p99_ms_by_load=((0.25, 40.0), (0.5, 100.0), (0.9, 300.0)),
    service_mib=1000.0,
    worker_mib=200.0,
    item_bytes=1000.0,
    item_bytes_per_dim=8.0,
    worker_item_bytes=100.0,
    user_bytes=100.0,
    event_bytes=200.0,
    offline_event_bytes=32.0,
    answer_bytes=10_000.0,
)


def test_a_plan_is_the_formula() -> None:
    needs = Needs(
        items=40_000,
        users=1_000_000,
        requests_per_second=1000,
        events_per_second=100,
        p99_ms=100,
        history=20,
        dim=384,
        cores=8,
        memory_gib=16,
    )
    found = plan(needs, COSTS)
    assert found.answer_cpu_ms == 4 + 2 * 0.5 + 2
    assert found.load == 0.5
    assert found.workers == 15  # (1000 * 7 ms + 100 * 1 ms) / .5
    assert (found.machines, found.workers_per_machine) == (3, 8)  # two, and one spare
    assert found.machine_gib == pytest.approx((1000 + 7 * 200 + 40_000 * (1000 + 8 * 384 + 7 * 100) / 2**20) / 1024)
    remembered = 100 * 30 * 86_400  # more than twenty of each user
    assert found.store_gib == pytest.approx((1e6 * 100 + remembered * 200) / 2**30)
    assert found.store_shards == 2  # by memory: 48 GiB
    assert found.offline_writer_cores == pytest.approx(0.005)
    assert found.offline_gib_per_day == pytest.approx(100 * 86_400 * 32 / 2**30)
    assert found.network_mbit_per_second == pytest.approx(80)


def test_histories_count_where_few_events_come() -> None:
    found = plan(Needs(items=1000, users=10**6, requests_per_second=1, history=50, p99_ms=300), COSTS)
    assert found.store_gib == pytest.approx((1e6 * 100 + 50e6 * 200) / 2**30)
    assert found.answer_cpu_ms == 6  # as a catalogue of ten thousand
    assert found.store_shards == 1


def test_a_busy_store_is_divided_by_its_time() -> None:
    needs = Needs(items=1000, users=10, requests_per_second=5000, history=1, p99_ms=300, memory_gib=64)
    assert plan(needs, COSTS).store_shards == 1  # half a second of a core a second
    assert plan(needs.model_copy(update={"requests_per_second": 20_000}), COSTS).store_shards == 4


@pytest.mark.parametrize(("shards_of_room", "shards"), [(1.0, 1), (1.1, 2), (2.0, 2), (5.1, 6), (7.0, 8), (8.1, 16)])
def test_a_shard_has_whole_parts_of_the_sixteen(shards_of_room: float, shards: int) -> None:
    needs = Needs(items=1000, users=10**9, requests_per_second=1, history=50)
    gib = (1e9 * 100 + 50e9 * 200) / 2**30
    found = plan(needs.model_copy(update={"shard_gib": gib / shards_of_room}), COSTS)
    assert found.store_shards == shards
    # The fullest has no more than it has room for.
    assert math.ceil(16 / shards) / 16 * found.store_gib <= gib / shards_of_room * 1.000001


@pytest.mark.parametrize(("p99_ms", "load"), [(40, 0.25), (70, 0.375), (200, 0.7), (300, 0.9), (9999, 0.9)])
def test_the_load_is_read_off_the_measured_curve(p99_ms: float, load: float) -> None:
    assert COSTS.load_for(p99_ms) == pytest.approx(load)


def test_what_no_machine_can_do_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="p99_ms: 20 is less than the 40 ms"):
        plan(Needs(items=1000, users=10, requests_per_second=1, p99_ms=20), COSTS)
    with pytest.raises(ConfigError, match=r"memory_gib: 1 workers with 10000000 items take 38\.9 GiB, more"):
        plan(Needs(items=10**7, users=10, requests_per_second=1, memory_gib=32), COSTS)
    # Users are divided over 16 shards, however many machines there are.
    many = Needs(items=1000, users=10**9, requests_per_second=1, history=50)
    with pytest.raises(ConfigError, match=r"shard_gib: the store takes 9406 GiB, .* 16 shards; allow 588 GiB a shard"):
        plan(many, COSTS)
    assert plan(many.model_copy(update={"shard_gib": 588.0}), COSTS).store_shards == 16
    with pytest.raises(
        ConfigError, match=r"100\.0 seconds of work a second, and the 16 shards .* do 8; divide the users"
    ):
        plan(Needs(items=1000, users=10, requests_per_second=10**6), COSTS)


@pytest.mark.parametrize("option", ["--requests-per-second", "--events-per-second"])
def test_an_endless_rate_is_refused_by_name(option: str) -> None:
    given = ["plan", "--items", "1000", "--users", "10", "--requests-per-second", "1", option, "inf"]
    refused = CliRunner().invoke(app, given)
    assert refused.exit_code == 2
    assert option in refused.stderr


def test_more_work_never_takes_fewer_machines() -> None:
    sizes = [
        plan(
            Needs(items=10**exponent, users=10**6, requests_per_second=rate, p99_ms=300, memory_gib=10**6), measured()
        ).machines
        for exponent in (4, 5, 6, 7)
        for rate in (10, 1000, 100_000)
    ]
    for first in range(0, len(sizes), 3):
        assert sizes[first : first + 3] == sorted(sizes[first : first + 3])
    assert sizes[2::3] == sorted(sizes[2::3])


def test_the_command_prints_the_plan_or_says_what_is_impossible() -> None:
    arguments = [
        "plan",
        "--items",
        "10000000",
        "--users",
        "100000000",
        "--requests-per-second",
        "5000",
        "--shard-gib",
        "80",
    ]
    run = CliRunner()
    done = run.invoke(app, [*arguments, "--memory-gib", "1024", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["machines"] > 1
    shown = run.invoke(app, [*arguments, "--memory-gib", "1024"]).stdout
    assert f"{found['machines']}, 1 of them spare" in shown
    assert isinstance(run.invoke(app, [*arguments, "--memory-gib", "1"]).exception, ConfigError)
