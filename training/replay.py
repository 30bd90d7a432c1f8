"""`recsys replay`: what another policy would have earned, from a log. Makes the one document that is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from feature_store.errors import StoreError
from recsys.errors import ConfigError, DataError
from recsys.simulator.off_policy import (
    OffPolicyConfig,
    evaluate_policy,
    evaluate_propensities,
    evaluate_slates,
)
from training.layout import BUNDLE, CONFIG_FILE, RUNS
from training.replay_logs import LoggedLists, first_places, read_log
from training.results import find_bundle

_OFFLINE = "offline"
"""Beside a bundle: where `recsys serve` writes its events and lists."""
_WIDEST = 1000
"""Characters of a line; no table has so many."""
_TITLES = {
    "on_policy": "as it was served",
    "balanced_ips": "balanced IPS",
    "clipped_ips": "clipped IPS",
    "subgaussian_ips": "sub-Gaussian IPS",
    "subgaussian_dr": "sub-Gaussian DR",
    "switch_dr": "Switch-DR",
    "dros": "DRos",
    "direct": "direct method",
    "replay": "replay",
    "cascade_dr": "cascade-DR",
}


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """What is asked."""

    target: Path | None = None
    """A bundle, a run, or a table of a policy; None: the log has the target's propensities."""
    served: Path | None = None
    """The bundle that was served, whose histories the store began with; None: that of the run that the log is of, or
    the target."""
    events: Sequence[str] = ()
    """Types of events that are a reward; none: all."""
    sources: Sequence[str] = ()
    """Only lists of these sources; none: all."""
    places: int | None = None
    """Only the first so many of each list."""
    epsilon: float = 0.0
    """Of a bundle under test."""
    candidates: int = 50
    """Of a bundle under test."""


def replay(log: Path, options: ReplayOptions, config: OffPolicyConfig) -> dict[str, Any]:
    """All estimates of a log as a document.

    Args:
        log: a table (`training.replay_logs`), an offline store, or a run whose service wrote one.
        options: what is asked.
        config: how estimates are made.

    Returns:
        `kind` (`rounds` or `lists`), of a store `target`, `served_by`, `num_lists`, `num_known` (lists with the
        propensities that the bundle which was served gives them) and `left_out`, and what
        `OffPolicyReport.as_document` says.

    Raises:
        ConfigError: something is named that is not there, or does not go together.
        DataError: the log is no evidence.
        ArtifactError: a bundle cannot be read.
    """
    run = next((path for path in (log, RUNS / log) if (path / CONFIG_FILE).is_file()), None)
    if run is not None or log.is_dir():
        directory = log if run is None else run / _OFFLINE
        return _replay_store(directory, None if run is None else run / BUNDLE, options, config)
    if options.target is not None and options.target.is_dir():
        raise ConfigError(f"target: {options.target} is no table; a bundle can be the target of an offline store")
    if options.served is not None or options.events or options.sources or options.epsilon:
        raise ConfigError("served, event, source and epsilon are of stores; a table of a log says all that itself")
    logged = read_log(log, options.target)
    if isinstance(logged, LoggedLists):
        if options.places is not None:
            logged = first_places(logged, options.places)
        return {"kind": "lists", **evaluate_slates(logged.log, logged.target, config).as_document()}
    if options.places is not None:
        raise ConfigError(f"places: {log} has no lists (no column 'position')")
    if logged.policy is not None:
        report = evaluate_policy(logged.log, logged.policy, config, codes=logged.codes)
    else:
        assert logged.propensities is not None
        report = evaluate_propensities(logged.log, logged.propensities, config)
    return {"kind": "rounds", **report.as_document()}


def print_replay(document: Mapping[str, Any]) -> None:
    """Print a document of `replay` on stdout as tables."""
    console = Console()
    unit = "list" if document["kind"] == "lists" else "round"
    table = Table(
        title=f"Reward a {unit} under the target, from {document['num_rounds']:,} {unit}s", box=box.SIMPLE_HEAD
    )
    table.add_column("estimator", style="bold")
    for title in ("value", "bootstrap", "Bernstein", "over what was served", "leaves out", "parameter"):
        table.add_column(title, justify="right")
    served = document["served"]
    table.add_row(_TITLES["on_policy"], _number(served["value"]), _interval(served), "", "", "", "")
    refusals: dict[str, list[str]] = {}
    for name, outcome in document["outcomes"].items():
        title = _TITLES.get(name, name.upper().replace("_", "-"))
        if "refused" in outcome:
            refusals.setdefault(outcome["refused"], []).append(title)
            table.add_row(title, Text("refused", style="red"), "", "", "", "", "")
            continue
        lift = outcome["lift"]
        low, high = lift["low"], lift["high"]
        style = "green" if low is not None and low > 0 else "red" if high is not None and high < 0 else "yellow"
        table.add_row(
            title,
            _number(outcome["value"]),
            _interval(outcome["bootstrap"]),
            _interval(outcome["bernstein"]),
            Text(f"{lift['value']:+.4g} {_interval(lift)}", style=style),
            _interval(outcome["bias"]),
            "" if outcome["parameter"] is None else f"{outcome['parameter']:.4g}",
        )
    _print_whole(console, table)
    for reason, titles in refusals.items():
        console.print(Text(f"Refused ({', '.join(titles)}): {reason}.", style="red"), soft_wrap=True)
    _print_whole(console, _weights_table(document["weights"]))
    if document["calibration"] is not None:
        _print_whole(console, _calibration_table(document["calibration"]))
    for note in _notes(document):
        console.print(Text(note, style="dim"), soft_wrap=True)


def _print_whole(console: Console, table: Table) -> None:
    """As wide as it is: a number that is cut off to fit a narrow terminal or a pipe is another number."""
    wide = Console(width=_WIDEST)
    Console(width=max(console.width, wide.measure(table).maximum)).print(table)


def _replay_store(
    directory: Path, own_bundle: Path | None, options: ReplayOptions, config: OffPolicyConfig
) -> dict[str, Any]:
    if options.target is None:
        raise ConfigError("target: the lists of a store need a policy to test; name a bundle or a run with --target")
    # Only here: models load PyTorch, tables need none.
    from recsys.bundle import Bundle
    from training.replay_store import TargetPolicy, read_store, target_of

    target = find_bundle(str(options.target))
    seeds = find_bundle(str(options.served)) if options.served is not None else own_bundle or target
    try:
        lists = read_store(directory, seeds, events=options.events, places=options.places, policies=options.sources)
    except StoreError as error:
        raise DataError(str(error)) from error
    policy = TargetPolicy(epsilon=options.epsilon, candidates=options.candidates)
    bundle = Bundle.load(target)
    served = bundle if seeds == target else Bundle.load(seeds)
    answers = target_of(
        bundle, served, lists, policy, num_folds=config.num_folds, penalty=config.penalty, seed=config.seed
    )
    report = evaluate_slates(
        lists.log,
        answers.slate_target,
        config,
        model=answers.model,
        prefix_weights=answers.prefix_weights,
        calibration=answers.calibration,
    )
    return {
        "kind": "lists",
        "target": bundle.manifest.model_version,
        "served_by": served.manifest.model_version,
        "num_lists": lists.num_lists,
        "num_known": answers.num_known,
        "left_out": lists.left_out,
        **report.as_document(),
    }


def _weights_table(weights: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title="Weights", box=box.SIMPLE_HEAD)
    for title in ("of", "mean (1 ± error)", "worth rounds", "share", "largest", "its share", "top 1 %", "support"):
        table.add_column(title, justify="left" if title == "of" else "right")
    for kind, found in weights.items():
        table.add_row(
            kind,
            f"{found['mean_weight']:.3f} ± {found['mean_weight_error'] or 0:.3f}",
            f"{found['effective_size']:,.0f}",
            f"{found['effective_share']:.1%}",
            f"{found['max_weight']:.3g}",
            f"{found['max_weight_share']:.2%}",
            f"{found['top_percent_share']:.1%}",
            "unknown" if found["support"] is None else f"{found['support']:.1%}",
        )
    return table


def _calibration_table(calibration: Mapping[str, Any]) -> Table:
    slope, error = calibration["slope"], calibration["slope_error"]
    found = "all equal" if slope is None else f"slope {slope:.3f} ± {error:.3f}, 1 is right"
    if calibration["p_value"] is not None:
        found += f"; p = {calibration['p_value']:.2g}"
    table = Table(title=f"Propensities against what was taken ({found})", box=box.SIMPLE_HEAD)
    for title in ("pairs", "propensity", "taken"):
        table.add_column(title, justify="right")
    for each in calibration["bins"]:
        table.add_row(f"{each['num_chances']:,}", f"{each['propensity']:.5f}", f"{each['frequency']:.5f}")
    return table


def _notes(document: Mapping[str, Any]) -> list[str]:
    notes = []
    if document.get("left_out"):
        parts = ", ".join(f"{count:,} {reason}" for reason, count in document["left_out"].items())
        notes.append(f"Left out of {document['num_lists']:,} lists: {parts}.")
    if "num_known" in document:
        notes.append(
            f"{document['num_known']:,} of {document['num_rounds']:,} lists have the propensities that "
            f"{document['served_by']} gives them"
            + ("." if document["calibration"] else ": too few to check them, or to estimate by prefixes.")
        )
    notes.append(f"{document['num_rewarded']:,} with a reward, {document['num_users']:,} users.")
    if document["model"] is not None:
        model = document["model"]
        notes.append(
            f"Reward model on other users: bias {model['bias']:+.3g}, slope {model['slope']:.2f} (1 is right)."
        )
    return [*notes, *(f"Note: {note}." for note in document["notes"])]


def _number(value: float) -> str:
    return f"{value:.4g}"


def _interval(interval: Mapping[str, float | None] | None) -> str:
    """Documents have null where a limit is infinite."""
    if interval is None:
        return ""
    low, high = interval["low"], interval["high"]
    return f"[{'-∞' if low is None else _number(low)}, {'∞' if high is None else _number(high)}]"
