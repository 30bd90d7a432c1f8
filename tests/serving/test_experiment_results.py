"""What came of experiments: counts, differences with intervals, and whether the users fit the shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fastapi.testclient import TestClient

from feature_store import OnlineStore
from feature_store.consumer import OfflineConsumer
from feature_store.log import EventLog
from feature_store.offline import OfflineStore
from feature_store.offline_writer import OfflineWriter
from serving.app import create_app
from serving.experiments import load_plan
from serving.results import ExperimentResults
from serving.runtime import RecommenderRuntime
from serving.seeding import Seeding
from serving.settings import ServingSettings
from serving.slate_writer import SlateWriter

LAYER: dict[str, Any] = {
    "name": "page",
    "experiments": {"cap": {"variants": {"control": {}, "two": {"max_per_category": 2}}}},
    "splits": [{"cap/control": 5000, "cap/two": 5000}],
}


class Lists(OfflineStore):
    """An offline store that holds what a test says, version by version."""

    def __init__(self, directory: Path, *rows: tuple[str, str, str, list[str]]) -> None:
        super().__init__(directory)
        OfflineWriter(directory).close()
        self.rows = list(rows)
        self.reads = 0

    def exposures(self) -> pl.DataFrame:
        self.reads += 1
        columns = {"experiment": pl.String, "variant": pl.String, "user_id": pl.String, "outcomes": pl.List(pl.String)}
        return pl.DataFrame(self.rows, schema=columns, orient="row")


def results(directory: Path, *rows: tuple[str, str, str, list[str]], layer: dict[str, Any] = LAYER) -> Any:
    plan = load_plan({"layers": [layer], "holdout": 500})
    return ExperimentResults(plan, Lists(directory, *rows)).read()


def test_rates_and_differences_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    # The numbers of tests/evaluation/test_ratios.py: control 1 of 4 lists, treatment 3 of 6; the interval of the
    # difference is 1/4 plus and minus 1.4942494.
    rows = [("cap", "control", "c1", ["view"]), ("cap", "control", "c1", [])] + 2 * [("cap", "control", "c2", [])]
    rows += [("cap", "two", "t1", ["view"]), ("cap", "two", "t1", []), ("cap", "two", "t2", [])]
    rows += [("cap", "two", "t3", ["purchase", "view"]), ("cap", "two", "t3", ["view"]), ("cap", "two", "t3", [])]
    found = results(tmp_path, *rows, ("another", "control", "c1", ["view"]))
    assert (found.holdout, found.note) == (0.05, None)
    (cap,) = found.experiments
    assert [(each.variant, each.users, each.lists, each.share) for each in cap.variants] == [
        ("control", 2, 4, 0.5),
        ("two", 3, 6, 0.5),
    ]
    assert [outcome.event_type for outcome in cap.outcomes] == [None, "view", "purchase"]
    for outcome in cap.outcomes[:2]:
        control, two = outcome.rates
        assert (control.lists, control.rate, control.difference) == (1, 0.25, None)
        assert (two.lists, two.rate, two.difference) == (3, 0.5, 0.25)
        assert (two.low, two.high) == (pytest.approx(0.25 - 1.4942494), pytest.approx(0.25 + 1.4942494))
    assert cap.outcomes[2].rates[1].rate == pytest.approx(1 / 6)
    # chi-square .2 with one degree of freedom
    assert cap.sample_ratio_p_value == pytest.approx(0.6547208, abs=1e-6)
    assert not cap.sample_ratio_mismatch
    assert cap.note is None


def test_users_that_do_not_fit_the_shares_are_a_mismatch(tmp_path: Path) -> None:
    rows = [("cap", "control", f"c{user}", []) for user in range(80)]
    rows += [("cap", "two", f"t{user}", []) for user in range(30)]
    (cap,) = results(tmp_path, *rows).experiments
    assert cap.sample_ratio_mismatch
    assert "No event names one of its lists" in cap.note
    uneven = LAYER | {"splits": [{"cap/control": 800, "cap/two": 300}, {"cap/control": 8000, "cap/two": 3000 - 1000}]}
    (cap,) = results(tmp_path / "a", *rows, layer=uneven).experiments
    assert (cap.sample_ratio_p_value, cap.sample_ratio_mismatch) == (None, False)
    grown = LAYER | {"splits": [{"cap/control": 800, "cap/two": 300}, {"cap/control": 4000, "cap/two": 1500}]}
    (cap,) = results(tmp_path / "b", *rows, layer=grown).experiments
    assert cap.sample_ratio_p_value == pytest.approx(1.0)


def test_without_data_it_says_so(tmp_path: Path) -> None:
    (cap,) = results(tmp_path).experiments
    assert "Nobody" in cap.note
    assert [(each.users, each.lists) for each in cap.variants] == [(0, 0), (0, 0)]
    assert [(each.rate, each.difference) for each in cap.outcomes[0].rates] == [(None, None), (None, None)]
    plan = load_plan({"layers": [LAYER]})
    for nothing in (None, OfflineStore(tmp_path / "nothing")):
        found = ExperimentResults(plan, nothing).read()
        assert "no offline store" in (found.note or "")
        assert len(found.experiments) == 1
    damaged = Lists(tmp_path / "damaged")
    (tmp_path / "damaged" / "manifest.json").write_text("{")
    assert "cannot be read" in (ExperimentResults(plan, damaged).read().note or "")
    found = ExperimentResults(load_plan({}), None).read()
    assert (found.experiments, found.note) == ([], None)


def test_one_user_in_a_variant_has_a_difference_without_an_interval(tmp_path: Path) -> None:
    (cap,) = results(tmp_path, ("cap", "control", "c", []), ("cap", "two", "t", ["view"])).experiments
    assert [(each.difference, each.low) for each in cap.outcomes[0].rates] == [(None, None), (1.0, None)]


def test_numbers_are_counted_again_when_there_are_others_and_not_at_every_look(tmp_path: Path) -> None:
    store = Lists(tmp_path, ("cap", "control", "c", []))
    now = 0.0
    counted = ExperimentResults(load_plan({"layers": [LAYER]}), store, clock=lambda: now)
    assert [counted.read().experiments[0].variants[0].lists for _ in range(3)] == [1, 1, 1]
    assert store.reads == 1
    store.rows.append(("cap", "control", "d", []))
    now = 60.0
    assert counted.read().experiments[0].variants[0].lists == 1, "the store is as it was"
    assert store.reads == 1
    with OfflineWriter(tmp_path) as writer:
        writer.manifest.write(tmp_path)
    assert counted.read().experiments[0].variants[0].lists == 1, "seconds have not passed"
    now = 120.0
    assert counted.read().experiments[0].variants[0].lists == 2


def test_a_list_and_the_event_that_follows_it_are_counted(
    runtime: RecommenderRuntime, store: OnlineStore, tmp_path: Path
) -> None:
    with OfflineWriter(tmp_path / "offline") as writer:
        OfflineConsumer(EventLog(store), writer).catch_up()
    histories = {f"u{user}": ["i1"] for user in range(8)}
    app = create_app(
        runtime,
        store,
        ServingSettings.model_validate({"experiments": {"layers": [LAYER]}}),
        seeding=Seeding(store, "v1", histories),
        slates=SlateWriter(store),
        outcomes=OfflineStore(tmp_path / "offline"),
    )
    with TestClient(app) as client:
        variants = []
        for user in histories:
            answer = client.post("/v1/recommend", json={"user_id": user, "k": 3}).json()
            variants.append(answer["variants"]["cap"])
            named = client.post(
                "/v1/recommend", json={"user_id": user, "k": 3, "model_version": answer["model_version"]}
            )
            assert named.json()["variants"] == {}, "what is tried out is in no experiment"
            event = {
                "event_id": "e",
                "user_id": user,
                "item_id": answer["items"][0]["item_id"],
                "recommendation_id": answer["recommendation_id"],
            }
            assert client.post("/v1/events", json=event).json()["accepted"] == 1
        client.app.state.context.slates.stop()  # type: ignore[attr-defined]
        with OfflineWriter(tmp_path / "offline") as writer:
            OfflineConsumer(EventLog(store), writer).catch_up()
        (cap,) = client.get("/v1/experiments").json()["experiments"]
    assert {each["variant"]: each["lists"] for each in cap["variants"]} == {
        variant: variants.count(variant) for variant in ("control", "two")
    }
    assert [rate["rate"] for rate in cap["outcomes"][0]["rates"]] == [1.0, 1.0]
    assert cap["variants"][1]["settings"] == {"max_per_category": 2}
