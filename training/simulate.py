"""Simulated users meet a finished run's bundle: the simulator is fitted or loaded, sessions are played, arms compared.

Users are divided by a hash of their ids (`UserFolds`): the simulator is fitted on one fifth of them and plays another.
A run that was trained on all users has seen both; the report then says `disjoint: false`. Train on
`recsys data folds`' folder `recommender` to keep them apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field
from rich.console import Console
from rich.table import Table

from recsys.bundle import Bundle
from recsys.config import StrictConfig
from recsys.data import Interactions, Sequences, load_dataset, resolve
from recsys.data.sequences import IntArray
from recsys.errors import DataError
from recsys.evaluation.baselines import Popularity
from recsys.evaluation.ranker import Ranker
from recsys.files import atomic_directory, sha256_json, write_json
from recsys.generator import Constraints
from recsys.progress import console
from recsys.simulator.behaviour.fit import fit_choice_model
from recsys.simulator.behaviour.fitting import FitConfig
from recsys.simulator.behaviour.folds import UserFolds
from recsys.simulator.behaviour.logged_sessions import LoggedSessions
from recsys.simulator.behaviour.model import ChoiceModel
from recsys.simulator.behaviour.stress import Kind, Traits
from recsys.simulator.sessions.arms import Arm, CachedArm
from recsys.simulator.sessions.play import PlayConfig, play
from recsys.simulator.sessions.summary import summarise
from recsys.simulator.sessions.validity import validity
from training.layout import BUNDLE, CHOICE_MODEL, SIMULATE, SIMULATION_REPORT
from training.service_arm import ServiceRanker


class SimulateConfig(StrictConfig):
    """What `recsys simulate` plays."""

    play: PlayConfig = PlayConfig(max_steps=5)
    """Sessions."""
    fit: FitConfig = FitConfig()
    """Of the choice model."""
    users: int | None = Field(default=None, ge=2)
    """Users who are simulated at most, drawn at random; all of the fold when None."""
    kind: Kind = "ordinary"
    """Of users; others than `ordinary` are made up, for stress tests."""


def simulate_run(
    run_dir: Path, config: SimulateConfig, *, log: str | None = None, url: str | None = None, key: str | None = None
) -> dict[str, Any]:
    """Play the run's recommender, popularity and, with `url`, a running service; write what happened below the run.

    Args:
        run_dir: of a finished run.
        config: settings.
        log: a data set (name, folder or YAML) whose users are simulated, of the same catalogue; the run's own when
            None.
        url: of a service that is one more arm, `service`.
        key: API key of the service.

    Returns:
        The report, which is also in `simulate/report.json`, beside `impressions.parquet` and `sessions.parquet`.

    Raises:
        ArtifactError: the bundle is missing or damaged.
        DataError: there are too few users, or the log is of other items.
        RecsysError: the service does not answer.
    """
    bundle = Bundle.load(run_dir / BUNDLE)
    own = dict(bundle.histories())
    interactions = own_log(bundle, own) if log is None else other_log(bundle, log)
    folds = UserFolds.of(interactions.user_ids)
    tested = np.concatenate([folds.simulator, folds.evaluation])
    known = sum(interactions.user_ids[row] in own for row in tested.tolist())
    if known:
        console.print(
            f"[yellow]warning:[/] the run was trained on {known} of the {len(tested)} users who fit the simulator or "
            "are simulated; train on the folder `recommender` of `recsys data folds` to keep them apart",
            highlight=False,
        )
    model, quality = _model(run_dir / SIMULATE / CHOICE_MODEL, bundle, interactions, folds, config.fit)

    rows = folds.evaluation
    if config.users is not None and config.users < len(rows):
        rows = np.sort(np.random.default_rng(config.play.seed).choice(rows, config.users, replace=False))
    sequences = interactions.sequences()
    whole = sequences.select(rows)
    population = Sequences.from_lists([history[:-1] for history in whole], users=rows.tolist())
    user_ids = [interactions.user_ids[row] for row in rows.tolist()]
    counted = Sequences.from_lists([bundle.catalog.index_of(item_ids) for item_ids in own.values()])
    arms: dict[str, Arm] = {
        "popularity": CachedArm(ranker=Popularity().fit(counted, bundle.catalog.num_items)),
        "bundle": CachedArm(ranker=bundle_ranker(bundle)),
    }
    if url is not None:
        arms["service"] = CachedArm(ranker=ServiceRanker(url, bundle.catalog.item_ids, key))
    traits = Traits.of([config.kind] * len(rows))
    item_ids = bundle.catalog.item_ids
    played = play(model, arms, population, config.play, user_ids=user_ids, item_ids=item_ids, traits=traits)
    summaries = summarise(
        played, model, population, counted, user_ids=user_ids, item_ids=item_ids, seed=config.play.seed, traits=traits
    )
    report = {
        "model_version": bundle.manifest.model_version,
        "disjoint": known == 0,
        "users": {"simulator": len(folds.simulator), "simulated": len(rows), "seen_in_training": known},
        "settings": config.model_dump(mode="json"),
        "parameters": model.parameters.model_dump(mode="json"),
        "validity": quality,
        "arms": {arm: summary.to_json() for arm, summary in summaries.items()},
    }
    with atomic_directory(run_dir / SIMULATE / "sessions") as directory:
        played.impressions.write_parquet(directory / "impressions.parquet")
        played.sessions.write_parquet(directory / "sessions.parquet")
    write_json(run_dir / SIMULATE / SIMULATION_REPORT, report)
    return report


def bundle_ranker(bundle: Bundle) -> Ranker:
    """What the bundle serves by default, unseen items only: the fusion where it has one, else the generator."""

    def rank(histories: Sequences, k: int) -> IntArray:
        constraints = Constraints(deny=list(histories))
        if bundle.fused is not None:
            return bundle.fused.recommend(histories, k, constraints=constraints).items
        beams = max(k, bundle.recommender.config.beams)
        return bundle.recommender.recommend(histories, k, constraints=constraints, beams=beams).items

    return rank


def print_simulation(report: dict[str, Any]) -> None:
    """Print the table of arms and what to think of it on stdout."""
    table = Table("arm", "choices a session", "minus the first arm", "choices a page", "pages", "regret", "coverage")
    for arm, found in report["arms"].items():
        metrics, minus = found["metrics"], found["minus_first"]
        cells = [_shown(metrics[name]) for name in ("reward", "ctr", "steps", "regret", "coverage@10")]
        table.add_row(arm, cells[0], _shown(minus["reward"]) if minus else "", *cells[1:])
    stdout = Console()
    stdout.print(table)
    quality = report["validity"]
    stdout.print(
        f"simulator on {quality['num_users']} users it has not seen: AUC {quality['auc']['value']:.3f}, "
        f"calibration error {quality['calibration']['ece']:.3f}",
        highlight=False,
        soft_wrap=True,
    )
    for failure in quality["failures"]:
        stdout.print(f"not met: {failure}", highlight=False, soft_wrap=True)
    if not report["disjoint"]:
        stdout.print("the run was trained on users who are simulated: read differences with care", highlight=False)


def _shown(interval: dict[str, float]) -> str:
    return f"{interval['value']:.4f} ({interval['low']:.4f} – {interval['high']:.4f})"


def _model(
    path: Path, bundle: Bundle, interactions: Interactions, folds: UserFolds, config: FitConfig
) -> tuple[ChoiceModel, dict[str, Any]]:
    """The choice model of these users, and its `validity`; the one at `path` if it was made of the same."""
    made_of = sha256_json(
        {
            "config": config.model_dump(mode="json"),
            "items": bundle.catalog.frame.select("item_id", "title", "categories").to_dict(as_series=False),
            "users": interactions.user_ids,
            "log": interactions.frame.select("user", "item", "timestamp").to_dict(as_series=False),
        }
    )
    if path.is_dir():
        model, report = ChoiceModel.load(path)
        if report.get("made_of") == made_of:
            return model, report["validity"]
    model = fit_choice_model(bundle.catalog, LoggedSessions.of(interactions, folds.simulator), config)
    held = LoggedSessions.of(interactions, folds.evaluation)
    quality = validity(model, held, config.seed).to_json()
    model.save(path, {"made_of": made_of, "validity": quality})
    return ChoiceModel.load(path)[0], quality


def own_log(bundle: Bundle, histories: dict[str, list[str]]) -> Interactions:
    """The run's own users, whose order is known and whose times are not."""
    users = np.repeat(np.arange(len(histories)), [len(items) for items in histories.values()])
    item_ids = [item_id for items in histories.values() for item_id in items]
    return _interactions(users, bundle.catalog.index_of(item_ids), list(histories), bundle.catalog.num_items, None)


def other_log(bundle: Bundle, name_or_path: str) -> Interactions:
    """Another log of the bundle's items; what it has of other items is left out."""
    dataset = load_dataset(resolve(name_or_path))
    frame, log = dataset.interactions.frame, dataset.interactions
    item_ids = dataset.catalog.frame["item_id"].gather(frame["item"]).to_list()
    items = bundle.catalog.index_of(item_ids)
    kept = items >= 0
    if not kept.any():
        raise DataError(f"--log {name_or_path}: none of its {len(items)} interactions is with an item of the run")
    if not kept.all():
        left_out = int((~kept).sum())
        console.print(f"--log: {left_out} interactions with items that the run does not know are left out")
    users, user_rows = np.unique(frame["user"].to_numpy()[kept], return_inverse=True)
    times = frame["timestamp"].to_numpy()[kept] if log.has_timestamps else None
    user_ids = [log.user_ids[user] for user in users.tolist()]
    return _interactions(user_rows, items[kept], user_ids, bundle.catalog.num_items, times)


def _interactions(
    users: IntArray, items: IntArray, user_ids: list[str], num_items: int, times: IntArray | None
) -> Interactions:
    first = np.searchsorted(users, users, side="left")
    frame = pl.DataFrame(
        {
            "user": users.astype(np.int64),
            "item": items,
            "event_type": ["view"] * len(users),
            "rating": pl.Series([None] * len(users), dtype=pl.Float64),
            "timestamp": pl.Series([None] * len(users) if times is None else times, dtype=pl.Int64),
            "position": np.arange(len(users)) - first,
        }
    )
    return Interactions(frame=frame, user_ids=user_ids, num_items=num_items)
