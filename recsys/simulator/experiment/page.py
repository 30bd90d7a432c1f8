"""The report of an A/B test as one HTML file that needs nothing else, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from recsys.evaluation.html import figure_html, page, section
from recsys.files import atomic_path
from recsys.simulator.experiment import figures
from recsys.simulator.experiment.analysis import ExperimentReport, MetricResult
from recsys.simulator.experiment.verdict import Verdict


def report_document(report: ExperimentReport, answer: Verdict, facts: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-able: `decision`, `verdict`, `facts` as they are given, and the fields of the report."""
    return {"decision": answer.decision, "verdict": answer.text, "facts": dict(facts), **asdict(report)}


def save_page(report: ExperimentReport, answer: Verdict, facts: Mapping[str, Any], path: Path) -> None:
    """Write the page, whole or not at all; about 5 MB, nearly all of it the plotting library."""
    plan = report.plan
    with atomic_path(path) as temporary:
        content = page(f"{plan.treatment} against {plan.control}", answer.text, _sections(report, facts))
        temporary.write_text(content, encoding="utf-8")


def _sections(report: ExperimentReport, facts: Mapping[str, Any]) -> Iterable[str]:
    plan = report.plan
    confidence = f"{1 - plan.alpha:.0%}"
    users = "the same users, in both arms" if plan.paired else "different users in each arm"
    yield section(
        "Effects",
        f"A dot is the relative lift of the treatment over the control among {users}, the line its {confidence} "
        "interval. Right of the dashed zero the treatment has more; if a line crosses zero, these users cannot tell "
        f"the arms apart. {plan.primary} decides. A guardrail is safe if its line stays right of the orange mark.",
        figure_html("effects", figures.lift_dots(report)),
    )
    yield section(
        "All numbers",
        f"With {confidence} intervals. The p-values of secondary metrics are adjusted for their number (Benjamini and "
        "Hochberg); guardrails are one-sided tests against their margin.",
        _metric_table(report),
    )
    if report.looks:
        yield section(
            "While users arrived",
            f"The difference of {plan.primary} when so many users had been seen. Whoever looks at the dark band again "
            "and again, and stops as soon as it leaves zero, is wrong far more often than it says; the light band, a "
            f"confidence sequence, holds at all looks together with {confidence}.",
            figure_html("sequence", figures.sequential_path(report.looks)),
        )
    if report.segments:
        yield section(
            "By segment",
            f"The lift of {plan.primary} among some of the users. {_heterogeneity(report)}",
            figure_html("segments", figures.segment_dots(report.segments)) + _segment_table(report),
        )
    yield section("What was done", "Numbers compare only with numbers of the same test.", _table(facts.items()))


def _heterogeneity(report: ExperimentReport) -> str:
    if not report.heterogeneity:
        return "Too few users to tell whether segments differ."
    said = [
        f"{each.dimension} {'differ' if each.adjusted_p_value < report.plan.alpha else 'are not shown to differ'} "
        f"(p = {each.adjusted_p_value:.2g})"
        for each in report.heterogeneity
    ]
    return f"Segments by {'; by '.join(said)}, allowing for the number of dimensions (Cochran's Q)."


def _metric_table(report: ExperimentReport) -> str:
    head = ("metric", "role", "control", "treatment", "difference", "lift", "p", "adjusted p", "result")
    rows = []
    for role, results in (
        ("primary", (report.primary,)),
        ("secondary", report.secondary),
        ("guardrail", report.guardrails),
    ):
        for result in results:
            effect = result.effect
            lift = "-" if effect.lift is None else f"{effect.lift.value:+.2%}"
            bounds = "" if effect.lift is None else f"{effect.lift.low:+.2%} - {effect.lift.high:+.2%}"
            low, high = effect.difference.low, effect.difference.high
            rows.append(
                (
                    f"{escape(result.name)}<small>{escape(result.meaning)}</small>",
                    role,
                    f"{effect.control:.4g}",
                    f"{effect.treatment:.4g}",
                    f"{effect.difference.value:+.4g}<small>{low:+.4g} - {high:+.4g}</small>",
                    f"{lift}<small>{bounds}</small>",
                    f"{effect.p_value:.2g}",
                    "-" if result.adjusted_p_value is None else f"{result.adjusted_p_value:.2g}",
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
            f"{each.effect.control:.4g}",
            f"{each.effect.treatment:.4g}",
            f"{each.effect.difference.value:+.4g}"
            f"<small>{each.effect.difference.low:+.4g} - {each.effect.difference.high:+.4g}</small>",
            f"{each.adjusted_p_value:.2g}",
        )
        for each in report.segments
    ]
    return _scrolled(("segment", "users", "control", "treatment", "difference", "adjusted p"), rows)


def _scrolled(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _table(facts: Iterable[tuple[str, Any]]) -> str:
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in facts)
    return f'<table class="facts"><tbody>{cells}</tbody></table>'
