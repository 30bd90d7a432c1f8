"""The report of an A/B test as one HTML file that needs nothing else, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np

from recsys.evaluation.bootstrap import Interval
from recsys.evaluation.html import figure_html, page, section
from recsys.files import atomic_path
from recsys.simulator.experiment import figures
from recsys.simulator.experiment.analysis import ExperimentReport, MetricResult
from recsys.simulator.experiment.effects import Effect
from recsys.simulator.experiment.interleaving import Preference
from recsys.simulator.experiment.sample_ratio import MISMATCH
from recsys.simulator.experiment.verdict import Decision, Verdict, plain, rounded

_STYLE = """
.answer { border-left: 6px solid #8c959f; } .answer.good { border-left-color: #00796b; }
.answer.bad { border-left-color: #b3261e; } .answer.care { border-left-color: #d55e00; }
.badge { display: inline-block; font-weight: 700; font-size: 20px; margin: 0 0 6px; }
.good .badge, .good b { color: #00796b; } .bad .badge, .bad b { color: #b3261e; }
.care .badge, .care b { color: #b34700; }
.answer p { font-size: 17px; margin: 0 0 12px; max-width: 82ch; overflow-wrap: anywhere; }
.answer ul { margin: 0; padding: 0 0 0 1.2em; color: #52606d; font-size: 14px; max-width: 95ch; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px; margin: 0 0 20px; }
.card { background: white; border: 1px solid #e4e7eb; border-radius: 10px; padding: 12px 14px; }
td:first-child small { white-space: normal; min-width: 11em; }
.card span { color: #52606d; font-size: 13px; display: block; } .card b { font-size: 22px; display: block; }
"""

_BADGES: Final[dict[Decision, tuple[str, str]]] = {
    "better": ("good", "Better"),
    "better_but_unsafe": ("care", "Better, but a guardrail is not safe"),
    "worse": ("bad", "Worse"),
    "no_difference": ("", "No difference that matters"),
    "inconclusive": ("care", "Inconclusive"),
    "invalid": ("bad", "Not valid"),
}


@dataclass(frozen=True, kw_only=True)
class OtherSimulator:
    """The effect where simulated users are set otherwise than they were fitted."""

    temperature: float
    position_bias: bool
    """Whether users favour the upper places, as fitted."""
    satiation: float
    effect: Effect
    """In the primary metric."""

    @property
    def words(self) -> tuple[str, str]:
        """What is set, in two lines."""
        bias = "" if self.position_bias else ", no position bias"
        return f"temperature {self.temperature:g}", f"satiation {self.satiation:g}{bias}"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a simulated test has beside the outcomes of its users."""

    simulators: tuple[OtherSimulator, ...] = ()
    interleaved: Mapping[str, Preference] = field(default_factory=dict)
    """By the way of merging the arms' lists; wins are users who took more of the treatment's items."""

    def same_sign(self, report: ExperimentReport) -> int:
        """In how many other simulators the primary difference has the sign of the report's."""
        sign = np.sign(report.primary.effect.difference.value)
        return sum(bool(np.sign(each.effect.difference.value) == sign) for each in self.simulators)


def report_document(
    report: ExperimentReport, answer: Verdict, evidence: Evidence, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """JSON-able: `decision`, `verdict`, `cautions`, `facts` as given, and the fields of report and evidence."""
    return {
        "decision": answer.decision,
        "verdict": answer.text,
        "cautions": list(answer.cautions),
        "facts": dict(facts),
        **asdict(report),
        **asdict(evidence),
        "simulators_with_this_sign": evidence.same_sign(report),
    }


def save_page(
    report: ExperimentReport, answer: Verdict, evidence: Evidence, facts: Mapping[str, str], path: Path
) -> None:
    """Write the page, whole or not at all; about 5 MB, nearly all of it the plotting library.

    Args:
        report: the numbers.
        answer: what they say.
        evidence: further numbers.
        facts: what was done, a title and a sentence each.
        path: of the file.
    """
    plan = report.plan
    users = "simulated users, each in both arms" if plan.paired else "users, each in one arm"
    count = report.primary.effect.num_users
    with atomic_path(path) as temporary:
        content = page(
            f"{plan.treatment} against {plan.control}",
            f"An A/B test on {count:,} {users}. {plan.control} is the control, {plan.treatment} the treatment.",
            [_answer(answer), _cards(report, answer, evidence), *_sections(report, evidence, facts)],
            _STYLE,
        )
        temporary.write_text(content, encoding="utf-8")


def _answer(answer: Verdict) -> str:
    look, words = _BADGES[answer.decision]
    cautions = "".join(f"<li>{escape(each)}</li>" for each in answer.cautions)
    return (
        f'<section class="answer {look}"><div class="badge">{words}</div><p>{escape(answer.text)}</p>'
        f"{f'<ul>{cautions}</ul>' if cautions else ''}</section>"
    )


def _cards(report: ExperimentReport, answer: Verdict, evidence: Evidence) -> str:
    plan, primary = report.plan, report.primary
    cards = []
    if primary.effect.lift is not None:
        low, high = primary.effect.lift.low, primary.effect.lift.high
        cards.append(
            _card(
                primary.label,
                f"{primary.effect.lift.value:+.1%}",
                f"{low:+.1%} to {high:+.1%}",
                _BADGES[answer.decision][0],
            )
        )
    if report.guardrails:
        safe = [each for each in report.guardrails if each.safety == "safe"]
        look = "good" if len(safe) == len(report.guardrails) else "care"
        if any(each.safety == "harmed" for each in report.guardrails):
            look = "bad"
        names = ", ".join(f"{each.label}: {each.safety}" for each in report.guardrails)
        cards.append(_card("guardrails", f"{len(safe)} of {len(report.guardrails)} safe", names, look))
    counts = " and ".join(f"{count:,}" for count in report.users.values())
    if report.sample_ratio_p_value is None:
        cards.append(_card("sample ratio", "1 : 1", f"{counts}: the same users in both arms", "good"))
    else:
        fits = report.sample_ratio_p_value >= MISMATCH
        said = f"{counts} users {'fit' if fits else 'do not fit'} the plan"
        cards.append(_card("sample ratio", _p(report.sample_ratio_p_value), said, "good" if fits else "bad"))
    if evidence.simulators:
        kept = evidence.same_sign(report)
        cards.append(
            _card("other simulators", f"{kept} of {len(evidence.simulators)}", "show an effect of the same sign", "")
        )
    if evidence.interleaved:
        name, found = next(iter(evidence.interleaved.items()))
        note = f"of those who preferred an arm in merged lists chose the treatment ({name}, {_p(found.p_value)})"
        cards.append(_card("interleaved", f"{found.share:.0%}", note, ""))
    if report.live_users_per_arm is not None:
        note = f"users an arm show a lift of {plan.smallest_lift:.1%}"
        cards.append(_card("a live test", rounded(report.live_users_per_arm), note, ""))
    return f'<div class="cards">{"".join(cards)}</div>'


def _card(title: str, value: str, note: str, look: str) -> str:
    return (
        f'<div class="card {look}"><span>{escape(title)}</span><b>{escape(value)}</b><span>{escape(note)}</span></div>'
    )


def _sections(report: ExperimentReport, evidence: Evidence, facts: Mapping[str, str]) -> Iterable[str]:
    plan, name = report.plan, report.primary.label
    confidence = f"{1 - plan.alpha:.0%}"
    yield section(
        "Effects",
        f"A dot is how much more (right) or less (left) the treatment has than the control, the line its {confidence} "
        f"interval. If a line crosses the dashed zero, these users cannot tell the arms apart. {name} decides.",
        figure_html("effects", figures.lift_dots(report)),
    )
    if report.guardrails:
        yield section(
            "Guardrails",
            "Metrics that must not fall by more than the orange mark. One is safe if its whole line stays right of the "
            f"mark, harmed if it stays left of it, and unclear in between; each is tested one-sided at {plan.alpha:g}.",
            figure_html("guardrails", figures.guardrail_dots(report)),
        )
    if evidence.simulators:
        yield section(
            "If users were different",
            f"The lift of {name}, one session a user, where simulated users choose more at random (temperature above "
            "1) or less, tire of what they had (satiation), or look at all places alike. An effect counts only if its "
            "sign holds in four of five.",
            figure_html("simulators", figures.dots([(*each.words, each.effect.lift) for each in evidence.simulators])),
        )
    if evidence.interleaved:
        yield section(
            "In one list",
            "Both arms' lists merged into one, and whose items users take: a test of its own that needs fewer users. "
            "Wins are users who took more of the treatment's items; the p-value is of a sign test over users.",
            _interleaved_table(evidence.interleaved),
        )
    if report.looks:
        yield section(
            "While users arrived",
            f"The difference of {name} when so many users had been seen. Whoever looks at the dark band again and "
            "again, and stops as soon as it leaves zero, is wrong far more often than it says; the light band, a "
            f"confidence sequence, holds at all looks together with {confidence}. Always valid at the end: "
            f"{_p(report.looks[-1].p_value)} by the sequence, {_p(report.looks[-1].msprt_p_value)} by a mixture "
            f"sequential test for lifts of {plan.smallest_lift:.1%} (mSPRT).",
            figure_html("sequence", figures.sequential_path(report.looks)),
        )
    if report.segments:
        yield section(
            "By segment",
            f"The lift of {name} among some of the users. {_heterogeneity(report)}",
            figure_html("segments", figures.segment_dots(report.segments)) + _segment_table(report),
        )
    if report.live_users_per_arm is not None and report.detectable_lift is not None:
        yield section(
            "What a test can show",
            f"This test shows a lift of {report.detectable_lift:.1%} or more with {plan.power:.0%} power. The line is "
            "for a live test, with other users in each arm: how many users an arm it needs for the lift below. The dot "
            f"is the smallest lift that matters, {plan.smallest_lift:.1%}. How many days that takes: recsys ab-power.",
            figure_html("power", figures.power_curve(report.live_users_per_arm, plan.smallest_lift)),
        )
    yield section(
        "All numbers",
        f"With {confidence} intervals. The p-values of secondary metrics are adjusted for their number (Benjamini and "
        "Hochberg). Noise left: the share of the variance that is left by what was known of users before (CUPED).",
        _metric_table(report),
    )
    yield section("What was done", "Numbers compare only with numbers of the same test.", _table(facts.items()))


def _heterogeneity(report: ExperimentReport) -> str:
    if not report.heterogeneity:
        return "Too few users to tell whether segments differ."
    said = [
        f"{each.dimension} {'differ' if each.adjusted_p_value < report.plan.alpha else 'are not shown to differ'} "
        f"({_p(each.adjusted_p_value)})"
        for each in report.heterogeneity
    ]
    return f"Segments by {'; by '.join(said)}, allowing for the number of dimensions (Cochran's Q)."


def _metric_table(report: ExperimentReport) -> str:
    head = ("metric", "role", "control", "treatment", "difference", "lift", "p", "noise left", "result")
    rows = []
    for role, results in (
        ("primary", (report.primary,)),
        ("secondary", report.secondary),
        ("guardrail", report.guardrails),
    ):
        for result in results:
            effect = result.effect
            rows.append(
                (
                    f"{escape(result.label)}<small>{escape(result.meaning)}</small>",
                    role,
                    plain(effect.control),
                    plain(effect.treatment),
                    _with_bounds(effect.difference, "+.3g"),
                    "-" if effect.lift is None else _with_bounds(effect.lift, "+.1%"),
                    _short(effect.p_value)
                    + (
                        ""
                        if result.adjusted_p_value is None
                        else f"<small>adj. {_short(result.adjusted_p_value)}</small>"
                    ),
                    "-" if result.cuped_factor is None else f"{result.cuped_factor:.0%}",
                    _outcome(result, report.plan.alpha),
                )
            )
    return _scrolled(head, rows)


def _outcome(result: MetricResult, alpha: float) -> str:
    if result.safety is not None:
        return result.safety
    p_value = result.effect.p_value if result.adjusted_p_value is None else result.adjusted_p_value
    if p_value >= alpha:
        return "not shown to differ"
    return "higher" if result.effect.difference.value > 0 else "lower"


def _segment_table(report: ExperimentReport) -> str:
    rows = [
        (
            f"{escape(each.dimension)}: {escape(each.segment)}",
            f"{each.effect.num_users:,}",
            plain(each.effect.control),
            plain(each.effect.treatment),
            _with_bounds(each.effect.difference, "+.3g"),
            _short(each.adjusted_p_value),
        )
        for each in report.segments
    ]
    return _scrolled(("segment", "users", "control", "treatment", "difference", "adjusted p"), rows)


def _interleaved_table(interleaved: Mapping[str, Preference]) -> str:
    rows = [
        (
            escape(name),
            f"{found.wins:,}",
            f"{found.losses:,}",
            f"{found.ties:,}",
            f"{found.share:.1%}",
            _short(found.p_value),
            _with_bounds(found.difference, "+.3g"),
        )
        for name, found in interleaved.items()
    ]
    return _scrolled(("merged by", "wins", "losses", "ties", "share of wins", "p", "credit a session"), rows)


def _p(value: float) -> str:
    return "p < .001" if value < 0.001 else f"p = {value:.2g}"


def _short(p_value: float) -> str:
    return "&lt; .001" if p_value < 0.001 else f"{p_value:.2g}"


def _with_bounds(interval: Interval, shape: str) -> str:
    return f"{interval.value:{shape}}<small>{interval.low:{shape}} to {interval.high:{shape}}</small>"


def _scrolled(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _table(facts: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts)
    return f'<table class="facts"><tbody>{cells}</tbody></table>'
