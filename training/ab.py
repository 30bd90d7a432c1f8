"""An A/B test of two recommenders on simulated users, before either goes live.

Three groups of users without anybody in common (`recsys.simulator.behaviour.folds`): the recommenders learned from the
first, how users choose is fitted on the second, and the third are simulated. Both arms meet the same users with the
same luck, so that their difference is that of the arms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from recsys.simulator.experiment.interleaving import Preference, probabilistic, team_draft
from recsys.simulator.experiment.outcomes import user_outcomes
from recsys.simulator.experiment.page import Evidence, OtherSimulator, report_document, save_page
from recsys.simulator.experiment.verdict import Verdict, verdict
from recsys.simulator.sessions.arms import CachedArm, finished_lists
from recsys.simulator.sessions.interleaved import simulated_preference
from recsys.simulator.sessions.play import PlayConfig, play
from recsys.simulator.sessions.validity import validity
from training.arms import ArmLists, bundle_lists, find_arm, is_service, names_of, service_lists
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
    users: int = 2000
    """Simulated ones, at most."""
    play: PlayConfig = field(default_factory=lambda: PlayConfig(size=5, max_steps=10, sessions_per_user=10))


@dataclass(frozen=True, kw_only=True)
class AbResult:
    """What came of it."""

    report: ExperimentReport
    verdict: Verdict
    evidence: Evidence
    facts: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """JSON-able; the same bundles, data and seed give the same bytes."""
        return report_document(self.report, self.verdict, self.evidence, self.facts)

    def save(self, directory: Path) -> None:
        """Write `report.json` and `report.html`."""
        write_json(directory / REPORT, self.document())
        save_page(self.report, self.verdict, self.evidence, _in_plain_words(self.facts), directory / PAGE)


def compare(config: AbConfig) -> AbResult:
    """Run the test.

    Raises:
        ConfigError: an arm or a data set is not there, or a number is impossible.
        DataError: the arms have different catalogues, one has nothing to show, or there are too few users.
        ArtifactError: a bundle is damaged.
        RecsysError: a service does not answer.
    """
    second = None if is_service(config.second) else find_arm(config.second)
    control_bundle = Bundle.load(find_arm(config.first))
    treatment_bundle = None if second is None else Bundle.load(second)
    catalog, own = control_bundle.catalog, dict(control_bundle.histories())
    log = own_log(control_bundle, own) if config.log is None else other_log(control_bundle, config.log)
    folds = UserFolds.of(log.user_ids)
    crowd = _crowd(log, folds.evaluation, config.users, config.play.seed)
    k = config.play.size * config.play.max_steps
    # The lists first: an arm that has none is known before the simulator is fitted.
    if treatment_bundle is None:
        of_second = service_lists(config.second, config.key, catalog, crowd.histories, k)
    else:
        of_second = bundle_lists(treatment_bundle, catalog, crowd.histories, k)
    arms = (bundle_lists(control_bundle, catalog, crowd.histories, k), of_second)
    control, treatment = names_of(arms)
    lists = {control: arms[0].lists, treatment: arms[1].lists}
    plan = replace(
        config.plan,
        control=control,
        treatment=treatment,
        paired=True,
        covariate=_HISTORY + "_length",
        segments=(_HISTORY, _TASTE),
    )

    model = fit_choice_model(catalog, LoggedSessions.of(log, folds.simulator), FitConfig(seed=config.play.seed))
    quality = validity(model, LoggedSessions.of(log, folds.evaluation), config.play.seed)
    item_counts = np.bincount(log.sequences().items, minlength=catalog.num_items)
    outcomes = _played(model, lists, crowd, catalog, config.play).join(
        crowd.facts(item_counts), on="user_id", how="left", maintain_order="left"
    )
    report = analyse(outcomes, plan)
    evidence = Evidence(
        simulators=tuple(_other_simulators(model, lists, crowd, catalog, config.play, plan)),
        interleaved=_interleaved(model, lists, crowd, catalog, config.play, plan),
    )
    learned = set(own) | {user for user, _ in (treatment_bundle.histories() if treatment_bundle else ())}
    facts = {
        **{role: _of_arm(arm) for role, arm in zip(("control", "treatment"), arms, strict=True)},
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
        "simulator_validity": quality.to_json(),
    }
    return AbResult(
        report=report, verdict=careful(verdict(report), report, evidence, facts), evidence=evidence, facts=facts
    )


def _of_arm(arm: ArmLists) -> dict[str, Any]:
    return {
        "name": arm.name,
        "version": arm.version,
        "degraded_lists": arm.num_degraded,
        "unknown_items": arm.num_unknown,
    }


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
    arms = {name: CachedArm(ranker=finished_lists(shown)) for name, shown in lists.items()}
    played = play(model, arms, crowd.histories, config, user_ids=crowd.user_ids, item_ids=catalog.item_ids)
    return user_outcomes(played.impressions, played.sessions)


def _other_simulators(
    model: ChoiceModel,
    lists: Mapping[str, IntArray],
    crowd: _Crowd,
    catalog: Catalog,
    config: PlayConfig,
    plan: AnalysisPlan,
) -> Iterator[OtherSimulator]:
    """The primary effect where users are other than they were fitted."""
    short = config.model_copy(update={"sessions_per_user": 1})
    alone = replace(plan, secondary=(), guardrails={}, covariate=None, segments=(), looks=1)
    fitted = model.parameters.position_bias
    with progress_bar("Other simulators", len(_TEMPERATURES) * 2 * len(_SATIATIONS)) as advance:
        for temperature in _TEMPERATURES:
            for bias in (fitted, (0.0,)):
                for satiation in _SATIATIONS:
                    world = model.having(temperature=temperature, position_bias=bias, satiation=satiation)
                    found = analyse(_played(world, lists, crowd, catalog, short), alone)
                    yield OtherSimulator(
                        temperature=temperature,
                        position_bias=bias is fitted,
                        satiation=satiation,
                        effect=found.primary.effect,
                    )
                    advance(1, "")


def _interleaved(
    model: ChoiceModel,
    lists: Mapping[str, IntArray],
    crowd: _Crowd,
    catalog: Catalog,
    config: PlayConfig,
    plan: AnalysisPlan,
) -> dict[str, Preference]:
    """By the way of merging both arms' lists, whose items users take."""
    return {
        name: simulated_preference(
            merge,
            lists[plan.treatment],
            lists[plan.control],
            model,
            crowd.histories,
            config,
            user_ids=crowd.user_ids,
            item_ids=catalog.item_ids,
            alpha=plan.alpha,
        )
        for name, merge in (("team draft", team_draft), ("probabilistic", probabilistic))
    }


def careful(answer: Verdict, report: ExperimentReport, evidence: Evidence, facts: Mapping[str, Any]) -> Verdict:
    """The verdict with what simulated users cannot say."""
    decision, text = answer.decision, answer.text
    if decision in ("better", "better_but_unsafe", "worse"):
        kept, count = evidence.same_sign(report), len(evidence.simulators)
        held = f"The sign holds in {kept} of {count} simulators whose users are set otherwise"
        if kept < ROBUST * count:
            decision, text = (
                "inconclusive",
                f"Inconclusive: it depends on the simulator. {held}: too few. As fitted: {text}",
            )
        else:
            text = f"{text} {held}."
    cautions = []
    versions = [facts[role]["version"] for role in ("control", "treatment")]
    if versions[0] is not None and versions[0] == versions[1]:
        cautions.append("Both arms are the same model: a test of an arm against itself, which should show nothing.")
    sign = np.sign(report.primary.effect.difference.value)
    if against := [
        name
        for name, found in evidence.interleaved.items()
        if found.p_value < report.plan.alpha and np.sign(found.wins - found.losses) == -sign
    ]:
        cautions.append(
            f"In lists merged of both arms ({', '.join(against)}) users prefer the other arm: find out why."
        )
    for role in ("control", "treatment"):
        arm = facts[role]
        if arm["degraded_lists"]:
            cautions.append(
                f"{arm['name']} says that {arm['degraded_lists']:,} of its {facts['simulated_users']:,} lists were "
                "made in poor health: look at its log, and test again."
            )
        if arm["unknown_items"]:
            cautions.append(
                f"{arm['name']} listed {arm['unknown_items']:,} items that the catalogue of {facts['control']['name']} "
                "does not have; they were left out."
            )
    if failures := facts["simulator_validity"]["failures"]:
        cautions.append(f"Simulated users are not yet like real ones: {'; '.join(failures)}.")
    if known := facts["simulated_users_that_an_arm_learned_from"]:
        cautions.append(
            f"An arm learned from {known:,} of the {facts['simulated_users']:,} simulated users, which may flatter "
            "the one that remembers more: train on a folder of `recsys data folds`, and give the other as --log."
        )
    cautions.append("Users are simulated; a live test has the last word.")
    return Verdict(decision=decision, text=text, cautions=tuple(cautions))


def _in_plain_words(facts: Mapping[str, Any]) -> dict[str, str]:
    """What was done, for a page: a title and a sentence each."""
    quality, simulator = facts["simulator_validity"], facts["simulator"]
    auc, failures = quality["auc"], quality["failures"]
    arms = {
        role.capitalize(): f"{facts[role]['name']}"
        + (f", model version {facts[role]['version']}" if facts[role]["version"] else "")
        for role in ("control", "treatment")
    }
    return {
        **arms,
        "Simulated": f"{facts['simulated_users']:,} users with {facts['sessions_per_user']} sessions each, of at most "
        f"{facts['pages']} lists of {facts['places']} items; {facts['simulated_users_that_an_arm_learned_from']:,} of "
        "them are users whom an arm learned from",
        "Users from": f"{facts['log']}",
        "How users choose": f"fitted on {facts['simulator_users']:,} other users; of two items, one of which a user "
        f"whom it does not know took, it favours the right one {auc['value']:.1%} of the time "
        f"({auc['low']:.1%} to {auc['high']:.1%}, {quality['num_users']:,} users); "
        f"calibration error {quality['calibration']['ece']:.3f}; "
        f"{'not met: ' + '; '.join(failures) if failures else 'meets what a simulator must meet here'}",
        "Fitted or set": "; ".join(f"{name.replace('_', ' ')}: {how}" for name, how in simulator["origin"].items()),
        "Chance": f"seed {facts['seed']}; both arms meet the same users with the same luck, and the same bundles, "
        "data and seed give the same numbers",
    }
