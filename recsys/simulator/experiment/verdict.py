"""What a test says in one paragraph of plain words, which can also be that it says nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from recsys.evaluation.bootstrap import Interval
from recsys.simulator.experiment.analysis import ExperimentReport, MetricResult
from recsys.simulator.experiment.sample_ratio import MISMATCH

Decision: TypeAlias = Literal["better", "worse", "better_but_unsafe", "no_difference", "inconclusive", "invalid"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer."""

    decision: Decision
    """About the treatment. `better_but_unsafe`: a guardrail is harmed, or is not shown to be safe. `no_difference`: a
    lift or fall that matters is ruled out. `invalid`: the users do not fit the planned shares."""
    text: str
    cautions: tuple[str, ...] = ()
    """What the reader should know before acting on it, a sentence or two each."""


def verdict(report: ExperimentReport) -> Verdict:
    """The answer of a report."""
    decision = _decision(report)
    return Verdict(decision=decision, text=" ".join([_answer(report, decision), *_remarks(report, decision)]))


def _decision(report: ExperimentReport) -> Decision:
    if report.sample_ratio_p_value is not None and report.sample_ratio_p_value < MISMATCH:
        return "invalid"
    effect = report.primary.effect
    if effect.p_value < report.plan.alpha:
        if effect.difference.value < 0:
            return "worse"
        return "better" if all(each.safety == "safe" for each in report.guardrails) else "better_but_unsafe"
    if effect.difference.value == effect.standard_error == 0 or _too_small_to_matter(report):
        return "no_difference"
    return "inconclusive"


def _too_small_to_matter(report: ExperimentReport) -> bool:
    lift, smallest = report.primary.effect.lift, report.plan.smallest_lift
    return lift is not None and -smallest < lift.low and lift.high < smallest


def _answer(report: ExperimentReport, decision: Decision) -> str:
    plan, result = report.plan, report.primary
    users = f"{result.effect.num_users:,} users"
    what = f"{result.label} ({result.meaning})"
    before, after = plain(result.effect.control), plain(result.effect.treatment)
    moved = f"from {before} with {plan.control} to {after} with {plan.treatment}"
    promise = f"{1 - plan.alpha:.0%} interval"
    lift = "no relative lift can be given" if result.effect.lift is None else in_words(result.effect.lift, promise)
    match decision:
        case "invalid":
            counts = " and ".join(f"{count:,} in {arm}" for arm, count in report.users.items())
            return (
                f"This test says nothing: the users ({counts}) do not fit the planned shares "
                f"(p = {report.sample_ratio_p_value:.2g}), so the assignment or the log is wrong. Find the cause, and "
                "run it again."
            )
        case "better" | "better_but_unsafe" | "worse":
            direction = "worse" if decision == "worse" else "better"
            small = (
                f" It is real, but less than the {plan.smallest_lift:.1%} that matters."
                if _too_small_to_matter(report)
                else ""
            )
            return (
                f"{plan.treatment} is {direction} than {plan.control}: among {users}, {what} went {moved}, {lift}."
                f"{small}"
            )
        case "no_difference":
            return (
                f"No difference is shown between {plan.treatment} and {plan.control}: among {users}, {what} went "
                f"{moved}, {lift}. A lift or a fall of {plan.smallest_lift:.1%}, the smallest that matters, is ruled "
                "out."
            )
        case "inconclusive":
            needed = report.users_to_decide
            more = f"about {rounded(needed)} users would decide it" if needed else "more users are needed"
            return (
                f"Inconclusive: among {users}, {what} went {moved}, {lift}. Neither a difference nor the absence of "
                f"one that matters ({plan.smallest_lift:.1%}) is shown; {more}."
            )


def _remarks(report: ExperimentReport, decision: Decision) -> list[str]:
    if decision == "invalid":
        return []
    remarks = []
    for arm, count in report.shown_nothing.items():
        if count:
            remarks.append(
                f"{arm} had nothing to show to {count:,} of {report.users[arm]:,} users, who count as users who took "
                "nothing."
            )
    found = [each for each in report.secondary if (each.adjusted_p_value or 0) < report.plan.alpha]
    if found:
        listed = ", ".join(
            f"{each.label} {f'{each.effect.lift.value:+.1%}' if each.effect.lift else 'differs'}" for each in found
        )
        remarks.append(f"Secondary metrics that differ too, allowing for their number: {listed}.")
    remarks += _of_guardrails(report.guardrails)
    if differing := [each.dimension for each in report.heterogeneity if each.adjusted_p_value < report.plan.alpha]:
        remarks.append(f"The effect is not the same for all: it differs by {', '.join(differing)}.")
    if decision in ("better", "better_but_unsafe", "worse") and report.looks:
        decided = next((look.users for look in report.looks if look.p_value < report.plan.alpha), None)
        remarks.append(
            f"Watched while users arrived, the test could have been stopped after {decided:,} users."
            if decided is not None
            else "Watched while users arrived, the test could not have been stopped early: an interval that holds at "
            "every look is wider."
        )
    if report.live_users_per_arm is not None:
        remarks.append(
            f"A live test, with other users in each arm, needs about {rounded(report.live_users_per_arm)} users an arm "
            f"to show a lift of {report.plan.smallest_lift:.1%} with {report.plan.power:.0%} power."
        )
    return remarks


def _of_guardrails(guardrails: tuple[MetricResult, ...]) -> list[str]:
    remarks = []
    for safety, beginning, phrase in (
        ("harmed", "A guardrail is broken", "falls by more than the allowed"),
        ("unclear", "Not shown to be safe", "may fall by more than the allowed"),
    ):
        if named := [f"{each.label} {phrase} {each.margin:.0%}" for each in guardrails if each.safety == safety]:
            remarks.append(f"{beginning}: {', '.join(named)}.")
    if safe := [f"{each.label} (may fall by {each.margin:.0%})" for each in guardrails if each.safety == "safe"]:
        remarks.append(f"{'Other guardrails' if remarks else 'The guardrails'} hold: {', '.join(safe)}.")
    return remarks


def in_words(lift: Interval, promise: str) -> str:
    """A relative lift with its interval, such as `a fall of 3.0% (95% interval -5.0% to -1.0%)`."""
    return f"{_amount(lift.value)} ({promise} {lift.low:+.1%} to {lift.high:+.1%})"


def rounded(count: int) -> str:
    """With the first three digits only: what is estimated is not known any better."""
    digits = max(0, len(str(count)) - 3)
    return f"{round(count, -digits):,}"


def plain(value: float) -> str:
    """With three digits, such as 0.0112, 4.45 or 1,234."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _amount(lift: float) -> str:
    if f"{abs(lift):.1%}" == "0.0%":
        return "no change"
    return f"a {'fall' if lift < 0 else 'rise'} of {abs(lift):.1%}"
