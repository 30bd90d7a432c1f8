from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from simulated_world import make_catalog, make_log
from typer.testing import CliRunner

from recsys.cli.data import app
from recsys.data import DataConfig, Dataset, load_dataset, resolve, write_import_folder
from recsys.errors import DataError
from recsys.simulator.behaviour.folds import UserFolds


def test_recommender_simulator_and_evaluation_share_no_user_and_leave_none_out() -> None:
    user_ids = [f"user {number}" for number in range(2000)]
    folds = UserFolds.of(user_ids)
    together = np.concatenate([folds.recommender, folds.simulator, folds.evaluation])
    assert sorted(together.tolist()) == list(range(2000))
    shares = np.array([len(folds.recommender), len(folds.simulator), len(folds.evaluation)]) / 2000
    assert np.abs(shares - [0.6, 0.2, 0.2]).max() < 0.03


def test_a_user_stays_in_its_fold_whoever_else_there_is() -> None:
    user_ids = [f"user {number}" for number in range(300)]
    every = UserFolds.of(user_ids)
    some = UserFolds.of(user_ids[100:])
    for fold in ("recommender", "simulator", "evaluation"):
        rows = getattr(every, fold)
        assert {user_ids[row] for row in rows if row >= 100} == {user_ids[100 + row] for row in getattr(some, fold)}


def test_too_few_users_are_refused_with_the_fold_that_is_empty() -> None:
    with pytest.raises(DataError, match="none of 1 users falls into the"):
        UserFolds.of(["alone"])


def test_the_folders_of_the_command_share_no_user_and_keep_the_catalogue(tmp_path: Path) -> None:
    source = tmp_path / "all"
    made = make_log(90)
    write_import_folder(
        Dataset(catalog=make_catalog(), interactions=made, name="all", config=DataConfig(path=source, source="files")),
        source,
    )
    result = CliRunner().invoke(app, ["folds", str(source), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    parts = {name: load_dataset(resolve(str(tmp_path / "out" / name))) for name in ("recommender", "simulation")}
    users = {name: set(part.interactions.user_ids) for name, part in parts.items()}
    assert not users["recommender"] & users["simulation"]
    assert users["recommender"] | users["simulation"] == set(made.user_ids)
    assert all(part.catalog.num_items == made.num_items for part in parts.values())
    # The folder of the simulation falls apart into the same two folds that the whole log has.
    whole, tested = UserFolds.of(made.user_ids), UserFolds.of(parts["simulation"].interactions.user_ids)
    assert len(tested.recommender) == 0
    for fold in ("simulator", "evaluation"):
        ids = parts["simulation"].interactions.user_ids
        assert {ids[row] for row in getattr(tested, fold)} == {made.user_ids[row] for row in getattr(whole, fold)}
    # Histories moved with their users.
    user = parts["simulation"].interactions.user_ids[0]
    moved = parts["simulation"].interactions.sequences()[0]
    np.testing.assert_array_equal(moved, made.sequences()[made.user_ids.index(user)])
