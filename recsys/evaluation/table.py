"""The report on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recsys.evaluation.bootstrap import Interval
from recsys.evaluation.report import EvaluationReport

_WIDE = ("recall@5", "recall@10", "recall@50", "ndcg@5", "ndcg@10", "mrr@10", "coverage@10", "novelty@10")
_NARROW = ("recall@10", "recall@50", "ndcg@10", "coverage@10")
_CELL_WIDTH = 14
_LABEL_WIDTH = 14


def print_report(report: EvaluationReport, console: Console) -> None:
    """Metrics with intervals, differences and segments as tables, the protocol in a sentence below."""
    shown = _WIDE if console.width >= _LABEL_WIDTH + _CELL_WIDTH * len(_WIDE) else _NARROW
    console.print(_metrics_table(report, shown))
    if report.differences:
        console.print(_differences_table(report))
    for dimension in report.segments:
        # Two columns of labels; intervals are left out where they would not fit (`report.json` has them).
        fits = console.width >= 2 * _LABEL_WIDTH + _CELL_WIDTH * len(report.models)
        console.print(_segments_table(report, dimension, with_intervals=fits))
    console.print(Text(protocol_sentence(report), style="dim"))


def protocol_sentence(report: EvaluationReport) -> str:
    """The facts without which the numbers mean nothing."""
    facts = report.protocol
    seeds = ", ".join(f"{name} {seed}" for name, seed in facts.seeds.items())
    notes = "".join(f" {name}: {value}." for name, value in facts.notes.items())
    return (
        f"Protocol: {facts.split} split, {facts.subset} part, {facts.num_cases:,} cases of {facts.num_users:,} users; "
        f"every target ranked among all {facts.num_items:,} items, a hit is the item itself; "
        f"seen items {'masked' if facts.mask_seen else 'not masked'}; fitted on {facts.fitted_on} only; "
        f"ties ordered by {facts.tie_order} ({facts.tie_share:.1%} of interactions tie); "
        f"{facts.confidence:.0%} intervals from {facts.n_bootstrap:,} resamples of users; seeds: {seeds}.{notes}"
    )


def _metrics_table(report: EvaluationReport, shown: Sequence[str]) -> Table:
    metrics = [name for name in shown if all(name in values for values in report.models.values())]
    facts = report.protocol
    table = Table(title=f"Evaluation on {facts.subset}, {facts.confidence:.0%} intervals", box=box.SIMPLE_HEAD)
    table.add_column("model", style="bold")
    for name in metrics:
        table.add_column(name, justify="right")
    best = {name: max((values[name].value for values in report.models.values()), default=0.0) for name in metrics}
    for model, values in report.models.items():
        table.add_row(model, *(_cell(name, values[name], values[name].value == best[name]) for name in metrics))
    return table


def _differences_table(report: EvaluationReport) -> Table:
    metrics = list(next(iter(report.differences.values())))
    table = Table(title="Generator minus baseline, same users", box=box.SIMPLE_HEAD)
    table.add_column("baseline", style="bold")
    for name in metrics:
        table.add_column(name, justify="right")
    for model, values in report.differences.items():
        cells = []
        for name in metrics:
            interval = values[name]
            style = "green" if interval.low > 0 else "red" if interval.high < 0 else "yellow"
            cells.append(Text(f"{interval.value:+.4f}  [{interval.low:+.4f}, {interval.high:+.4f}]", style=style))
        table.add_row(model, *cells)
    return table


def _segments_table(
    report: EvaluationReport, dimension: str, *, with_intervals: bool, metric: str = "ndcg@10"
) -> Table:
    table = Table(title=f"{metric} by {dimension.replace('_', ' ')}", box=box.SIMPLE_HEAD)
    table.add_column("segment", style="bold")
    table.add_column("cases", justify="right")
    for model in report.models:
        table.add_column(model, justify="right")
    for label, segment in report.segments[dimension].items():
        best = max(values[metric].value for values in segment.models.values())
        cells = [
            _cell(metric, values[metric], values[metric].value == best, with_interval=with_intervals)
            for values in segment.models.values()
        ]
        table.add_row(label, f"{segment.cases:,}", *cells)
    return table


def _cell(metric: str, interval: Interval, is_best: bool, *, with_interval: bool = True) -> Text:
    # Novelty is in bits and would waste digits; there is also no best novelty or coverage to point out.
    digits = 2 if metric.startswith("novelty") else 4
    highlight = is_best and interval.value > 0 and not metric.startswith(("novelty", "coverage"))
    cell = Text(f"{interval.value:.{digits}f}", style="bold green" if highlight else "")
    if with_interval:
        low, high = (f"{bound:.{digits}f}".removeprefix("0") for bound in (interval.low, interval.high))
        cell.append(f"\n{low}-{high}", style="not bold dim")
    return cell
