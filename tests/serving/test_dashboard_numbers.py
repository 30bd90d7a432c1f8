"""What the page works out itself: rates and quantiles of two looks at the traffic, moved ranks, lines of a chart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from node_page import run_module

import serving

_PAGES = Path(serving.__file__).with_name("dashboard")


def _run(module: str, expression: str, **values: Any) -> Any:
    given = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in values.items())
    return run_module(
        _PAGES / f"{module}.js",
        "const it = await import(MODULE);\n",
        f"{given}console.log(JSON.stringify({expression}));",
    )


def _distribution(*counts: int, above: int = 0, total: float = 0.0) -> dict[str, Any]:
    return {"bounds": [0.1, 0.2, 0.4], "counts": list(counts), "count": counts[-1] + above, "sum": total}


def _traffic(at: float, **changes: Any) -> dict[str, Any]:
    return {
        "at": at,
        "started": 0.0,
        "processes": [0.0],
        "in_flight": 1,
        "routes": [],
        "sources": [],
        "certified": {},
        "stages": [],
        "shed": {},
        "refused": {},
        "events": {},
        "store": {"errors": 0, "offline_running": None, "lag_entries": None, "lag_seconds": None},
        "breakers": {},
        "drift": {},
    } | changes


def _route(route: str, statuses: dict[str, int], seconds: dict[str, Any], method: str = "POST") -> dict[str, Any]:
    return {"method": method, "route": route, "statuses": statuses, "seconds": seconds}


def test_a_quantile_is_read_between_the_bounds_of_its_bucket() -> None:
    found = _run(
        "rates",
        "[.25, .5, .75, .9, 1].map((share) => it.quantile(some, share)).concat([it.quantile(none, .5)])",
        some=_distribution(2, 6, 8, above=2),
        none=_distribution(0, 0, 0),
    )
    # Of ten observations two are up to .1, four up to .2, two up to .4, two above: .25 is at 2.5, an eighth into the
    # second bucket; .5 at 5, three quarters into it; .75 at 7.5, three quarters into the third; the rest is unknown.
    assert found[:3] == pytest.approx([0.1125, 0.175, 0.35])
    assert found[3:] == [0.4, 0.4, None]


def test_rates_and_shares_are_of_what_came_between_two_looks() -> None:
    before = _traffic(
        100.0,
        routes=[_route("/v1/recommend", {"200": 100}, _distribution(100, 100, 100))],
        sources=[{"source": "generator", "fallback_reason": None, "lists": 90}],
        certified={"yes": 50, "no": 40},
        events={"accepted": 5},
        stages=[
            {
                "stage": "generator",
                "batch_size": {"bounds": [1, 2], "counts": [90, 90], "count": 90, "sum": 90},
                "wait_seconds": _distribution(90, 90, 90),
                "waiting": 0,
            }
        ],
    )
    now = _traffic(
        110.0,
        routes=[
            _route("/v1/recommend", {"200": 130, "503": 10}, _distribution(100, 140, 140)),
            _route("/v1/events", {"200": 10}, _distribution(10, 10, 10)),
            _route("/v1/traffic", {"200": 9}, _distribution(9, 9, 9), "GET"),
        ],
        sources=[
            {"source": "generator", "fallback_reason": None, "lists": 114},
            {"source": "popularity", "fallback_reason": "no_time", "lists": 6},
        ],
        certified={"yes": 68, "no": 42},
        events={"accepted": 15, "rejected": 1},
        shed={"overloaded": 10},
        stages=[
            {
                "stage": "generator",
                "batch_size": {"bounds": [1, 2], "counts": [90, 102], "count": 102, "sum": 114},
                "wait_seconds": _distribution(90, 114, 114),
                "waiting": 3,
            }
        ],
    )
    found = _run("rates", "it.between(before, now)", before=before, now=now)
    assert found["seconds"] == 10
    assert (found["requests"], found["rate"]) == (50, 5)
    assert found["statuses"] == {"200": 40, "503": 10}
    assert found["classRates"] == {"2xx": 4, "5xx": 1}
    assert found["failed"] == pytest.approx(0.2)
    assert found["latency"] == pytest.approx([0.15, 0.195, 0.199])
    assert [route["route"] for route in found["routes"]] == ["/v1/recommend", "/v1/events"]
    assert (found["lists"], found["fallback"]) == (30, pytest.approx(0.2))
    assert [source["share"] for source in found["sources"]] == pytest.approx([0.8, 0.2])
    assert found["certified"] == pytest.approx(0.9)
    assert found["batchSize"] == 2
    assert found["wait"] == pytest.approx(0.195)
    assert found["events"] == [["accepted", 10], ["rejected", 1]]
    assert found["refused"] == [["overloaded", 10]]


def test_the_first_look_is_of_all_since_the_start_and_an_idle_service_has_no_times() -> None:
    now = _traffic(110.0, started=60.0, routes=[_route("/v1/recommend", {"200": 100}, _distribution(100, 100, 100))])
    found = _run("rates", "it.between(null, now)", now=now)
    assert (found["seconds"], found["rate"]) == (50, 2)
    idle = _run("rates", "it.between(now, later)", now=now, later=now | {"at": 113.0})
    assert (idle["rate"], idle["failed"], idle["fallback"], idle["certified"]) == (0, None, None, None)
    assert idle["latency"] == [None, None, None]
    assert idle["routes"] == []


def test_another_process_does_not_go_on_from_the_one_before() -> None:
    looks = [_traffic(1.0), _traffic(2.0), _traffic(3.0, started=2.5, processes=[2.5])]
    assert _run("rates", "[it.goesOn(l[0], l[1]), it.goesOn(l[1], l[2]), it.goesOn(l[1], l[0])]", l=looks) == [
        True,
        False,
        False,
    ]


def test_nothing_is_told_across_a_worker_that_was_replaced_or_did_not_tell_its_numbers() -> None:
    both = _traffic(30.0, started=10.0, processes=[10.0, 20.0])
    after = {
        "both, later": both | {"at": 33.0},
        "one is missing": both | {"at": 33.0, "processes": [10.0]},
        "one is new": both | {"at": 33.0, "processes": [10.0, 32.0]},
    }
    assert _run("rates", "Object.values(after).map((now) => it.goesOn(both, now))", both=both, after=after) == [
        True,
        False,
        False,
    ]


def test_moved_ranks_are_those_between_two_lists() -> None:
    here, there = ["a", "b", "c", "d"], ["b", "a", "c", "e"]
    assert _run("compare", "it.places(here, there)", here=here, there=there) == [
        {"item": "a", "rank": 1, "there": 2, "moved": 1},
        {"item": "b", "rank": 2, "there": 1, "moved": -1},
        {"item": "c", "rank": 3, "there": 3, "moved": 0},
        {"item": "d", "rank": 4, "there": None, "moved": None},
    ]
    assert _run("compare", "it.common(here, there)", here=here, there=there) == 3
    assert _run("compare", "[it.moved(here, 0, 2), it.moved(here, 3, 0)]", here=here) == [
        ["b", "c", "a", "d"],
        ["d", "a", "b", "c"],
    ]


def test_an_axis_ends_with_a_round_number_and_a_line_is_interrupted_where_nothing_is_known() -> None:
    ends = _run("chart", "values.map(it.roundUp)", values=[0, 0.03, 0.11, 1, 7, 19, 20, 51])
    assert ends == pytest.approx([1, 0.05, 0.2, 1, 10, 20, 20, 100])
    points = [[0, 1], [1, None], [2, 3], [3, 4]]
    assert _run("chart", "it.pathOf(points)", points=points) == "M0.0 1.0M2.0 3.0L3.0 4.0"


def test_a_difference_is_shown_only_where_its_interval_leaves_zero_out() -> None:
    rates = [
        {"difference": 0.1, "low": 0.01, "high": 0.2},
        {"difference": -0.1, "low": -0.2, "high": -0.01},
        {"difference": 0.1, "low": -0.1, "high": 0.3},
        {"difference": 0.1, "low": None, "high": None},
        {"difference": None, "low": None, "high": None},
    ]
    said = _run("experiments", "rates.map((rate) => it.verdict(rate)?.text ?? null)", rates=rates)
    assert said == ["better", "worse", "no difference shown", "too few users to tell", None]
    assert _run("experiments", "it.widest([{ rates }])", rates=rates) == pytest.approx(0.3)


def test_a_view_looks_again_and_again_one_look_at_a_time_until_it_is_left() -> None:
    seen = run_module(
        _PAGES / "repeat.js",
        "globalThis.document = { hidden: false, addEventListener() {} };\nconst it = await import(MODULE);\n",
        """
        let begun = 0, running = 0, most = 0;
        const work = async () => {
          begun++; most = Math.max(most, ++running);
          await new Promise((resolve) => setTimeout(resolve, 5));
          running--;
          if (begun === 3) { looks.stop(); done(); }
        };
        let done;
        const ended = new Promise((resolve) => { done = resolve; });
        const looks = it.repeatedly(work, 1);
        looks.start();
        looks.start();
        await ended;
        await new Promise((resolve) => setTimeout(resolve, 30));
        console.log(JSON.stringify({ begun, most }));
        """,
    )
    assert seen == {"begun": 3, "most": 1}
