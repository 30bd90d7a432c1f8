"""The report as one HTML file that needs nothing else: no server, no network, no second file."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from recsys.evaluation import figures
from recsys.evaluation.bootstrap import Interval
from recsys.evaluation.protocol import GENERATOR
from recsys.evaluation.report import EvaluationReport
from recsys.files import atomic_path

_BAR_METRICS = ("recall@5", "recall@10", "recall@50", "ndcg@5", "ndcg@10", "mrr@10")
_LIST_METRICS = ("coverage@10", "gini@10", "novelty@10", "popularity_percentile@10", "head_share@10")
_HEADLINE = "ndcg@10"

_STYLE = """
body { margin: 0; background: #f5f7fa; color: #1f2933; font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; margin: 0 0 4px; overflow-wrap: anywhere; } h2 { font-size: 19px; margin: 0 0 4px; }
.lead { font-size: 17px; margin: 6px 0 22px; max-width: 78ch; }
section { background: white; border: 1px solid #e4e7eb; border-radius: 10px; padding: 20px 22px; margin: 0 0 20px; }
.caption { color: #52606d; font-size: 14px; margin: 0 0 10px; max-width: 95ch; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; width: 100%; }
th, td { text-align: right; padding: 7px 10px; border-bottom: 1px solid #e4e7eb; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { color: #52606d; font-weight: 600; }
td small { display: block; color: #7b8794; font-size: 12px; }
td.best { font-weight: 700; color: #0b62a4; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.facts td:first-child { color: #52606d; width: 17em; }
@media (max-width: 600px) { main { padding: 20px 10px 40px; } section { padding: 14px 12px; }
  .facts td:first-child { width: 7em; } }
"""


def save_html(report: EvaluationReport, path: Path, *, title: str = "Evaluation") -> None:
    """Write the page, whole or not at all; about 5 MB, nearly all of it the plotting library."""
    with atomic_path(path) as temporary:
        temporary.write_text(render_html(report, title=title), encoding="utf-8")


def render_html(report: EvaluationReport, *, title: str = "Evaluation") -> str:
    """The page as text."""
    return page(title, headline(report), _sections(report))


def page(title: str, lead: str, sections: Iterable[str], style: str = "") -> str:
    """An HTML page that needs nothing else: a title, a paragraph, and sections of HTML that `section` made; `style` is
    further CSS."""
    body = "\n".join(sections)
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}{style}</style><script>{get_plotlyjs()}</script></head>\n"
        f'<body><main><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>\n'
        f"{body}\n</main></body></html>\n"
    )


def headline(report: EvaluationReport) -> str:
    """The result in a sentence or two."""
    facts = report.protocol
    scope = (
        f"{facts.num_cases:,} {facts.subset} cases, each ranked over all {facts.num_items:,} items, seen items "
        f"{'masked' if facts.mask_seen else 'not masked'}."
    )
    if GENERATOR not in report.models:
        return scope
    own = report.models[GENERATOR][_HEADLINE]
    groups: dict[str, list[str]] = {}
    for model, values in report.differences.items():
        groups.setdefault(_verdict(values[_HEADLINE]), []).append(model)
    compared = "; ".join(f"{verdict} {', '.join(models)}" for verdict, models in groups.items())
    return (
        f"The generator reaches {_HEADLINE} {own.value:.4f} ({own.low:.4f} to {own.high:.4f})"
        f"{f': {compared}' if compared else ''}. {scope}"
    )


def _verdict(difference: Interval) -> str:
    if difference.low > 0:
        return "better than"
    return "worse than" if difference.high < 0 else "not distinguishable from"


def _sections(report: EvaluationReport) -> Iterable[str]:
    confidence = f"{report.protocol.confidence:.0%}"
    bars = [name for name in _BAR_METRICS if all(name in values for values in report.models.values())]
    yield section(
        "Accuracy",
        "Longer is better. A bar is the mean over cases, the thin line its "
        f"{confidence} interval over users. Recall@k: share of cases whose next item is among the first k. NDCG@k and "
        "MRR@k also ask how far up it is. Overlapping lines do not settle a comparison; the next figure does.",
        figure_html("accuracy", figures.metric_bars(report, bars)),
    )
    if report.differences:
        yield section(
            "Generator against each baseline",
            f"A dot is the generator's metric minus the baseline's on the same users, the line its {confidence} "
            "interval. Right of the dashed zero the generator is ahead; if a line crosses zero, these users "
            "cannot tell the two apart.",
            figure_html("differences", figures.difference_dots(report)),
        )
    yield section(
        "All numbers",
        f"Value with its {confidence} interval below; the best of a column in blue.",
        _metric_table(report, [name for name in next(iter(report.models.values()), {}) if name not in _LIST_METRICS]),
    )
    yield section(
        "What the lists look like",
        "Not better or worse by themselves. coverage: share of the catalogue in at least one top ten. gini: 0 when "
        "all items are shown equally often, near 1 when a few take everything. novelty: bits of surprise of a "
        "recommended item. popularity_percentile: 0.5 would be unbiased, 1 the most popular item only. head_share: "
        "share of places taken by the 10 % most popular items.",
        _metric_table(report, _LIST_METRICS, mark_best=False),
    )
    yield section(
        "By segment",
        f"{_HEADLINE} of groups of cases, with {confidence} intervals. Left: by the number of items in the history. "
        "Right: by the target's popularity in training: head is the 10 % most popular items, mid goes on to half of "
        "the catalogue, tail is the rest, cold was never seen in training.",
        figure_html("segments", figures.segment_bars(report, _HEADLINE)),
    )
    for model, curve in (report.training_curves or {}).items():
        yield section(
            f"Training of {model}",
            "Loss should fall and level off. The validation metric chooses the weights that are kept: its highest "
            "point; a loss that falls while the metric drops is overfitting.",
            figure_html(f"training-{model}", figures.training_curves(model, curve)),
        )
    if report.code_usage:
        yield section(
            "Use of semantic-ID codes",
            "A row is a level of the semantic ID, a cell a code, its colour the number of items that carry it. Even "
            "colour across a row is a balanced codebook; red cells are codes that no item uses.",
            figure_html("codes", figures.code_usage_map(report.code_usage)),
        )
    yield section("Protocol", "Numbers compare only with numbers of the same protocol.", _protocol_table(report))


def section(title: str, caption: str, content: str) -> str:
    """A titled block of the page; `content` is HTML."""
    return f'<section><h2>{escape(title)}</h2><p class="caption">{escape(caption)}</p>{content}</section>'


def figure_html(name: str, figure: go.Figure) -> str:
    """A figure as HTML for a section; `name` is unique on the page."""
    fragment: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"figure-{name}",
        config={"displaylogo": False, "responsive": True, "displayModeBar": False},
    )
    return fragment


def _metric_table(report: EvaluationReport, metrics: Iterable[str], *, mark_best: bool = True) -> str:
    names = list(metrics)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    best = {name: max((values[name].value for values in report.models.values()), default=0.0) for name in names}
    rows = []
    for model, values in report.models.items():
        cells = "".join(
            _metric_cell(values[name], best=mark_best and 0 < values[name].value == best[name]) for name in names
        )
        rows.append(f"<tr><td>{escape(model)}</td>{cells}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr><th>model</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _metric_cell(interval: Interval, *, best: bool) -> str:
    digits = 4 if interval.value < 1 else 2
    marker = ' class="best"' if best else ""
    return (
        f"<td{marker}>{interval.value:.{digits}f}"
        f"<small>{interval.low:.{digits}f} - {interval.high:.{digits}f}</small></td>"
    )


def _protocol_table(report: EvaluationReport) -> str:
    facts = report.protocol
    rows = {
        "Split": f"{facts.split}, {facts.subset} part",
        "Fitted on": f"{facts.fitted_on} only ({facts.num_train_interactions:,} interactions)",
        "Ranking": f"{facts.ranking}, {facts.num_items:,} items; a hit is the {facts.hit} itself",
        "Seen items": "masked" if facts.mask_seen else "not masked",
        "Repeats in the data": "some users have an item twice" if facts.has_repeats else "none",
        "Order of ties": f"{facts.tie_order}; {facts.tie_share:.1%} of interactions have a tie",
        "Users and cases": f"{facts.num_users:,} users, {facts.num_cases:,} cases",
        "Intervals": f"{facts.confidence:.0%}, bootstrap over users, {facts.n_bootstrap:,} resamples",
        "Cut-offs": ", ".join(map(str, facts.ks)),
        "Seeds": ", ".join(f"{name} {seed}" for name, seed in facts.seeds.items()),
        **{name: str(value) for name, value in facts.notes.items()},
    }
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return f'<table class="facts"><tbody>{cells}</tbody></table>'
