"""Plotly figures of a report. Each function returns one figure; captions and layout of the page are `html`'s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from recsys.evaluation.bootstrap import Interval
from recsys.evaluation.report import EvaluationReport, TrainingCurve

# The generator in a strong colour, baselines in colours that stay apart from it and from each other for
# readers with colour-blindness (Okabe and Ito's palette); other models take the remaining ones in turn.
_COLORS = {
    "generator": "#0b62a4",
    "sasrec": "#d55e00",
    "skip_gram": "#009e73",
    "item_knn": "#cc79a7",
    "popularity": "#8c959f",
}
_FURTHER_COLORS = ("#e69f00", "#56b4e9", "#7a5195", "#4d4d4d")
_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": "#1f2933"}
_GRID = "#e4e7eb"


def metric_bars(report: EvaluationReport, metrics: Sequence[str]) -> go.Figure:
    """A panel a metric, a bar a model, with its interval."""
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=list(metrics),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.3 / rows,
    )
    models = list(report.models)[::-1]  # The first bar of a horizontal chart is its lowest.
    colors = model_colors(list(report.models))
    for index, metric in enumerate(metrics):
        intervals = [report.models[model][metric] for model in models]
        row, column = index // columns + 1, index % columns + 1
        figure.add_trace(
            go.Bar(
                x=[interval.value for interval in intervals],
                y=models,
                orientation="h",
                marker_color=[colors[model] for model in models],
                error_x=error_bars(intervals),
                hovertemplate="%{y}: %{x:.4f}<extra>" + metric + "</extra>",
                showlegend=False,
            ),
            row=row,
            col=column,
        )
        # The number stands right of the interval, where no line crosses it.
        for model, interval in zip(models, intervals, strict=True):
            figure.add_annotation(
                x=interval.high,
                y=model,
                text=_number(interval.value),
                xanchor="left",
                xshift=6,
                showarrow=False,
                font={"size": 12},
                row=row,
                col=column,
            )
        widest = max((interval.high for interval in intervals), default=0.0)
        figure.update_xaxes(range=[0, widest * 1.3 if widest > 0 else 1], row=row, col=column, nticks=5)
    return styled(figure, height=90 + rows * (70 + 34 * len(models)))


def difference_dots(report: EvaluationReport) -> go.Figure:
    """Generator minus each baseline with its interval; a panel a metric."""
    metrics = list(next(iter(report.differences.values())))
    models = list(report.differences)[::-1]
    colors = model_colors(list(report.models))
    figure = make_subplots(
        rows=1, cols=len(metrics), subplot_titles=metrics, shared_yaxes=True, horizontal_spacing=0.04
    )
    for column, metric in enumerate(metrics, start=1):
        intervals = [report.differences[model][metric] for model in models]
        figure.add_trace(
            go.Scatter(
                x=[interval.value for interval in intervals],
                y=models,
                mode="markers",
                marker={"size": 11, "color": [colors[model] for model in models]},
                error_x=error_bars(intervals),
                hovertemplate="generator - %{y}: %{x:+.4f}<extra>" + metric + "</extra>",
                showlegend=False,
            ),
            row=1,
            col=column,
        )
        for model, interval in zip(models, intervals, strict=True):
            figure.add_annotation(
                x=interval.value,
                y=model,
                text=f"{interval.value:+.4f}",
                yshift=16,
                showarrow=False,
                bgcolor="white",
                borderpad=0,
                row=1,
                col=column,
            )
        figure.add_vline(x=0, line={"color": "#1f2933", "width": 1, "dash": "dash"}, row=1, col=column)
        reach = 1.2 * max((max(abs(each.low), abs(each.high)) for each in intervals), default=1.0) or 1.0
        figure.update_xaxes(range=[-reach, reach], zeroline=False, nticks=6, row=1, col=column)
    figure.update_yaxes(range=[-0.6, len(models) - 0.3])
    return styled(figure, height=120 + 52 * len(models))


def segment_bars(report: EvaluationReport, metric: str) -> go.Figure:
    """A panel a dimension, a group of bars a segment, a bar a model."""
    dimensions = list(report.segments)
    figure = make_subplots(
        rows=1,
        cols=len(dimensions),
        subplot_titles=[dimension.replace("_", " ") for dimension in dimensions],
        horizontal_spacing=0.07,
    )
    colors = model_colors(list(report.models))
    for column, dimension in enumerate(dimensions, start=1):
        groups = report.segments[dimension]
        labels = [
            f"{label}<br><span style='font-size:11px'>{group.cases:,} cases</span>" for label, group in groups.items()
        ]
        for model in report.models:
            intervals = [group.models[model][metric] for group in groups.values()]
            error = error_bars(intervals)
            figure.add_trace(
                go.Bar(
                    x=labels,
                    y=[interval.value for interval in intervals],
                    name=model,
                    legendgroup=model,
                    showlegend=column == 1,
                    marker_color=colors[model],
                    error_y=error,
                    hovertemplate="%{x}: %{y:.4f}<extra>" + model + "</extra>",
                ),
                row=1,
                col=column,
            )
    figure.update_layout(barmode="group", bargap=0.25, bargroupgap=0.05)
    figure.update_yaxes(title_text=metric, row=1, col=1)
    figure.update_xaxes(type="category", showgrid=False)
    return with_legend_below(styled(figure, height=430))


def training_curves(model: str, curve: TrainingCurve) -> go.Figure:
    """Losses in one panel, everything else in a second one."""
    losses = {name: values for name, values in curve.series.items() if "loss" in name}
    others = {name: values for name, values in curve.series.items() if "loss" not in name}
    panels = [panel for panel in (("loss", losses), ("validation", others)) if panel[1]]
    figure = make_subplots(
        rows=1, cols=max(1, len(panels)), subplot_titles=[title for title, _ in panels], horizontal_spacing=0.09
    )
    palette = [model_colors([model])[model], "#d55e00", "#009e73", "#cc79a7", *_FURTHER_COLORS]
    for column, (_, series) in enumerate(panels, start=1):
        for index, (name, values) in enumerate(series.items()):
            points = [(x, y) for x, y in zip(curve.x, values, strict=True) if y is not None]
            figure.add_trace(
                go.Scatter(
                    x=[x for x, _ in points],
                    y=[y for _, y in points],
                    name=name,
                    mode="lines+markers" if len(points) <= 60 else "lines",
                    line={"width": 2, "color": palette[index % len(palette)]},
                    marker={"size": 5},
                ),
                row=1,
                col=column,
            )
        figure.update_xaxes(title_text=curve.x_label, row=1, col=column)
    return with_legend_below(styled(figure, height=380))


def code_usage_map(code_usage: Sequence[Sequence[int]]) -> go.Figure:
    """A row a level; the codes of a level from the most to the least used."""
    width = max(len(level) for level in code_usage)
    ordered = np.full((len(code_usage), width), np.nan)
    for row, level in enumerate(code_usage):
        ordered[row, : len(level)] = np.sort(np.asarray(level, dtype=np.float64))[::-1]
    labels = []
    for row, level in enumerate(code_usage):
        used = sum(count > 0 for count in level)
        labels.append(f"level {row + 1}<br><span style='font-size:11px'>{used} of {len(level)} used</span>")
    # Counts reach from one to hundreds: colour by their logarithm, unused codes stand out in red.
    with np.errstate(divide="ignore"):
        shade = np.where(ordered > 0, np.log10(np.maximum(ordered, 1)) + 0.001, np.where(ordered == 0, 0.0, np.nan))
    top = max(float(np.nanmax(shade)), 0.1)
    edge = 0.0005 / top
    ticks = [value for value in (1, 3, 10, 30, 100, 300, 1000, 3000, 10000) if np.log10(value) <= top]
    figure = go.Figure(
        go.Heatmap(
            z=shade,
            y=labels,
            customdata=ordered,
            zmin=0,
            zmax=top,
            colorscale=[[0, "#d1242f"], [edge, "#d1242f"], [edge, "#e3eef8"], [0.5, "#6aa5d8"], [1, "#083a6b"]],
            colorbar={"title": {"text": "items"}, "tickvals": [np.log10(v) for v in ticks], "ticktext": ticks},
            hovertemplate="%{y}, rank %{x}: %{customdata:.0f} items<extra></extra>",
            ygap=3,
        )
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(title_text="codes of the level, most used first", showgrid=False)
    return styled(figure, height=150 + 62 * len(code_usage))


def model_colors(models: Sequence[str]) -> dict[str, str]:
    """The same colour for the same model in every figure."""
    others = [model for model in models if model not in _COLORS]
    further = {model: _FURTHER_COLORS[index % len(_FURTHER_COLORS)] for index, model in enumerate(others)}
    return {model: _COLORS.get(model) or further[model] for model in models}


def error_bars(intervals: Sequence[Interval]) -> dict[str, Any]:
    """Plotly's error bars of intervals that need not be symmetric."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [interval.high - interval.value for interval in intervals],
        "arrayminus": [interval.value - interval.low for interval in intervals],
        "color": "#1f2933",
        "thickness": 1.2,
        "width": 3,
    }


def _number(value: float) -> str:
    return f"{value:.4f}" if value < 1 else f"{value:.2f}"


def styled(figure: go.Figure, height: int) -> go.Figure:
    """The figure in the look of all reports; `height` in pixels."""
    figure.update_layout(
        height=height,
        font=_FONT,
        paper_bgcolor="white",
        plot_bgcolor="white",
        margin={"l": 10, "r": 10, "t": 40, "b": 10},
    )
    figure.update_xaxes(gridcolor=_GRID, zerolinecolor=_GRID, automargin=True)
    figure.update_yaxes(gridcolor=_GRID, zerolinecolor=_GRID, automargin=True)
    return figure


def with_legend_below(figure: go.Figure) -> go.Figure:
    """The figure with its legend in one line below."""
    figure.update_layout(legend={"orientation": "h", "yanchor": "top", "y": -0.18, "xanchor": "center", "x": 0.5})
    return figure
