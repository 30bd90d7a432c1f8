"""`recsys ab` and `recsys ab-power`: a test on simulated users, and how many users a live one needs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from recsys.errors import ConfigError
from training.output import print_document, results_only_stdout

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]


def ab(
    first: Annotated[str, typer.Argument(metavar="A", help="The control: a bundle, a run, or the name of a run.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The treatment: the same, or the URL of a service.")],
    log: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_PATH",
            help="Whose users teach the simulator and are simulated, such as the folder `simulation` of `recsys data "
            "folds`; without, the histories of A.",
        ),
    ] = None,
    key: Annotated[str | None, typer.Option(envvar="RECSYS_API_KEY", help="API key of the service.")] = None,
    users: Annotated[int, typer.Option(min=2, help="Simulated users, at most.")] = 2000,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions of each.")] = 10,
    places: Annotated[int, typer.Option(min=1, help="Items of a list.")] = 5,
    pages: Annotated[int, typer.Option(min=1, help="Lists of a session, at most.")] = 10,
    primary: Annotated[str, typer.Option(metavar="METRIC", help="What decides.")] = "choices_per_user",
    secondary: Annotated[
        list[str] | None, typer.Option(metavar="METRIC", help="Looked at too, allowing for their number; repeat.")
    ] = None,
    guardrail: Annotated[
        list[str] | None, typer.Option(metavar="METRIC=SHARE", help="May fall by this share at most; repeat.")
    ] = None,
    smallest_lift: Annotated[float, typer.Option(help="The smallest relative lift that would matter.")] = 0.02,
    alpha: Annotated[float, typer.Option(help="Intervals hold with probability 1 - alpha.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random.")] = 0,
    out: Annotated[Path, typer.Option(help="Directory for report.json and report.html.")] = Path("ab"),
    as_json: AsJson = False,
) -> None:
    """Compare two recommenders on simulated users, before either goes live.

    Both arms meet the same users with the same luck. The verdict can also be that no difference is shown, or that it
    would take more users to say.
    """
    from recsys.simulator.experiment.analysis import AnalysisPlan
    from recsys.simulator.sessions.play import PlayConfig
    from training.ab import PAGE, AbConfig, compare

    usual = AnalysisPlan(control="A", treatment="B")
    margins = _margins(guardrail or [])
    # What is usual gives way to what was asked for: a metric has one role.
    asked = {primary, *(secondary or ()), *margins}
    plan = replace(
        usual,
        primary=primary,
        secondary=tuple(secondary or [name for name in usual.secondary if name not in asked]),
        guardrails=margins or {name: share for name, share in usual.guardrails.items() if name not in asked},
        smallest_lift=smallest_lift,
        alpha=alpha,
    )
    played = PlayConfig(size=places, max_steps=pages, sessions_per_user=sessions, seed=seed)
    with results_only_stdout() as stdout:
        result = compare(AbConfig(first=first, second=second, plan=plan, log=log, key=key, users=users, play=played))
        result.save(out)
        if as_json:
            print_document(stdout, result.document())
    if not as_json:
        typer.echo(result.verdict.text)
        for caution in result.verdict.cautions:
            typer.echo(f"- {caution}")
        typer.echo(f"report: {out / PAGE}")


def ab_power(
    baseline: Annotated[float, typer.Option(help="The metric's mean today, such as a rate of .04.")],
    lift: Annotated[float, typer.Option(help="The smallest relative lift to see, such as .02.")],
    deviation: Annotated[
        float | None, typer.Option(help="Standard deviation over users; without, that of a rate: sqrt(p (1 - p)).")
    ] = None,
    correlation: Annotated[
        float, typer.Option(help="Of the metric with what was known before the test, which CUPED takes out.")
    ] = 0.0,
    daily_users: Annotated[float | None, typer.Option(help="New users a day, to say how long it takes.")] = None,
    share: Annotated[
        float | None, typer.Option(help="Of the daily users in the test, both arms together; without, all.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Of the two-sided test.")] = 0.05,
    power: Annotated[float, typer.Option(help="Chance to see such a lift.")] = 0.8,
    users: Annotated[
        int | None, typer.Option(metavar="N", help="In each arm: what can so many show? Instead of how many it takes.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How many users a live test needs, or what those that there are can show, and how long it takes.

    For example: recsys ab-power --baseline 0.04 --lift 0.05 --correlation 0.6 --daily-users 20000
    """
    from recsys.simulator.experiment.power import days_needed, detectable_difference, power_of, users_per_arm

    if not baseline > 0:
        raise ConfigError(f"--baseline must be above 0, got {baseline}")
    if deviation is None and baseline >= 1:
        raise ConfigError(f"--baseline {baseline} is no rate below 1; give its standard deviation with --deviation")
    if deviation is not None and not deviation >= 0:
        raise ConfigError(f"--deviation must be 0 or more, got {deviation}")
    if deviation is None and baseline * (1 + lift) > 1:
        raise ConfigError(f"--lift {lift} would make the rate {baseline} more than 1; give a lower one")
    if share is not None and daily_users is None:
        raise ConfigError("--share is of --daily-users; give both, or neither")
    variance = baseline * (1 - baseline) if deviation is None else deviation**2
    size = users_per_arm(baseline * lift, variance, alpha=alpha, power=power, correlation=correlation)
    document: dict[str, Any] = {"users_per_arm": size}
    smallest = ""
    if users is not None:
        size = users
        least = detectable_difference(users, variance, alpha=alpha, power=power, correlation=correlation) / baseline
        smallest = f" The smallest lift that they show with {power:.0%} is {least:.1%}."
        power = power_of(baseline * lift, users, variance, alpha=alpha, correlation=correlation)
        document = {"users_per_arm": users, "power": power, "detectable_lift": least}
    days = None if daily_users is None else days_needed(size, daily_users, 1.0 if share is None else share)
    if as_json:
        typer.echo(json.dumps({**document, "days": days}, indent=2))
        return
    typer.echo(f"{size:,} users in each of two arms show a lift of {lift:.1%} with {power:.0%} power.{smallest}")
    if days is not None:
        typer.echo(f"That takes {days:,.1f} days.")


def _margins(texts: list[str]) -> dict[str, float]:
    margins: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name in margins:
            raise ConfigError(f"--guardrail: {name} has two shares; give one")
        try:
            margins[name] = float(value)
        except ValueError as error:
            raise ConfigError(
                f"--guardrail: expected METRIC=SHARE such as session_length=0.02, got {text!r}"
            ) from error
    return margins
