"""What a test says in one paragraph of plain words, which can also be that it says nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from recsys.evaluation.bootstrap import Interval
from recsys.simulator.experiment.analysis import ExperimentReport
from recsys.simulator.experiment.sample_ratio import MISMATCH

Decision: TypeAlias = Literal["better", "worse", "better_but_unsafe", "no_difference", "inconclusive", "invalid"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer."""

    decision: Decision
    """About the treatment. `better_but_unsafe`: a guardrail is harmed, or is not shown to be safe. `no_difference`: a
    lift or fall that matters is ruled out. `invalid`: the users do not fit the planned shares."""
    text: str


def verdict(report: ExperimentReport) -> Verdict:
    """The answer of a report."""
    decision = _decision(report)
    return Verdict(decision=decision, text=" ".join([_answer(report, decision), *_remarks(report, decision)]))


def _decision(report: ExperimentReport) -> Decision:
    if report.sample_ratio_p_value is not None and report.sample_ratio_p_value < MISMATCH:
        return "invalid"
    effect, smallest = report.primary.effect, report.plan.smallest_lift
    if effect.p_value < report.plan.alpha:
        if effect.difference.value < 0:
            return "worse"
        return "better" if all(each.safety == "safe" for each in report.guardrails) else "better_but_unsafe"
    if effect.difference.value == effect.standard_error == 0:
        return "no_difference"
    if effect.lift is not None and -smallest < effect.lift.low and effect.lift.high < smallest:
        return "no_difference"
    return "inconclusive"


def _answer(report: ExperimentReport, decision: Decision) -> str:
    plan, result = report.plan, report.primary
    users = f"{result.effect.num_users:,} users"
    what = f"{plan.treatment} against {plan.control}: {result.name} ({result.meaning})"
    moved = f"{result.effect.control:.4g} to {result.effect.treatment:.4g}"
    lift = _in_words(result.effect.lift) if result.effect.lift is not None else "no relative lift can be given"
    promise = f"{1 - plan.alpha:.0%} interval"
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
            return (
                f"{plan.treatment} is {direction} than {plan.control}: with {users}, {result.name} ({result.meaning}) "
                f"goes from {moved}, {lift} ({promise})."
            )
        case "no_difference":
            return (
                f"No difference is shown. {what} goes from {moved} with {users}, {lift} ({promise}): a lift or a fall "
                f"of {plan.smallest_lift:.1%}, the smallest that matters, is ruled out."
            )
        case "inconclusive":
            needed = report.users_to_decide
            more = f"about {needed:,} users would decide it" if needed else "more users are needed"
            return (
                f"Inconclusive. {what} goes from {moved} with {users}, {lift} ({promise}): neither a difference nor "
                f"the absence of one that matters ({plan.smallest_lift:.1%}) is shown; {more}."
            )


def _remarks(report: ExperimentReport, decision: Decision) -> list[str]:
    if decision == "invalid":
        return []
    remarks = []
    for safety, phrase in (("harmed", "falls by more than the allowed"), ("unclear", "is not shown to stay within")):
        if named := [f"{each.name} ({each.margin:.0%})" for each in report.guardrails if each.safety == safety]:
            remarks.append(f"Guardrails: {', '.join(named)} {phrase}{' margin' if safety == 'unclear' else ''}.")
    found = [each for each in report.secondary if (each.adjusted_p_value or 0) < report.plan.alpha]
    if found:
        listed = ", ".join(
            f"{each.name} {f'{each.effect.lift.value:+.1%}' if each.effect.lift else 'differs'}" for each in found
        )
        remarks.append(f"Secondary metrics that differ, allowing for their number: {listed}.")
    if differing := [each.dimension for each in report.heterogeneity if each.adjusted_p_value < report.plan.alpha]:
        remarks.append(f"The effect is not the same for all: it differs by {', '.join(differing)}.")
    if decision in ("better", "better_but_unsafe", "worse") and report.looks:
        decided = next((look.users for look in report.looks if look.p_value < report.plan.alpha), None)
        remarks.append(
            f"Watched while users arrived, it would have been decided after {decided:,} users."
            if decided is not None
            else "Watched while users arrived, it would not have been decided yet: a sequence is wider than one look."
        )
    if report.live_users_per_arm is not None:
        remarks.append(
            f"Live, with other users in each arm, {report.live_users_per_arm:,} users an arm would show a lift of "
            f"{report.plan.smallest_lift:.1%} with {report.plan.power:.0%} power."
        )
    return remarks


def _in_words(lift: Interval) -> str:
    return f"a lift of {lift.value:+.1%}, between {lift.low:+.1%} and {lift.high:+.1%}"
