"""Whole reports and their verdicts, on users whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.errors import ConfigError, DataError
from recsys.simulator.experiment.analysis import AnalysisPlan, ExperimentReport, analyse
from recsys.simulator.experiment.effects import independent_effect
from recsys.simulator.experiment.interleaving import preference_of_users
from recsys.simulator.experiment.page import Evidence, OtherSimulator, report_document, save_page
from recsys.simulator.experiment.segments import adjusted
from recsys.simulator.experiment.verdict import plain, rounded, verdict

PAIRED = AnalysisPlan(control="A", treatment="B", paired=True)
LIVE = AnalysisPlan(control="A", treatment="B")


def users(
    num_users: int, lift: float, *, seed: int = 0, paired: bool = True, length: float = 1.0, noise: float = 0.1
) -> pl.DataFrame:
    """Users who differ by a known rate; B multiplies what they take by 1 + lift, and their sessions by length."""
    random = np.random.default_rng(seed)
    rate = random.gamma(4, 2, num_users)
    frame = pl.DataFrame(
        {"user_id": [f"u{i}" for i in range(num_users)], "arrival": random.permutation(num_users), "known": rate}
    ).with_columns(size=pl.Series(np.where(random.random(num_users) < 0.5, "small", "large")))
    arms = []
    for index, (arm, factor) in enumerate((("A", 1.0), ("B", 1 + lift))):
        choices = rate * factor + noise * random.normal(size=num_users)
        of_arm = frame.with_columns(
            arm=pl.lit(arm),
            sessions=pl.lit(2),
            steps=pl.Series(20.0 * (length if index else 1.0) + random.normal(size=num_users)),
            impressions=pl.lit(100),
            items=pl.Series(50 + random.integers(0, 5, num_users)),
            choices=pl.Series(choices),
            reward=pl.Series(choices),
        )
        arms.append(of_arm if paired else of_arm.filter(pl.int_range(pl.len()) % 2 == index))
    return pl.concat(arms)


def test_a_lift_is_found_and_said_in_words() -> None:
    report = analyse(users(400, 0.1), PAIRED)
    answer = verdict(report)
    assert answer.decision == "better"
    lift = report.primary.effect.lift
    assert lift is not None
    assert lift.low < 0.1 < lift.high
    assert answer.text.startswith(
        "B is better than A: among 400 users, choices per user (items that a user took) went from "
    )
    assert f"a rise of {lift.value:.1%} (95% interval {lift.low:+.1%} to {lift.high:+.1%})." in answer.text
    assert "The guardrails hold: session length (may fall by 2%), variety (may fall by 10%)." in answer.text
    assert "the test could have been stopped after 60 users" in answer.text
    assert report.users == {"A": 400, "B": 400}
    assert report.sample_ratio_p_value is None


def test_looks_begin_when_both_arms_have_users() -> None:
    rows = users(4_000, 0.0, paired=False).sort("arrival", "arm")
    # One user of a hundred is in B.
    lopsided = rows.filter((pl.col("arm") == "A") | (pl.col("arrival") % 100 == 99))
    shares = {"A": int((lopsided["arm"] == "A").sum()), "B": int((lopsided["arm"] == "B").sum())}
    report = analyse(lopsided, replace(LIVE, shares=shares, looks=40))
    assert 0 < len(report.looks) < 40
    assert report.looks[-1].users == len(lopsided)


def test_a_fall_is_worse() -> None:
    assert verdict(analyse(users(400, -0.1), PAIRED)).decision == "worse"


def test_nothing_that_matters_is_ruled_out_or_more_users_are_asked_for() -> None:
    same = analyse(users(400, 0.0), PAIRED)
    assert verdict(same).decision == "no_difference"
    assert "No difference is shown" in verdict(same).text
    few = analyse(users(200, 0.0, noise=8.0), PAIRED)
    answer = verdict(few)
    assert answer.decision == "inconclusive"
    assert few.users_to_decide is not None
    assert few.users_to_decide > 200, "or it would have been decided"
    assert f"about {rounded(few.users_to_decide)} users would decide it" in answer.text
    # With so many the interval is as narrow as the smallest lift that matters.
    enough = analyse(users(few.users_to_decide, 0.0, noise=8.0), PAIRED).primary.effect.lift
    assert enough is not None
    assert enough.high - enough.low == pytest.approx(0.02, rel=0.2)


def test_an_arm_against_itself_is_no_difference() -> None:
    one = users(50, 0.0).filter(pl.col("arm") == "A")
    answer = verdict(analyse(pl.concat([one, one.with_columns(arm=pl.lit("B"))]), PAIRED))
    assert answer.decision == "no_difference"


def test_a_guardrail_that_falls_is_not_hidden_by_a_lift() -> None:
    harmed = verdict(analyse(users(400, 0.1, length=0.9), PAIRED))
    assert harmed.decision == "better_but_unsafe"
    assert "A guardrail is broken: session length falls by more than the allowed 2%." in harmed.text
    assert "Other guardrails hold: variety (may fall by 10%)." in harmed.text
    unclear = verdict(analyse(users(40, 0.1, length=0.98), PAIRED))
    assert unclear.decision == "better_but_unsafe"
    assert "Not shown to be safe: session length may fall by more than the allowed 2%." in unclear.text


def test_users_that_do_not_fit_the_shares_invalidate_a_test() -> None:
    table = users(2000, 0.1, paired=False)
    lost = table.filter((pl.col("arm") == "A") | (pl.col("arrival") % 5 > 0))
    answer = verdict(analyse(lost, LIVE))
    assert answer.decision == "invalid"
    assert "do not fit the planned shares" in answer.text
    planned = replace(LIVE, shares={"A": 5, "B": 4})
    assert verdict(analyse(lost, planned)).decision != "invalid"


def test_different_users_are_compared_and_what_was_known_narrows_the_interval() -> None:
    table = users(2000, 0.1, paired=False)
    plain, helped = analyse(table, LIVE), analyse(table, replace(LIVE, covariate="known"))
    assert helped.primary.cuped_factor is not None
    assert helped.primary.effect.standard_error**2 == pytest.approx(
        plain.primary.effect.standard_error**2 * helped.primary.cuped_factor, rel=0.02
    )
    assert helped.primary.effect.lift is not None
    assert helped.primary.effect.lift.low < 0.1 < helped.primary.effect.lift.high
    assert helped.live_users_per_arm is not None
    assert plain.live_users_per_arm is not None
    assert helped.live_users_per_arm < plain.live_users_per_arm / 5
    values = [table.filter(pl.col("arm") == arm)["choices"].to_numpy() for arm in "AB"]
    assert plain.primary.effect.p_value == pytest.approx(independent_effect(*values).p_value, rel=1e-9)


def test_a_covariate_narrows_a_paired_interval_by_what_it_says_of_the_difference() -> None:
    # The difference is .1 of the rate that is known, and noise.
    plain = analyse(users(400, 0.1), PAIRED).primary.effect
    helped = analyse(users(400, 0.1), replace(PAIRED, covariate="known")).primary
    assert helped.cuped_factor is not None
    assert helped.cuped_factor < 0.3
    assert helped.effect.standard_error**2 == pytest.approx(plain.standard_error**2 * helped.cuped_factor, rel=1e-6)
    assert helped.effect.difference.value == pytest.approx(plain.difference.value, rel=1e-9)


def test_segments_that_differ_are_found_and_those_that_do_not_are_not() -> None:
    table = users(800, 0.0).with_columns(
        choices=pl.when((pl.col("arm") == "B") & (pl.col("size") == "large"))
        .then(pl.col("choices") * 1.2)
        .otherwise(pl.col("choices"))
    )
    table = table.with_columns(other=pl.col("user_id").str.slice(-1))
    report = analyse(table, replace(PAIRED, segments=("size", "other")))
    differs = {each.dimension: each.adjusted_p_value for each in report.heterogeneity}
    assert differs["size"] < 1e-6
    assert differs["other"] > 0.05
    by_name = {each.segment: each for each in report.segments if each.dimension == "size"}
    assert by_name["large"].effect.lift is not None
    assert by_name["large"].effect.lift.value == pytest.approx(0.2, abs=0.02)
    assert by_name["small"].adjusted_p_value > 0.05
    assert "it differs by size" in verdict(report).text


def test_an_empty_list_is_an_outcome() -> None:
    """B has nothing to show to every fifth user: they count in its mean, and are said."""
    table = users(200, 0.0)
    nothing = (pl.col("arm") == "B") & (pl.col("arrival") % 5 == 0)
    emptied = table.with_columns(
        pl.when(nothing).then(0).otherwise(pl.col(name)).alias(name)
        for name in ("steps", "impressions", "items", "choices", "reward")
    )
    report = analyse(emptied, PAIRED)
    assert report.shown_nothing == {"A": 0, "B": 40}
    assert report.users == {"A": 200, "B": 200}
    assert report.primary.effect.treatment == pytest.approx(emptied.filter(pl.col("arm") == "B")["choices"].mean())
    rate = {result.name: result for result in report.secondary}["choice_rate"].effect
    shown = emptied.filter((pl.col("arm") == "B") & (pl.col("impressions") > 0))
    assert rate.treatment == pytest.approx(shown["choices"].sum() / shown["steps"].sum())
    assert {each.name: each.safety for each in report.guardrails}["session_length"] == "harmed"
    assert "B had nothing to show to 40 of 200 users" in verdict(report).text

    silent = table.with_columns(
        pl.when(pl.col("arm") == "B").then(0).otherwise(pl.col(name)).alias(name)
        for name in ("steps", "impressions", "items", "choices", "reward")
    )
    with pytest.raises(DataError, match="'B' showed nothing to any of its 200 users, so it has no choice_rate"):
        analyse(silent, PAIRED)


def test_two_sequential_tests_agree_on_what_is_clear() -> None:
    for paired, plan in ((True, PAIRED), (False, LIVE)):
        found = analyse(users(4000, 0.1, paired=paired), plan)
        p_values = [look.msprt_p_value for look in found.looks]
        assert p_values == sorted(p_values, reverse=True)
        assert p_values[-1] < 0.01
        assert found.looks[-1].p_value < 0.01
        same = analyse(users(4000, 0.0, paired=paired), plan)
        assert same.looks[-1].msprt_p_value > 0.05
    one = users(50, 0.0).filter(pl.col("arm") == "A")
    itself = analyse(pl.concat([one, one.with_columns(arm=pl.lit("B"))]), PAIRED)
    assert [look.msprt_p_value for look in itself.looks] == [1.0] * len(itself.looks)


def test_what_the_test_could_have_shown() -> None:
    report = analyse(users(400, 0.0, noise=8.0), PAIRED)
    assert report.primary.effect.lift_error is not None
    assert report.detectable_lift == pytest.approx(2.801585 * report.primary.effect.lift_error, rel=1e-5)


def test_small_segments_are_left_out() -> None:
    table = users(100, 0.0).with_columns(
        who=pl.when(pl.col("arrival") < 10).then(pl.lit("few")).otherwise(pl.lit("many"))
    )
    report = analyse(table, replace(PAIRED, segments=("who",)))
    assert [each.segment for each in report.segments] == ["many"]
    assert report.heterogeneity == ()


def test_adjusted_p_values_by_hand() -> None:
    # Sorted .01, .02, .04: times 3/1, 3/2, 3/3 = .03, .03, .04.
    assert adjusted([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.03])
    assert adjusted([]) == []


def test_looks_follow_the_order_of_arrival() -> None:
    table = users(300, 0.05)
    report = analyse(table, PAIRED)
    assert [look.users for look in report.looks][:3] == [60, 75, 90]
    assert report.looks[-1].users == 300
    assert report.looks[-1].difference == pytest.approx(report.primary.effect.difference.value)
    first = table.filter(pl.col("arrival") < 60)
    assert report.looks[0].difference == pytest.approx(
        first.filter(pl.col("arm") == "B")["choices"].mean() - first.filter(pl.col("arm") == "A")["choices"].mean()
    )
    for look in report.looks:
        assert look.low < look.fixed_low < look.fixed_high < look.high
    assert analyse(table.drop("arrival"), PAIRED).looks == ()


def test_impossible_plans_and_tables_are_refused() -> None:
    for change, message in [
        ({"primary": "clicks"}, "unknown metric 'clicks'"),
        ({"secondary": ("session_length",)}, "session_length has two roles"),
        ({"alpha": 0.0}, "alpha must lie above 0 and below 1"),
        ({"guardrails": {"variety": 1.5}}, "margin of variety must lie above 0"),
        ({"smallest_lift": 0.0}, "smallest lift must"),
        ({"treatment": "A"}, "both arms are called 'A'"),
        ({"looks": 0}, "looks must be 1 or more"),
        ({"power": 0.04}, r"power must lie above alpha \(0.05\)"),
    ]:
        with pytest.raises(ConfigError, match=message):
            replace(PAIRED, **change)
    table = users(50, 0.0)
    with pytest.raises(DataError, match="'B' has no users"):
        analyse(table.filter(pl.col("arm") == "A"), PAIRED)
    with pytest.raises(DataError, match="'B' has fewer than two users"):
        analyse(table.filter((pl.col("arm") == "A") == (pl.col("user_id") != "u1")), LIVE)
    for change in ({"covariate": "age"}, {"segments": ("age",)}):
        with pytest.raises(ConfigError, match="no column 'age' in the outcomes"):
            analyse(table, replace(PAIRED, **change))


def _report() -> ExperimentReport:
    return analyse(users(200, 0.1), replace(PAIRED, segments=("size",)))


def _evidence(report: ExperimentReport) -> Evidence:
    """Another simulator that agrees, one that does not, and three users who chose from merged lists."""
    effect = report.primary.effect
    against = replace(effect, difference=replace(effect.difference, value=-1.0))
    return Evidence(
        simulators=(
            OtherSimulator(temperature=0.7, position_bias=True, satiation=0.0, effect=effect),
            OtherSimulator(temperature=1.3, position_bias=False, satiation=0.3, effect=against),
        ),
        interleaved={"team draft": preference_of_users(["u", "v", "w"], [1, 1, 0])},
    )


def test_the_same_users_give_the_same_json() -> None:
    documents = [
        json.dumps(report_document(report, verdict(report), _evidence(report), {"seed": 0}))
        for report in (_report(), _report())
    ]
    assert documents[0] == documents[1]
    content = json.loads(documents[0])
    assert content["decision"] == "better"
    assert content["primary"]["effect"]["lift"]["value"] == pytest.approx(0.1, abs=0.01)
    assert content["interleaved"]["team draft"]["wins"] == 2
    assert content["simulators_with_this_sign"] == 1


def test_the_page_shows_everything_and_trusts_no_name(tmp_path: Path) -> None:
    table = users(200, 0.1).with_columns(
        arm=pl.when(pl.col("arm") == "B").then(pl.lit("<script>B")).otherwise(pl.col("arm")),
        size=pl.lit("<b>bold"),
    )
    report = analyse(table, replace(PAIRED, treatment="<script>B", segments=("size",)))
    save_page(report, verdict(report), _evidence(report), {"users <of>": "<i>"}, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    body = page[page.index("<body>") :]
    assert "<script>B" not in body
    assert "&lt;script&gt;B is better than A" in body
    assert "users &lt;of&gt;" in body
    for figure in ("effects", "guardrails", "simulators", "sequence", "segments", "power"):
        assert f"figure-{figure}" in body
    for metric in (report.primary, *report.secondary, *report.guardrails):
        assert metric.label in body
    assert "team draft" in body
    assert ">Better<" in body


def test_a_page_of_a_live_test_has_its_sample_ratio_and_no_simulators(tmp_path: Path) -> None:
    report = analyse(users(1000, 0.0, paired=False), LIVE)
    save_page(report, verdict(report), Evidence(), {}, tmp_path / "page.html")
    body = (tmp_path / "page.html").read_text().split("<body>")[1]
    assert "500 and 500 users fit the plan" in body
    assert "figure-simulators" not in body
    lopsided = users(1000, 0.0, paired=False).filter((pl.col("arm") == "A") | (pl.col("arrival") % 4 > 0))
    report = analyse(lopsided, LIVE)
    save_page(report, verdict(report), Evidence(), {}, tmp_path / "page.html")
    body = (tmp_path / "page.html").read_text().split("<body>")[1]
    assert "users do not fit the plan" in body
    assert ">Not valid<" in body


def test_the_page_leaves_out_a_guardrail_that_the_control_has_nothing_of(tmp_path: Path) -> None:
    nothing_taken = users(60, 0.0).with_columns(choices=pl.lit(0.0), reward=pl.lit(0.0))
    guardrails = {"choice_rate": 0.05, "variety": 0.1}
    report = analyse(nothing_taken, replace(PAIRED, primary="session_length", secondary=(), guardrails=guardrails))
    assert [each.safety for each in report.guardrails] == ["unclear", "safe"]
    save_page(report, verdict(report), Evidence(), {}, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "may fall by 10%: safe" in text
    assert "may fall by 5%: unclear" not in text


def test_a_real_difference_that_is_too_small_to_matter_is_called_so() -> None:
    answer = verdict(analyse(users(4000, 0.01), PAIRED))
    assert answer.decision == "better"
    assert "It is real, but less than the 2.0% that matters." in answer.text


def test_segments_with_one_relative_lift_do_not_differ_though_their_differences_do() -> None:
    """Large users take ten times as much, and gain ten times as much by the same 10 %."""
    table = users(600, 0.1, noise=0.5).with_columns(
        choices=pl.when(pl.col("size") == "large").then(10 * pl.col("choices")).otherwise(pl.col("choices"))
    )
    found = analyse(table, replace(PAIRED, segments=("size",)))
    differences = {each.segment: each.effect.difference.value for each in found.segments}
    assert differences["large"] > 5 * differences["small"]
    assert found.heterogeneity[0].p_value > 0.05
    opposite = users(600, 0.1, noise=0.5).with_columns(
        choices=pl.when((pl.col("size") == "large") & (pl.col("arm") == "B"))
        .then(0.8 * pl.col("choices"))
        .otherwise(pl.col("choices"))
    )
    differing = analyse(opposite, replace(PAIRED, segments=("size",)))
    assert differing.heterogeneity[0].p_value < 0.001
    assert "The effect is not the same for all: it differs by size." in verdict(differing).text


def test_numbers_in_words() -> None:
    assert [rounded(count) for count in (7, 96_448, 1_234_567)] == ["7", "96,400", "1,230,000"]
    assert [plain(value) for value in (0.01122, 4.4539, 381.0, 12_345.6)] == ["0.0112", "4.45", "381", "12,346"]
