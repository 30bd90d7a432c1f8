from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from feature_store import InvalidEventError
from feature_store.slates import Exposure, ServedSlate, Slot, SlotOutcome, history_hash

SLATE = ServedSlate(
    request_id="r1",
    user_id="196",
    timestamp=1_700_000_000.0,
    history_hash=history_hash(["50", "181"]),
    profile_version=None,
    policy="generator",
    model_version="abc",
    candidates_version="abc",
    slots=(
        Slot(item_id="172", marginal=0.5, conditional=0.5),
        Slot(item_id="ü", marginal=0.2, conditional=0.25),
    ),
    joint_log_propensity=math.log(0.125),
    epsilon=0.05,
    seed=7,
    exposures=(Exposure(experiment="ranker", variant="new", bucket=123),),
)


def test_a_record_survives_its_line_of_json() -> None:
    line = SLATE.to_json()
    assert "\n" not in line
    assert ServedSlate.from_json(line) == SLATE
    assert ServedSlate.from_json(line.encode()) == SLATE
    outcome = SlotOutcome(request_id="r1", position=1, timestamp=1.0, clicked=True, rating=-2.0, dwell_s=3.5)
    assert SlotOutcome.from_json(outcome.to_json()) == outcome


def test_the_hash_of_a_history_depends_on_items_and_order() -> None:
    hashes = {history_hash(items) for items in ([], ["a", "b"], ["b", "a"], ["ab"], ["a,b"])}
    assert len(hashes) == 5
    assert all(len(text) == 16 for text in hashes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joint_log_propensity": math.log(0.5)}, "sum of the logarithms"),
        ({"joint_log_propensity": math.nan}, "sum of the logarithms"),
        ({"slots": (SLATE.slots[0],) * 2}, "different items"),
        ({"epsilon": 1.5}, "epsilon"),
        ({"timestamp": -1.0}, "timestamp"),
        ({"request_id": ""}, "request_id"),
        ({"user_id": "x" * 300}, "user_id"),
        ({"schema_version": 2}, "schema_version must be 1"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidEventError, match=message):
        replace(SLATE, **change)


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.1, math.nan])
def test_what_was_shown_was_possible(probability: float) -> None:
    with pytest.raises(InvalidEventError, match="conditional"):
        Slot(item_id="a", marginal=0.5, conditional=probability)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: record.pop("slots"),
        lambda record: record.pop("policy"),
        lambda record: record.update(more=1),
        lambda record: record.update(slots=[1]),
        lambda record: record.update(epsilon="much"),
        lambda record: record["slots"][0].update(marginal=None),
        lambda record: record.update(user_id=5),
    ],
)
def test_a_damaged_line_is_one_error(spoil: Any) -> None:
    record = json.loads(SLATE.to_json())
    spoil(record)
    with pytest.raises(InvalidEventError):
        ServedSlate.from_json(json.dumps(record))


@pytest.mark.parametrize("text", ["", "[]", "nonsense", "[" * 100_000, b"\xff"])
def test_what_is_no_record_is_one_error(text: str | bytes) -> None:
    with pytest.raises(InvalidEventError):
        ServedSlate.from_json(text)


@pytest.mark.parametrize("change", [{"position": -1}, {"dwell_s": -1.0}, {"rating": math.inf}, {"request_id": ""}])
def test_outcomes_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidEventError):
        SlotOutcome(**{"request_id": "r", "position": 0, "timestamp": 1.0} | change)
