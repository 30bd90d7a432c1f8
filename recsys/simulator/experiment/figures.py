"""Plotly figures of an A/B test. Captions and layout of the page are `page`'s."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from recsys.evaluation.bootstrap import Interval
from recsys.evaluation.figures import error_bars, styled, with_legend_below
from recsys.simulator.experiment.analysis import ExperimentReport, Look, MetricResult
from recsys.simulator.experiment.segments import SegmentEffect
from recsys.simulator.experiment.verdict import rounded

_PRIMARY, _OTHER, _MARGIN, _INK = "#0b62a4", "#8c959f", "#d55e00", "#1f2933"
_SAFETY = {"safe": "#00796b", "harmed": "#b3261e", "unclear": "#b34700"}


def lift_dots(report: ExperimentReport) -> go.Figure:
    """A row a metric that is no guardrail: its relative lift with the interval."""
    results = (report.primary, *report.secondary)
    return dots(
        [(result.label, _role(result, report), result.effect.lift) for result in results],
        [_PRIMARY] + [_OTHER] * len(report.secondary),
    )


def guardrail_dots(report: ExperimentReport) -> go.Figure:
    """A row a guardrail: its relative lift with a one-sided test's bounds, and how far it may fall.

    Those without a lift, for the control has nothing of the metric, are left out.
    """
    level = 1 - report.plan.alpha
    rows, colors, marks = [], [], []
    for result in report.guardrails:
        low, high = result.effect.lift_bound(level), result.effect.lift_bound(1 - level)
        if result.effect.lift is None or low is None or high is None or result.margin is None:
            continue
        note = f"may fall by {result.margin:.0%}: {result.safety}"
        rows.append((result.label, note, Interval(value=result.effect.lift.value, low=low, high=high)))
        colors.append(_SAFETY[result.safety or "unclear"])
        marks.append((_label(result.label, note), -100 * result.margin))
    figure = dots(rows, colors)
    figure.add_trace(
        go.Scatter(
            x=[margin for _, margin in marks],
            y=[label for label, _ in marks],
            mode="markers",
            marker={"symbol": "line-ns", "size": 22, "line": {"width": 3, "color": _MARGIN}},
            hovertemplate="may fall to %{x:.1f} %<extra></extra>",
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
    return _close(with_legend_below(styled(figure, height=420)))


def segment_dots(segments: Sequence[SegmentEffect]) -> go.Figure:
    """A row a segment: the relative lift of the primary metric."""
    return dots(
        [
            (f"{each.dimension}: {each.segment}", f"{each.effect.num_users:,} users", each.effect.lift)
            for each in segments
        ]
    )


def power_curve(users_per_arm: int, smallest_lift: float) -> go.Figure:
    """Users an arm over the lift that they show, from what `smallest_lift` needs; their product with its square stays.

    Args:
        users_per_arm: that show `smallest_lift`.
        smallest_lift: relative, such as .02.
    """
    lifts = smallest_lift * np.geomspace(0.5, 10, 60)
    figure = go.Figure(
        go.Scatter(
            x=(100 * lifts).tolist(),
            y=(users_per_arm * (smallest_lift / lifts) ** 2).tolist(),
            mode="lines",
            line={"color": _PRIMARY, "width": 2},
            hovertemplate="a lift of %{x:.1f} % needs %{y:,.0f} users an arm<extra></extra>",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=[100 * smallest_lift],
            y=[users_per_arm],
            mode="markers",
            marker={"size": 11, "color": _PRIMARY},
            hoverinfo="skip",
        )
    )
    marked = smallest_lift * np.array([0.5, 1, 2, 5, 10])
    needed = users_per_arm * (smallest_lift / marked) ** 2
    figure.update_xaxes(
        title_text="lift",
        type="log",
        range=np.log10(100 * smallest_lift * np.array([0.45, 11.5])).tolist(),
        tickvals=(100 * marked).tolist(),
        ticktext=[f"{lift:.3g} %" for lift in 100 * marked],
    )
    figure.update_yaxes(
        title_text="users an arm",
        type="log",
        tickvals=needed.tolist(),
        ticktext=[rounded(max(2, round(count))) for count in needed.tolist()],
    )
    figure.update_layout(showlegend=False)
    return _close(styled(figure, height=340))


def dots(rows: Sequence[tuple[str, str, Interval | None]], colors: Sequence[str] | None = None) -> go.Figure:
    """A row a relative lift with its interval, in percent: name, note, and lift. Rows without a lift are left out."""
    shown = [
        (_label(name, note), Interval(value=100 * lift.value, low=100 * lift.low, high=100 * lift.high), color)
        for (name, note, lift), color in zip(rows, [_PRIMARY] * len(rows) if colors is None else colors, strict=True)
        if lift is not None
    ]
    figure = go.Figure(
        go.Scatter(
            x=[lift.value for _, lift, _ in shown],
            y=[label for label, _, _ in shown],
            mode="markers",
            marker={"size": 11, "color": [color for _, _, color in shown]},
            error_x=error_bars([lift for _, lift, _ in shown]),
            hovertemplate="%{y}: %{x:+.2f} %<extra></extra>",
        )
    )
    for label, lift, _ in shown:
        figure.add_annotation(
            x=lift.value,
            y=label,
            text=f"{lift.value:+.1f} %",
            yshift=16,
            showarrow=False,
            bgcolor="white",
            borderpad=0,
        )
    figure.add_vline(x=0, line={"color": _INK, "width": 1, "dash": "dash"})
    figure.update_xaxes(title_text="lift, %", zeroline=False, nticks=7)
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_layout(showlegend=False)
    return _close(styled(figure, height=90 + 46 * len(shown)))


def _close(figure: go.Figure) -> go.Figure:
    """The figure right below its caption."""
    return figure.update_layout(margin_t=22)


def _label(name: str, note: str) -> str:
    """Of two lines; names may hold anything."""
    return f"{escape(name)}<br><span style='font-size:11px'>{escape(note)}</span>"


def _role(result: MetricResult, report: ExperimentReport) -> str:
    return "decides" if result is report.primary else "secondary"
