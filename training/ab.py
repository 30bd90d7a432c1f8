"""An A/B test of two recommenders on simulated users, before either goes live.

Three groups of users without anybody in common (`recsys.simulator.behaviour.folds`): the recommenders learned from the
first, how users choose is fitted on the second, and the third are simulated. Both arms meet the same users with the
same luck, so that their difference is that of the arms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.bundle import Bundle
from recsys.data import Catalog, Interactions, Sequences
from recsys.data.sequences import IntArray
from recsys.files import write_json
from recsys.progress import progress_bar
from recsys.simulator.behaviour.fit import fit_choice_model
from recsys.simulator.behaviour.fitting import FitConfig
from recsys.simulator.behaviour.folds import UserFolds
from recsys.simulator.behaviour.logged_sessions import LoggedSessions
from recsys.simulator.behaviour.model import ChoiceModel
from recsys.simulator.experiment.analysis import AnalysisPlan, ExperimentReport, analyse
from recsys.simulator.experiment.assignment import bucket_of
from recsys.simulator.experiment.outcomes import user_outcomes
from recsys.simulator.experiment.page import report_document, save_page
from recsys.simulator.experiment.verdict import Verdict, verdict
from recsys.simulator.sessions.arms import CachedArm
from recsys.simulator.sessions.play import PlayConfig, play
from training.arms import bundle_lists, find_bundle, is_service, names_of, service_lists
from training.simulate import other_log, own_log

REPORT, PAGE = "report.json", "report.html"
ROBUST = 0.8
"""The share of simulators in which an effect must keep its sign, or it is not reported as one."""
_TEMPERATURES = (0.7, 1.0, 1.3)
_SATIATIONS = (0.0, 0.3)
_HISTORY, _TASTE = "history", "taste"


@dataclass(frozen=True, kw_only=True)
class AbConfig:
    """What is compared, on how many users, and what decides."""

    first: str
    """The control: a bundle, a run, or the name of a run."""
    second: str
    """The treatment: the same, or the URL of a service with the same catalogue."""
    plan: AnalysisPlan
    """The names of its arms are replaced."""
    log: str | None = None
    """The data set whose users teach the simulator and are simulated; None: the histories of the first bundle."""
    key: str | None = None
    """API key of a service."""
    users: int = 1000
    """Simulated ones, at most."""
    play: PlayConfig = field(default_factory=lambda: PlayConfig(size=5, max_steps=10, sessions_per_user=4))


@dataclass(frozen=True, kw_only=True)
class AbResult:
    """What came of it."""

    report: ExperimentReport
    verdict: Verdict
    facts: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """JSON-able; the same bundles, data and seed give the same bytes."""
        return report_document(self.report, self.verdict, self.facts)

    def save(self, directory: Path) -> None:
        """Write `report.json` and `report.html`."""
        write_json(directory / REPORT, self.document())
        save_page(self.report, self.verdict, self.facts, directory / PAGE)


def compare(config: AbConfig) -> AbResult:
    """Run the test.

    Raises:
        ConfigError: an arm or a data set is not there, or a number is impossible.
        DataError: the arms have different catalogues, or there are too few users.
        ArtifactError: a bundle is damaged.
        RecsysError: a service does not answer.
    """
    second = None if is_service(config.second) else find_bundle(config.second)
    control_bundle = Bundle.load(find_bundle(config.first))
    catalog, own = control_bundle.catalog, dict(control_bundle.histories())
    log = own_log(control_bundle, own) if config.log is None else other_log(control_bundle, config.log)
    folds = UserFolds.of(log.user_ids)
    model = fit_choice_model(catalog, LoggedSessions.of(log, folds.simulator), FitConfig(seed=config.play.seed))
    crowd = _crowd(log, folds.evaluation, config.users, config.play.seed)
    k = config.play.size * config.play.max_steps
    learned = set(own)
    # A service first: it may not answer.
    if second is None:
        of_second = service_lists(config.second, config.key, catalog, crowd.histories, k)
    else:
        treatment_bundle = Bundle.load(second)
        learned |= {user for user, _ in treatment_bundle.histories()}
        of_second = bundle_lists(treatment_bundle, catalog, crowd.histories, k)
    arms = (bundle_lists(control_bundle, catalog, crowd.histories, k), of_second)
    control, treatment = names_of(arms)
    plan = replace(
        config.plan,
        control=control,
        treatment=treatment,
        paired=True,
        covariate=_HISTORY + "_length",
        segments=(_HISTORY, _TASTE),
    )
    lists = {control: arms[0].lists, treatment: arms[1].lists}
    item_counts = np.bincount(log.sequences().items, minlength=catalog.num_items)
    outcomes = _played(model, lists, crowd, catalog, config.play).join(
        crowd.facts(item_counts), on="user_id", how="left", maintain_order="left"
    )
    report = analyse(outcomes, plan)
    kept, simulators = _robustness(model, lists, crowd, catalog, config.play, plan, report)
    facts = {
        "control": {"name": arms[0].name, "version": arms[0].version},
        "treatment": {"name": arms[1].name, "version": arms[1].version},
        "seed": config.play.seed,
        "simulated_users": len(crowd.user_ids),
        "sessions_per_user": config.play.sessions_per_user,
        "places": config.play.size,
        "pages": config.play.max_steps,
        "log": config.log or f"histories of {arms[0].name}",
        "simulator_users": len(folds.simulator),
        "simulator_users_that_an_arm_learned_from": sum(log.user_ids[row] in learned for row in folds.simulator),
        "simulated_users_that_an_arm_learned_from": sum(user in learned for user in crowd.user_ids),
        "simulator": model.parameters.model_dump(mode="json"),
        "simulators_with_this_sign": f"{kept} of {simulators}",
    }
    return AbResult(report=report, verdict=careful(verdict(report), facts, kept / simulators), facts=facts)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Crowd:
    """Who is simulated, in the order in which they arrive."""

    user_ids: list[str]
    histories: Sequences

    def facts(self, item_counts: IntArray) -> pl.DataFrame:
        """`user_id`, `arrival`, the covariate and the segments; all known before the first list."""
        lengths = self.histories.lengths
        owner = np.repeat(np.arange(len(lengths)), lengths)
        popularity = np.bincount(owner, np.log1p(item_counts[self.histories.items]), len(lengths))
        return pl.DataFrame(
            {
                "user_id": self.user_ids,
                "arrival": np.arange(len(lengths)),
                f"{_HISTORY}_length": np.log(lengths),
                _HISTORY: _thirds(lengths.astype(np.float64), ("short", "middling", "long")),
                _TASTE: _thirds(popularity / lengths, ("niche", "mixed", "mainstream")),
            }
        )


def _thirds(values: np.ndarray[Any, np.dtype[np.float64]], names: tuple[str, str, str]) -> list[str]:
    """A third of the users each, as far as ties let them."""
    return [names[part] for part in np.searchsorted(np.quantile(values, [1 / 3, 2 / 3]), values).tolist()]


def _crowd(log: Interactions, rows: IntArray, most: int, seed: int) -> _Crowd:
    """At most so many users, by a hash of their id under the seed."""
    order = sorted(rows.tolist(), key=lambda row: (bucket_of(f"arrival {seed}", log.user_ids[row]), row))[:most]
    sequences = log.sequences().select(np.array(order))
    histories = Sequences(users=np.arange(len(order)), offsets=sequences.offsets, items=sequences.items)
    return _Crowd(user_ids=[log.user_ids[row] for row in order], histories=histories)


def _played(
    model: ChoiceModel, lists: Mapping[str, IntArray], crowd: _Crowd, catalog: Catalog, config: PlayConfig
) -> pl.DataFrame:
    """Numbers of each user in each arm."""
    arms = {name: CachedArm(ranker=_repeating(shown)) for name, shown in lists.items()}
    played = play(model, arms, crowd.histories, config, user_ids=crowd.user_ids, item_ids=catalog.item_ids)
    return user_outcomes(played.impressions)


def _repeating(lists: IntArray) -> Any:
    """A ranker that repeats finished lists, by the users' numbers."""
    return lambda histories, k: lists[histories.users, :k]


def _robustness(
    model: ChoiceModel,
    lists: Mapping[str, IntArray],
    crowd: _Crowd,
    catalog: Catalog,
    config: PlayConfig,
    plan: AnalysisPlan,
    report: ExperimentReport,
) -> tuple[int, int]:
    """In how many of some differing simulators the primary difference has the report's sign, and how many there are."""
    sign = np.sign(report.primary.effect.difference.value)
    worlds = [
        model.having(temperature=temperature, position_bias=bias, satiation=satiation)
        for temperature in _TEMPERATURES
        for bias in (model.parameters.position_bias, (0.0,))
        for satiation in _SATIATIONS
    ]
    short = config.model_copy(update={"sessions_per_user": 1})
    alone = replace(plan, secondary=(), guardrails={}, covariate=None, segments=(), looks=1)
    kept = 0
    with progress_bar("Other simulators", len(worlds)) as advance:
        for world in worlds:
            outcomes = _played(world, lists, crowd, catalog, short)
            found = analyse(outcomes, alone)
            kept += int(np.sign(found.primary.effect.difference.value) == sign)
            advance(1, "")
    return kept, len(worlds)


def careful(answer: Verdict, facts: Mapping[str, Any], kept: float) -> Verdict:
    """The verdict with what simulated users cannot say."""
    remarks = [answer.text]
    decision = answer.decision
    if decision in ("better", "better_but_unsafe", "worse"):
        held = f"The sign holds in {facts['simulators_with_this_sign']} simulators with other settings"
        if kept < ROBUST:
            decision = "inconclusive"
            remarks = [f"Inconclusive: it depends on the simulator. As fitted, {answer.text} {held}: too few."]
        else:
            remarks.append(f"{held}.")
    if known := facts["simulated_users_that_an_arm_learned_from"]:
        remarks.append(
            f"An arm learned from {known:,} of the {facts['simulated_users']:,} simulated users, which may flatter "
            "the one that remembers more: train on a folder of `recsys data folds`, and give the other as --log."
        )
    remarks.append("Users are simulated; a live test has the last word.")
    return Verdict(decision=decision, text=" ".join(remarks))
