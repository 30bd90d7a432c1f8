"""Plotly figures of an A/B test. Captions and layout of the page are `page`'s."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from recsys.evaluation.bootstrap import Interval
from recsys.evaluation.figures import error_bars, styled, with_legend_below
from recsys.simulator.experiment.analysis import ExperimentReport, Look, MetricResult
from recsys.simulator.experiment.segments import SegmentEffect

_PRIMARY, _OTHER, _MARGIN, _INK = "#0b62a4", "#8c959f", "#d55e00", "#1f2933"


def lift_dots(report: ExperimentReport) -> go.Figure:
    """A row a metric: its relative lift with the interval, and the margins of guardrails."""
    results = [result for result in (report.primary, *report.secondary, *report.guardrails) if result.effect.lift]
    labels = [f"{result.name}<br><span style='font-size:11px'>{_role(result, report)}</span>" for result in results]
    lifts = [result.effect.lift for result in results if result.effect.lift is not None]
    figure = _dots(labels, lifts, [_PRIMARY if result is report.primary else _OTHER for result in results])
    guarded = [(label, result.margin) for label, result in zip(labels, results, strict=True) if result.margin]
    figure.add_trace(
        go.Scatter(
            x=[-100 * margin for _, margin in guarded],
            y=[label for label, _ in guarded],
            mode="markers",
            marker={"symbol": "line-ns", "size": 22, "line": {"width": 3, "color": _MARGIN}},
            hovertemplate="%{y} may fall to %{x:.1f} %<extra></extra>",
        )
    )
    return figure


def sequential_path(looks: Sequence[Look]) -> go.Figure:
    """The primary difference while users arrived, with the confidence sequence and the interval for one look."""
    users = [look.users for look in looks]
    figure = go.Figure()
    for name, low, high, color in (
        ("confidence sequence", [each.low for each in looks], [each.high for each in looks], "rgba(11,98,164,.15)"),
        (
            "interval for one look",
            [each.fixed_low for each in looks],
            [each.fixed_high for each in looks],
            "rgba(11,98,164,.3)",
        ),
    ):
        figure.add_trace(
            go.Scatter(
                x=[*users, *reversed(users)],
                y=[*high, *reversed(low)],
                fill="toself",
                fillcolor=color,
                line={"width": 0},
                name=name,
                hoverinfo="skip",
            )
        )
    figure.add_trace(
        go.Scatter(
            x=users,
            y=[look.difference for look in looks],
            mode="lines+markers",
            line={"color": _PRIMARY, "width": 2},
            marker={"size": 6},
            name="difference",
            hovertemplate="%{x:,} users: %{y:+.4g}<extra></extra>",
        )
    )
    figure.add_hline(y=0, line={"color": _INK, "width": 1, "dash": "dash"})
    # The first looks have intervals so wide that nothing else would be seen.
    later = looks[len(looks) // 4 :]
    reach = 1.1 * max((max(abs(look.low), abs(look.high)) for look in later), default=1.0) or 1.0
    figure.update_yaxes(range=[-reach, reach])
    figure.update_xaxes(title_text="users who had arrived")
    return with_legend_below(styled(figure, height=420))


def segment_dots(segments: Sequence[SegmentEffect]) -> go.Figure:
    """A row a segment: the relative lift of the primary metric."""
    shown = [each for each in segments if each.effect.lift is not None]
    labels = [
        f"{each.dimension}: {each.segment}<br><span style='font-size:11px'>{each.effect.num_users:,} users</span>"
        for each in shown
    ]
    lifts = [each.effect.lift for each in shown if each.effect.lift is not None]
    return _dots(labels, lifts, [_PRIMARY] * len(shown))


def _dots(labels: Sequence[str], lifts: Sequence[Interval], colors: Sequence[str]) -> go.Figure:
    percent = [Interval(value=100 * x.value, low=100 * x.low, high=100 * x.high) for x in lifts]
    figure = go.Figure(
        go.Scatter(
            x=[each.value for each in percent],
            y=labels,
            mode="markers",
            marker={"size": 11, "color": list(colors)},
            error_x=error_bars(percent),
            hovertemplate="%{y}: %{x:+.2f} %<extra></extra>",
        )
    )
    for label, each in zip(labels, percent, strict=True):
        figure.add_annotation(
            x=each.value, y=label, text=f"{each.value:+.1f} %", yshift=16, showarrow=False, bgcolor="white", borderpad=0
        )
    figure.add_vline(x=0, line={"color": _INK, "width": 1, "dash": "dash"})
    figure.update_xaxes(title_text="lift, %", zeroline=False)
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_layout(showlegend=False)
    return styled(figure, height=120 + 52 * len(labels))


def _role(result: MetricResult, report: ExperimentReport) -> str:
    if result is report.primary:
        return "decides"
    return "secondary" if result.margin is None else f"may fall by {result.margin:.0%}"
