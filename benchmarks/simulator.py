"""The claim: simulated users, fitted on one fifth of the users, are like another fifth, and order recommenders that
were fitted on the rest as held-out choices do; 100,000 sessions take less than two minutes.

On MovieLens latest-small and Amazon Scientific, recommenders, simulator and evaluation having no user in common:

    validity      AUC and calibration of held-out choices, lengths of sessions (MovieLens), transitions of categories
    agreement     recommenders from random to fused: held-out NDCG@10 (the last choices of evaluation users), the chance
                  that a simulated user takes something from the first page, choices a simulated session, and what a
                  log of their mixture says of each (SNIPS); Kendall's tau between them, intervals over users
    arms          the table of `recsys simulate` for the same recommenders
    stress        choices a page of users who drift, chase popularity, skim or are adversarial
    robustness    tau between the order of a cell of {temperature} x {position bias} x {satiation} and the order above
    common_luck   variance of the difference of two arms with common random numbers, over that with separate ones
    feedback      rounds of fitting on simulated logs: coverage, Gini, popularity of what is shown
    speed         seconds for 100,000 sessions with a cached recommender, wall and CPU

SASRec is a small one (one layer of 64, sampled softmax): the point is a policy of another kind, not the best one.

    recsys bench simulator --data-root FOLDER [--sets scientific movielens] [--parts validity agreement ...]
                           [--sasrec-epochs 12] [--seed 0] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.data import DataConfig, Sequences, load_dataset
from recsys.data.sequences import Examples
from recsys.errors import DataError
from recsys.evaluation import SasRecConfig
from recsys.evaluation.baselines import ItemKnn, Popularity, SasRec, SkipGram
from recsys.evaluation.baselines.ranking import rank_by_score
from recsys.evaluation.metrics import CaseMetric, accuracy_metrics
from recsys.evaluation.ranker import Ranker, rank_cases
from recsys.progress import console
from recsys.simulator.behaviour.fit import fit_choice_model
from recsys.simulator.behaviour.fitting import FitConfig
from recsys.simulator.behaviour.folds import FOLDS, UserFolds
from recsys.simulator.behaviour.logged_sessions import LoggedSessions
from recsys.simulator.behaviour.model import ChoiceModel
from recsys.simulator.behaviour.stress import KINDS, Kind, Traits
from recsys.simulator.off_policy.diagnostics import Limits, WeightDiagnostics
from recsys.simulator.off_policy.estimators import Rounds, snips
from recsys.simulator.sessions.agreement import Evaluator, agreement, kendall_tau
from recsys.simulator.sessions.arms import CachedArm, Page, Slates
from recsys.simulator.sessions.feedback import feedback_loop
from recsys.simulator.sessions.noise import SLATE, keys, uniform
from recsys.simulator.sessions.play import PlayConfig, Played, play
from recsys.simulator.sessions.summary import summarise
from recsys.simulator.sessions.validity import validity

FOLDERS = {"scientific": "amazon18_scientific", "movielens": "ml_latest_small"}
PARTS = ("validity", "agreement", "speed", "stress", "robustness", "common_luck", "feedback")
_LAST = {"scientific": 2, "movielens": 10}
"""Choices of each evaluation user that recommenders are asked for, the last ones."""
_SESSIONS = {"scientific": 2, "movielens": 10}
"""Simulated sessions of each user and arm."""
_FEW = 400
"""Users of the studies beside the main table."""
_SPEED = 100_000
_ROUNDS = 5
"""Of the loop of feedback, each of so many sessions that a log of some ten thousand choices grows visibly."""
_ROUND_SESSIONS = 50_000
_ROUNDS_PER_USER = 50
"""Of the log that policies are estimated from."""


def main(arguments: list[str]) -> dict[str, Any]:
    """The metrics of the data sets."""
    parser = argparse.ArgumentParser(prog="recsys bench simulator", description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--sets", nargs="+", choices=list(FOLDERS), default=list(FOLDERS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured; all")
    parser.add_argument("--sasrec-epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    return {
        name: _measure(name, options.data_root / FOLDERS[name], options.parts, options.sasrec_epochs, options.seed)
        for name in options.sets
    }


def _measure(name: str, folder: Path, parts: Sequence[str], epochs: int, seed: int) -> dict[str, Any]:
    started = time.monotonic()
    dataset = load_dataset(DataConfig(source="files", path=folder))
    catalog, interactions = dataset.catalog, dataset.interactions
    folds = UserFolds.of(interactions.user_ids)
    sequences = interactions.sequences()
    train, held = sequences.select(folds.recommender), sequences.select(folds.evaluation)
    model = fit_choice_model(catalog, LoggedSessions.of(interactions, folds.simulator), FitConfig(seed=seed))
    fitted = time.monotonic() - started
    rankers = _rankers(train, catalog.num_items, epochs, seed)
    population = Sequences.from_lists([history[: -_LAST[name]] for history in held])
    cases = _cases(held, _LAST[name])
    user_ids = [interactions.user_ids[row] for row in folds.evaluation]
    arms = {arm: CachedArm(ranker=ranker) for arm, ranker in rankers.items()}
    config = PlayConfig(sessions_per_user=_SESSIONS[name], seed=seed)

    few = np.arange(min(_FEW, len(population)))

    def played(model: ChoiceModel, config: PlayConfig, rows: npt.NDArray[np.int64], kind: Kind = "ordinary") -> Played:
        return play(
            model,
            arms,
            population.select(rows),
            config,
            user_ids=[user_ids[row] for row in rows.tolist()],
            item_ids=catalog.item_ids,
            traits=Traits.of([kind] * len(rows)),
        )

    def agree() -> dict[str, Any]:
        base = played(model, config, np.arange(len(population)))
        ndcg = {}
        for arm, ranker in rankers.items():
            lists = rank_cases(arm, ranker, cases, 10, num_items=catalog.num_items, mask_seen=True, batch_size=256)
            ndcg[arm] = accuracy_metrics(lists, cases.targets, (10,))["ndcg@10"]
        # Lists for the histories that sessions begin with.
        asked = Examples(histories=population, targets=np.array([history[-_LAST[name]] for history in held]))
        lists = {
            arm: rank_cases(arm, ranker, asked, 10, num_items=catalog.num_items, mask_seen=True, batch_size=256)
            for arm, ranker in rankers.items()
        }
        evaluators = [
            Evaluator.of_cases("held-out NDCG@10", ndcg, cases.histories.users, seed=seed),
            _simulated("simulated first page", _first_page(base), len(population), seed),
            _simulated("simulated session", base.sessions, len(population), seed),
            off_policy(model, lists, population, catalog.item_ids, seed=seed),
        ]
        arms_found = summarise(base, model, population, train, user_ids=user_ids, item_ids=catalog.item_ids, seed=seed)
        return {
            "cases": len(cases),
            **agreement(evaluators).to_json(),
            "arms": {arm: summary.to_json()["metrics"] for arm, summary in arms_found.items()},
        }

    def feed_back(make: Callable[[], Popularity | SkipGram]) -> list[dict[str, Any]]:
        rounds = feedback_loop(
            model,
            lambda log: make().fit(log, catalog.num_items),
            train,
            population,
            PlayConfig(seed=seed, max_steps=5, sessions_per_user=-(-_ROUND_SESSIONS // len(population))),
            rounds=_ROUNDS,
            item_ids=catalog.item_ids,
        )
        return [one.to_json() for one in rounds]

    once = config.model_copy(update={"sessions_per_user": 1})
    held_sessions = LoggedSessions.of(interactions, folds.evaluation)
    measures: dict[str, Callable[[], Any]] = {
        "validity": lambda: validity(model, held_sessions, seed).to_json(),
        "agreement": agree,
        "speed": lambda: _speed(model, arms["skip_gram"], population, user_ids, catalog.item_ids, seed),
        "stress": lambda: {kind: _ctr(played(model, once, few, kind)) for kind in KINDS},
        "robustness": lambda: _robustness(lambda *changed: played(*changed, few), model, config),
        "common_luck": lambda: _common_luck(lambda changed: played(model, changed, few), config),
        "feedback": lambda: {"popularity": feed_back(Popularity), "skip_gram": feed_back(SkipGram)},
    }
    result: dict[str, Any] = {
        "users": {fold: len(getattr(folds, fold)) for fold in FOLDS},
        "fit_seconds": fitted,
        "parameters": model.parameters.model_dump(mode="json", exclude={"position_bias"}),
    }
    for part in parts:
        result[part] = measures[part]()
        console.print(f"{name}: {part} measured, {time.monotonic() - started:.0f} s", highlight=False)
        print(json.dumps({name: {part: result[part]}}), file=sys.stderr)
    return result


def _rankers(train: Sequences, num_items: int, epochs: int, seed: int) -> dict[str, Ranker]:
    """From random to fused, all fitted on the same log."""
    small = SasRecConfig(
        hidden_size=64, num_layers=1, epochs=epochs, full_softmax_up_to=1, num_negatives=512, seed=seed
    )
    sasrec = SasRec(small).fit(train, num_items)
    parts = (ItemKnn().fit(train, num_items), SkipGram().fit(train, num_items), sasrec)

    def random(histories: Sequences, k: int) -> npt.NDArray[np.int64]:
        rows = [np.random.default_rng([seed, user]).random(num_items) for user in histories.users.tolist()]
        return rank_by_score(np.stack(rows).astype(np.float32), k, seen=histories)

    def fused(histories: Sequences, k: int) -> npt.NDArray[np.int64]:
        """Reciprocal ranks (Cormack, Clarke and Buettcher, SIGIR 2009) of three lists."""
        scores = np.full((len(histories), num_items), 0.0, dtype=np.float32)
        for part in parts:
            found = part(histories, k)
            row, place = np.nonzero(found >= 0)
            scores[row, found[row, place]] += 1 / (60 + place)
        return rank_by_score(np.where(scores > 0, scores, -np.inf).astype(np.float32), k, seen=histories)

    return {
        "random": random,
        "popularity": Popularity().fit(train, num_items),
        "item_knn": parts[0],
        "skip_gram": parts[1],
        "sasrec": sasrec,
        "fused": fused,
    }


def _cases(held: Sequences, last: int) -> Examples:
    """The last choices of each user, each after everything before it; users are rows of `held`."""
    rows = [(row, end) for row in range(len(held)) for end in range(-last, 0)]
    histories = Sequences.from_lists([held[row][:end] for row, end in rows], users=[row for row, _ in rows])
    return Examples(histories=histories, targets=np.array([held[row][end] for row, end in rows]))


def _first_page(played: Played) -> pl.DataFrame:
    """A row for each session, like `Played.sessions`: what was expected of its first page."""
    pages = played.impressions.filter(pl.col("step") == 0)
    keys = ["arm", "user_id", "session"]
    expected = pages.group_by(keys).agg(pl.col("chance").sum().alias("first"))
    joined = played.sessions.join(expected, on=keys, how="left", maintain_order="left")
    return joined.with_columns(pl.col("first").fill_null(0.0).alias("expected"))


def _simulated(name: str, sessions: pl.DataFrame, num_users: int, seed: int) -> Evaluator:
    """Sessions of an arm are sorted by user, and the rows of users are those of the held-out cases."""
    per_user = len(sessions) // num_users // sessions["arm"].n_unique()
    users = np.repeat(np.arange(num_users), per_user)
    metrics = {
        str(key[0]): CaseMetric.mean_of(part["expected"].to_numpy())
        for key, part in sessions.partition_by("arm", as_dict=True).items()
    }
    return Evaluator.of_cases(name, metrics, users, seed=seed)


def off_policy(
    model: ChoiceModel,
    lists: dict[str, npt.NDArray[np.int64]],
    population: Sequences,
    item_ids: list[str],
    *,
    rounds_per_user: int = _ROUNDS_PER_USER,
    seed: int,
) -> Evaluator:
    """SNIPS of each policy on one log: pages of one item, which a policy shows with a chance of 1 / rank in its list.

    The log is of the mixture: one of the policies is drawn, then its item, so that no weight is above their number.

    Args:
        model: how users choose.
        lists: of each policy int64 [users, 10], best first, -1 = no more items.
        population: histories of the users.
        item_ids: of the catalogue, by dense index.
        rounds_per_user: pages that each user is shown.
        seed: of the log and of resampling users.
    """
    shown = np.stack(list(lists.values()), axis=1)
    shares = np.where(shown >= 0, 1 / np.arange(1, shown.shape[2] + 1), 0.0)
    shares /= shares.sum(axis=2, keepdims=True)

    def chances(users: npt.NDArray[np.int64], items: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """float64 [n, policies]: how likely each shows the item."""
        return np.asarray((shares[users] * (shown[users] == items[:, None, None])).sum(axis=2))

    def mixture(page: Page) -> Slates:
        luck = uniform(keys(page.seed, page.users, page.sessions, page.step, SLATE))
        below = np.cumsum(shares[page.users].reshape(len(page.users), -1), axis=1)
        drawn = (below < luck[:, None] * below[:, -1:]).sum(axis=1)
        items = shown[page.users].reshape(len(page.users), -1)[np.arange(len(drawn)), drawn]
        return Slates(items=items[:, None], propensities=chances(page.users, items).mean(axis=1)[:, None])

    users = np.repeat(np.arange(len(population)), rounds_per_user)
    config = PlayConfig(size=1, max_steps=1, sessions_per_user=rounds_per_user, seed=seed)
    user_ids = [str(user) for user in range(len(population))]
    log = play(model, {"": mixture}, population, config, user_ids=user_ids, item_ids=item_ids).impressions
    index = {item_id: item for item, item_id in enumerate(item_ids)}
    items = log["item_id"].replace_strict(index, return_dtype=pl.Int64).to_numpy()
    weights = chances(users, items) / log["propensity"].to_numpy()[:, None]
    nothing = np.zeros(len(log))
    metrics: dict[str, CaseMetric] = {}
    for policy, of_policy in zip(lists, weights.T, strict=True):
        if (problem := WeightDiagnostics.of(of_policy).problem(Limits())) is not None:
            raise DataError(f"off-policy estimate of {policy}: {problem}")
        rounds = Rounds(rewards=log["reward"].to_numpy(), weights=of_policy, predicted=nothing, values=nothing)
        (metrics[policy],) = snips(rounds)
    return Evaluator.of_cases("off-policy SNIPS", metrics, users, seed=seed)


def _ctr(played: Played) -> dict[str, float]:
    found = played.sessions.group_by("arm", maintain_order=True).agg(pl.col("expected").sum() / pl.col("steps").sum())
    return {str(arm): float(ctr) for arm, ctr in found.iter_rows()}


def _robustness(
    played: Callable[[ChoiceModel, PlayConfig], Played], model: ChoiceModel, config: PlayConfig
) -> dict[str, Any]:
    """tau of each cell's order with that of the model as it is, and the share of cells whose best arm is the same."""
    cells, same_best = {}, 0
    short = config.model_copy(update={"sessions_per_user": 1, "max_steps": 3})
    order = np.array(list(_ctr(played(model, short)).values()))
    bias = model.parameters.position_bias
    for temperature, biased, satiation in product((0.7, 1.0, 1.3), (True, False), (0.0, 0.3)):
        changed = model.having(temperature=temperature, position_bias=bias if biased else (0.0,), satiation=satiation)
        values = np.array(list(_ctr(played(changed, short)).values()))
        cell = f"temperature {temperature:g}, position bias {'on' if biased else 'off'}, satiation {satiation:g}"
        cells[cell] = float(kendall_tau(order[None], values[None])[0])
        same_best += int(values.argmax() == order.argmax())
    return {"tau": cells, "same_best": same_best / len(cells)}


def _common_luck(played: Callable[[PlayConfig], Played], config: PlayConfig) -> float:
    variances = []
    for same_luck in (True, False):
        sessions = played(config.model_copy(update={"same_luck": same_luck})).sessions
        rewards = sessions.pivot("arm", index=["user_id", "session"], values="reward")
        variances.append(float((rewards["fused"] - rewards["skip_gram"]).to_numpy().var()))
    return variances[0] / variances[1]


def _speed(
    model: ChoiceModel, arm: CachedArm, population: Sequences, user_ids: list[str], item_ids: list[str], seed: int
) -> dict[str, Any]:
    config = PlayConfig(sessions_per_user=-(-_SPEED // len(population)), seed=seed)
    wall, cpu = time.monotonic(), time.process_time()
    played = play(model, {"skip_gram": arm}, population, config, user_ids=user_ids, item_ids=item_ids)
    return {
        "sessions": len(played.sessions),
        "pages": int(played.sessions["steps"].sum()),
        "impressions": len(played.impressions),
        "wall_seconds": time.monotonic() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }
