from __future__ import annotations

from collections import Counter

import pytest

from recsys.errors import ConfigError
from recsys.simulator.experiment.assignment import NUM_BUCKETS, bucket_of
from recsys.simulator.experiment.sample_ratio import sample_ratio_p_value
from serving.experiments import ExperimentPlan, Experiments, load_plan, parse_override

PLAN = {
    "holdout": 1000,
    "layers": [
        {
            "name": "ranking",
            "experiments": {
                "ranker": {"variants": {"control": {}, "new": {"mode": "reason"}}},
                "depth": {"variants": {"shallow": {"k": 5}, "deep": {"k": 50}}},
            },
            "splits": [{"ranker/control": 4000, "ranker/new": 4000, "depth/deep": 1000}],
        },
        {
            "name": "page",
            "experiments": {"title": {"variants": {"short": {}, "long": {"long_titles": True}}}},
            "splits": [{"title/short": 5000, "title/long": 5000}],
        },
    ],
}
USERS = [f"user{number}" for number in range(20_000)]


def test_users_keep_their_arm_when_it_grows_and_an_arm_that_joins_shuffles_nobody() -> None:
    def arms(*splits: dict[str, int]) -> dict[str, str | None]:
        layer = PLAN["layers"][0] | {"splits": splits}
        running = Experiments(ExperimentPlan.model_validate({"layers": [layer]}))
        found = {}
        for user in USERS[:3000]:
            exposures = running.assign(user).exposures
            found[user] = exposures[0].variant if exposures else None
        return found

    before = arms({"ranker/control": 5000, "ranker/new": 500})
    grown = arms({"ranker/control": 5000, "ranker/new": 500}, {"ranker/control": 5000, "ranker/new": 5000})
    assert {(before[user], grown[user]) for user in before} == {("control", "control"), ("new", "new"), (None, "new")}
    joined = arms(
        {"ranker/control": 5000, "ranker/new": 500}, {"ranker/control": 5000, "ranker/new": 500, "depth/deep": 9}
    )
    moved = {(before[user], joined[user]) for user in before if before[user] != joined[user]}
    assert moved <= {(None, "deep")}


def test_shares_hold_layers_cross_and_the_holdout_is_in_nothing() -> None:
    running = Experiments(load_plan(PLAN))
    assignments = {user: running.assign(user) for user in USERS}
    assert all(assignments[user] == running.assign(user) for user in USERS[:100])
    held_out = [found for found in assignments.values() if found.is_holdout]
    assert len(held_out) / len(USERS) == pytest.approx(0.1, abs=0.01)
    assert all(not found.exposures and not found.settings for found in held_out)
    pairs = Counter(
        tuple((each.experiment, each.variant) for each in found.exposures)
        for found in assignments.values()
        if not found.is_holdout
    )
    crossed = {
        f"{experiment}/{variant} {title}": pairs[(experiment, variant), ("title", title)]
        for experiment, variant in (("ranker", "control"), ("ranker", "new"), ("depth", "deep"))
        for title in ("short", "long")
    }
    shares = {name: 1 if name.startswith("depth") else 4 for name in crossed}
    assert sample_ratio_p_value(crossed, shares) > 0.001
    assert pairs[("title", "short"),] + pairs[("title", "long"),] > 0, "the rest of a layer is in no experiment of it"


def test_an_arm_carries_its_settings_and_its_exposure() -> None:
    running = Experiments(load_plan(PLAN | {"holdout": 0}))
    user = next(user for user in USERS if len(running.assign(user).settings) == 2)
    found = running.assign(user)
    assert found.settings in ({"mode": "reason", "long_titles": True}, {"k": 50, "long_titles": True})
    assert [each.bucket for each in found.exposures] == [bucket_of("ranking", user), bucket_of("page", user)]
    assert not any(each.forced for each in found.exposures)


def test_a_tester_sees_the_arm_that_was_asked_for_even_from_the_holdout() -> None:
    running = Experiments(load_plan(PLAN | {"holdout": NUM_BUCKETS}))
    found = running.assign("anybody", parse_override("depth = shallow, "))
    assert [(each.experiment, each.variant, each.forced) for each in found.exposures] == [("depth", "shallow", True)]
    assert found.settings == {"k": 5}
    assert found.is_holdout
    for unknown in ({"depth": "deeper"}, {"nothing": "new"}):
        with pytest.raises(ConfigError, match="there is no"):
            running.assign("anybody", unknown)


@pytest.mark.parametrize("header", ["ranker", "ranker=", "=new", "a=b,c"])
def test_a_malformed_override_is_one_error(header: str) -> None:
    with pytest.raises(ConfigError, match="expected experiment=variant"):
        parse_override(header)


def test_impossible_plans_name_the_field() -> None:
    layer = PLAN["layers"][0]
    for change, message in [
        ({"layers": [layer | {"splits": [{"ranker/old": 1}]}]}, "no arm ranker/old"),
        ({"layers": [layer | {"splits": [{"ranker/new": 6000, "ranker/control": 6000}]}]}, "12000 buckets"),
        ({"layers": [layer, layer]}, "ranking stands twice"),
        ({"layers": [layer, layer | {"name": "other"}]}, "depth stands twice"),
        ({"layers": [layer | {"name": "holdout"}]}, "holdout stands twice"),
        ({"layers": [layer | {"splits": []}]}, "layers.0.splits"),
        ({"holdout": 10_001}, "holdout"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_plan(change)
