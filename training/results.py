"""Finding finished runs on disk, reading and printing what they say. Runs nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from recsys.errors import ArtifactError, ConfigError
from training.layout import (
    BUNDLE,
    CONFIG_FILE,
    EVALUATE,
    REPORT,
    REPORT_PAGE,
    RUNS,
    STAGE_FILE,
    TOKENIZE,
    TOKENIZER_REPORT,
)

_MANIFEST = "manifest.json"
"""Of a bundle."""


def find_run(run: Path) -> Path:
    """The directory of a run, given as a path or as a name under `runs/`."""
    for directory in (run, RUNS / run):
        if (directory / CONFIG_FILE).is_file():
            return directory
    known = sorted(path.parent.name for path in RUNS.glob(f"*/{CONFIG_FILE}"))
    raise ConfigError(f"no run {str(run)!r}; known under {RUNS}/: {', '.join(known) or 'none'}")


def find_bundle(name: str) -> Path:
    """The directory of a bundle: a path to one, to a run, or the name of a run.

    Raises:
        ConfigError: there is none.
    """
    for directory in (Path(name), Path(name) / BUNDLE, RUNS / name / BUNDLE):
        if (directory / _MANIFEST).is_file():
            return directory
    known = sorted(path.parent.parent.name for path in RUNS.glob(f"*/{BUNDLE}/{_MANIFEST}"))
    raise ConfigError(
        f"no bundle at {name!r}; name a bundle, or a run with one (under {RUNS}/: {', '.join(known) or 'none'})"
    )


def read_report(run_dir: Path) -> dict[str, Any]:
    """The content of a run's `report.json`."""
    report: dict[str, Any] = _read_json(run_dir / EVALUATE / REPORT)
    return report


def print_report(run_dir: Path) -> None:
    """Print a run's evaluation on stdout, and where its page lies."""
    from recsys.evaluation import EvaluationReport
    from recsys.evaluation import print_report as print_tables

    stdout = Console()
    print_tables(EvaluationReport.load(run_dir / EVALUATE / REPORT), stdout)
    stdout.print(f"report: {run_dir / EVALUATE / REPORT_PAGE}", highlight=False, soft_wrap=True)


def read_tokenizer_report(run_dir: Path) -> dict[str, Any]:
    """The quality of a run's semantic IDs."""
    report: dict[str, Any] = _read_json(run_dir / TOKENIZE / TOKENIZER_REPORT)
    return report


def print_tokenizer_report(report: dict[str, Any]) -> None:
    """Print its numbers on stdout, one a line; lists have one entry a level."""
    table = Table("semantic IDs", "value")
    for name, value in report.items():
        table.add_row(name, _shown(value))
    Console().print(table)


def print_drift(report: dict[str, Any]) -> None:
    """Print on stdout each statistic of a `drift_report` beside its threshold, then the verdict."""
    thresholds = report["thresholds"]
    table = Table("drift", "value", "threshold")
    for name, value in report.items():
        if name not in ("thresholds", "drifted", "reasons"):
            table.add_row(name, _shown(value), _shown(thresholds[name]) if name in thresholds else "")
    stdout = Console()
    stdout.print(table)
    for reason in report["reasons"]:
        stdout.print(reason, highlight=False, soft_wrap=True)
    verdict = "drifted: fit the tokenizer again" if report["drifted"] else "no drift: the codebooks still serve"
    stdout.print(verdict, highlight=False)


def print_retokenization(report: dict[str, Any], output: Path) -> None:
    """Print on stdout how many names changed, and where the new ones lie."""
    table = Table("items", "count", "renamed")
    for kind in ("unchanged_items", "changed_items", "new_items"):
        counts = report[kind]
        table.add_row(kind.removesuffix("_items"), str(counts["count"]), str(counts.get("renamed", "")))
    table.add_row("removed", str(report["removed_items"]), "")
    stdout = Console()
    stdout.print(table)
    for name, value in report.items():
        if name.startswith("kept_share"):
            stdout.print(f"{name}: {_shown(value)}", highlight=False, soft_wrap=True)
    stdout.print(f"semantic IDs: {output}", highlight=False, soft_wrap=True)


def print_found(items: list[dict[str, Any]]) -> None:
    """Print items with their titles and log-probabilities on stdout, best first."""
    table = Table("item", "title", "log-probability")
    for item in items:
        table.add_row(item["item_id"], item["title"] or "", f"{item['log_probability']:.3f}")
    Console().print(table)


def stage_costs(run_dir: Path) -> dict[str, Any]:
    """`seconds` of each stage and in all, and `peak_memory_gib` of the process that ran them.

    A stage that went on after an interruption counts from there.

    Raises:
        ArtifactError: no stage is finished.
    """
    markers = [_read_json(path) for path in run_dir.glob(f"*/{STAGE_FILE}")]
    if not markers:
        raise ArtifactError(f"{run_dir} has no finished stage; finish the run with `recsys run CONFIG`")
    markers.sort(key=lambda marker: float(marker["finished_at"]))
    seconds = {marker["stage"]: round(marker["seconds"], 1) for marker in markers}
    return {
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
        "peak_memory_gib": round(max(marker["peak_memory_mib"] for marker in markers) / 1024, 2),
    }


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read {path}: {error}; make it with `recsys run`") from error


def _shown(value: Any) -> str:
    if isinstance(value, list):
        # A table, such as the mutual information between codebooks, has a line a row.
        return ("\n" if value and isinstance(value[0], list) else "  ").join(_shown(entry) for entry in value)
    if isinstance(value, dict):
        return "  ".join(f"{name} {_shown(entry)}" for name, entry in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
