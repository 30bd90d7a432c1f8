"""`recsys replay`: tables and stores of lists become estimates, and what is no evidence is refused with its rows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from toy_bundle import NUM_USERS, write_toy_bundle
from typer.testing import CliRunner

from feature_store import Event
from feature_store.events import LogEntry
from feature_store.keys import shard_of
from feature_store.offline_writer import OfflineWriter
from feature_store.slates import Exposure, ServedSlate, Slot, history_hash
from recsys.bundle import Bundle
from recsys.cli.main import build_app
from recsys.data import Sequences
from recsys.errors import ConfigError, DataError
from recsys.generator.constraints import Constraints
from recsys.simulator.exploration import draw_slate
from recsys.simulator.off_policy import OffPolicyConfig
from training.replay import ReplayOptions, print_replay, replay

_CONFIG = OffPolicyConfig(n_resamples=100)
_K, _EPSILON, _CANDIDATES, _CLICKED = 3, 0.5, 6, 0.2


def _rounds(num_rounds: int = 4_000) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
    """A uniform log of three items in two segments, the target, and what it earns."""
    random = np.random.default_rng(0)
    segment, item = random.integers(0, 2, num_rounds), random.integers(0, 3, num_rounds)
    expected = np.array([[0.1, 0.3, 0.6], [0.6, 0.3, 0.1]])
    target = np.array([[0.1, 0.2, 0.7], [0.7, 0.2, 0.1]])
    frame = pl.DataFrame(
        {
            "request_id": np.arange(num_rounds),
            "user_id": [f"u{user}" for user in random.integers(0, 900, num_rounds)],
            "item_id": np.array(["a", "b", "c"])[item],
            "context": np.array(["new", "old"])[segment],
            "reward": (random.random(num_rounds) < expected[segment, item]).astype(int),
            "propensity": 1 / 3,
            "target_propensity": target[segment, item],
        }
    )
    return frame, target, expected


def _policy_table(path: Path, target: np.ndarray, *, logged: bool = True) -> Path:
    rows = [
        {"item_id": item, "context": context, "propensity": target[place, number], "logged_propensity": 1 / 3}
        for place, context in enumerate(("new", "old"))
        for number, item in enumerate("abc")
    ]
    frame = pl.DataFrame(rows)
    (frame if logged else frame.drop("logged_propensity")).write_csv(path)
    return path


def test_a_table_of_rounds_and_one_of_the_target_give_every_estimate(tmp_path: Path) -> None:
    frame, target, expected = _rounds()
    frame.write_csv(tmp_path / "log.csv")
    truth = (target * expected).sum(axis=1).mean()
    options = ReplayOptions(target=_policy_table(tmp_path / "target.csv", target))
    document = replay(tmp_path / "log.csv", options, _CONFIG)
    assert document["kind"] == "rounds"
    assert document["num_users"] == frame["user_id"].n_unique()
    assert document["weights"]["actions"]["support"] == pytest.approx(1)
    for name, outcome in document["outcomes"].items():
        assert outcome["value"] == pytest.approx(truth, abs=0.06 if "clipped" in name or "gauss" in name else 0.04)
    assert {"dr", "mrdr", "balanced_ips", "direct"} <= set(document["outcomes"])
    without = frame.drop("target_propensity", "context").with_columns(target_propensity=frame["target_propensity"])
    without.write_parquet(tmp_path / "log.parquet")
    short = replay(tmp_path / "log.parquet", ReplayOptions(), _CONFIG)
    assert short["outcomes"]["ips"]["value"] == pytest.approx(document["outcomes"]["ips"]["value"])
    assert set(short["outcomes"]) == {"replay", "ips", "snips", "clipped_ips", "subgaussian_ips"}
    json.dumps(document, allow_nan=False)


def test_a_table_with_semantic_ids_gives_estimates_by_prefix_and_holds_propensities_against_the_log(
    tmp_path: Path,
) -> None:
    frame, target, expected = _rounds()
    frame.write_csv(tmp_path / "log.csv")
    policy = pl.read_csv(_policy_table(tmp_path / "target.csv", target))
    codes = pl.col("item_id").replace_strict({"a": "0-4", "b": "1-4", "c": "1-0"})
    policy.with_columns(semantic_id=codes).write_csv(tmp_path / "target.csv")
    options = ReplayOptions(target=tmp_path / "target.csv")
    document = replay(tmp_path / "log.csv", options, _CONFIG)
    mips = document["outcomes"]["mips"]
    assert mips["parameter"] in (1, 2)
    assert mips["value"] == pytest.approx((target * expected).sum(axis=1).mean(), abs=0.06)
    assert document["weights"]["prefixes"]["effective_share"] >= document["weights"]["actions"]["effective_share"]
    calibration = document["calibration"]
    assert (calibration["slope"], len(calibration["bins"])) == (None, 1)
    assert calibration["bins"][0] == {"num_chances": 12_000, "propensity": 1 / 3, "frequency": 1 / 3}
    print_replay(document)


@pytest.mark.parametrize(
    ("semantic_ids", "message"),
    [
        (["0-4", "1-4", "x", "0-4", "1-4", "x"], r"'semantic_id' must be whole numbers .* row 3: 'x', row 6: 'x'"),
        (["0-4", "1-4", "1", "0-4", "1-4", "1"], r"'semantic_id' must have 2 codes .* row 3: '1', row 6: '1'"),
        (["0-4", "1-4", "1-0", "0-4", "1-4", "1-1"], r"not the same in all contexts .* row 3: '1-0', row 6: '1-1'"),
    ],
)
def test_bad_semantic_ids_are_named(tmp_path: Path, semantic_ids: list[str], message: str) -> None:
    frame, target, _ = _rounds(10)
    frame.write_csv(tmp_path / "log.csv")
    table = _policy_table(tmp_path / "target.csv", target)
    policy = pl.read_csv(table).with_columns(semantic_id=pl.Series(semantic_ids))
    policy.write_csv(table)
    with pytest.raises(DataError, match=message):
        replay(tmp_path / "log.csv", ReplayOptions(target=table), _CONFIG)
    policy.drop("logged_propensity").write_csv(table)
    with pytest.raises(DataError, match="'semantic_id' needs 'logged_propensity'"):
        replay(tmp_path / "log.csv", ReplayOptions(target=table), _CONFIG)


def test_a_table_of_lists_gives_the_golden_values(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "request_id": ["x", "x", "y", "y"] * 20,
            "user_id": ["u", "u", "v", "v"] * 20,
            "item_id": ["a", "b", "b", "a"] * 20,
            "position": [0, 1, 0, 1] * 20,
            "reward": [1, 0, 0, 1] * 20,
            "propensity": 0.5,
            "marginal_propensity": 0.5,
            "target_propensity": [0.8, 0.7, 0.2, 0.3] * 20,
            "target_marginal_propensity": [0.8, 0.7, 0.2, 0.3] * 20,
        }
    ).with_columns(request_id=pl.col("request_id") + (pl.int_range(80) // 4).cast(pl.String))
    frame.sample(fraction=1.0, shuffle=True, seed=0).write_parquet(tmp_path / "lists.parquet")
    document = replay(tmp_path / "lists.parquet", ReplayOptions(), _CONFIG)
    values = {name: outcome["value"] for name, outcome in document["outcomes"].items()}
    golden = {"sips": 1.24, "iips": 1.1, "rips": 0.92, "snsips": 1.0, "sniips": 1.1, "snrips": 0.8967741935}
    assert values == pytest.approx(golden, abs=1e-9)
    assert (document["num_rounds"], document["num_users"]) == (40, 2)
    first = replay(tmp_path / "lists.parquet", ReplayOptions(places=1), _CONFIG)
    assert first["outcomes"]["sips"]["value"] == pytest.approx(0.8)


def _refusal(*arguments: object) -> str:
    """What `recsys replay` says of a log that it refuses: one line, and nothing that looks like a result."""
    result = CliRunner().invoke(build_app(), ["replay", *map(str, arguments), "--json"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def _lists() -> pl.DataFrame:
    """Three lists of two places."""
    return pl.DataFrame(
        {
            "request_id": ["x", "x", "y", "y", "z", "z"],
            "user_id": ["u", "u", "v", "v", "w", "w"],
            "item_id": ["a", "b", "b", "a", "a", "b"],
            "position": [0, 1] * 3,
            "reward": [1, 0] * 3,
            "propensity": 0.5,
            "marginal_propensity": 0.5,
            "target_propensity": 0.5,
            "target_marginal_propensity": 0.5,
        }
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"propensity": 0.0}, r"'propensity' must be above 0 .* row 2: 0.0"),
        ({"propensity": 1.5}, r"'propensity' must be above 0 and at most 1 .* row 2: 1.5"),
        ({"propensity": None}, r"'propensity' has no value.*row 2"),
        ({"request_id": 0}, r"'request_id' stands twice .*row 1: '0', row 2: '0'"),
        ({"reward": None}, r"'reward' has no finite value.*row 2"),
        ({"user_id": None}, r"'user_id' has no value.*row 2"),
        ({"item_id": None}, r"'item_id' has no value.*row 2"),
        ({"target_propensity": 1.2}, r"'target_propensity' must be 0 to 1.*row 2"),
    ],
)
def test_bad_rounds_are_refused_by_row(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _refused(tmp_path / "log.parquet", _rounds(10)[0], change, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"propensity": 0.0}, r"'propensity' must be above 0 .* row 2: 0.0"),
        ({"marginal_propensity": None}, r"'marginal_propensity' has no value.*row 2"),
        ({"marginal_propensity": 0.2}, r"at least the product of the conditional ones.*: request_id 'x'$"),
        ({"position": 0}, r"'request_id' has two items at one position .*row 1: 'x', row 2: 'x'"),
        ({"position": 2}, r"'request_id' has a gap between its positions .*row 1: 'x', row 2: 'x'"),
        ({"user_id": "v"}, r"'request_id' is of several users .*row 1: 'x', row 2: 'x'"),
        ({"user_id": None}, r"'user_id' has no value.*row 2"),
    ],
)
def test_bad_lists_are_refused_by_row(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _refused(tmp_path / "lists.parquet", _lists(), change, message)


def _refused(path: Path, frame: pl.DataFrame, change: dict[str, Any], message: str) -> None:
    """The second row is changed; refused from Python and by the program."""
    for column, value in change.items():
        new = pl.when(pl.int_range(len(frame)) == 1).then(pl.lit(value)).otherwise(pl.col(column))
        frame = frame.with_columns(new.alias(column))
    frame.write_parquet(path)
    with pytest.raises(DataError, match=message):
        replay(path, ReplayOptions(), _CONFIG)
    assert re.search(message, _refusal(path))


def test_logs_without_propensities_or_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    frame = _rounds(10)[0]
    frame.drop("propensity").write_parquet(path)
    assert "no column 'propensity'; there are request_id" in _refusal(path)
    frame.head(0).write_parquet(path)
    assert "the table has no rows" in _refusal(path)


def test_a_target_that_is_no_policy_or_of_other_items_is_refused(tmp_path: Path) -> None:
    frame, target, _ = _rounds(10)
    frame.write_parquet(tmp_path / "log.parquet")
    table = _policy_table(tmp_path / "target.csv", target * 0.9)
    problem = r"'propensity' must sum to 1 over the items of a context, and sums to 0.9 in 6 of 6 rows, e.g. row 1"
    with pytest.raises(DataError, match=problem):
        replay(tmp_path / "log.parquet", ReplayOptions(target=table), _CONFIG)
    assert re.search(problem, _refusal(tmp_path / "log.parquet", "--target", table))
    of_others = pl.read_csv(_policy_table(table, target)).with_columns(logged_propensity=pl.Series([0.4, 0.3, 0.3] * 2))
    of_others.write_csv(table)
    assert re.search(
        "propensities contradict .*: request_id '0', '1', ", _refusal(tmp_path / "log.parquet", "--target", table)
    )
    pl.DataFrame({"item_id": ["a"] * 2, "context": ["new", "old"], "propensity": [1.0, 1.0]}).write_csv(table)
    with pytest.raises(DataError, match=r"'item_id' is not in target\.csv"):
        replay(tmp_path / "log.parquet", ReplayOptions(target=table), _CONFIG)
    pl.DataFrame({"item_id": ["b"], "propensity": [1.0]}).write_csv(table)
    with pytest.raises(DataError, match="both the log and the target"):
        replay(tmp_path / "log.parquet", ReplayOptions(target=table), _CONFIG)
    frame.drop("target_propensity").write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"no column 'target_propensity'.*--target"):
        replay(tmp_path / "log.parquet", ReplayOptions(), _CONFIG)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "toy"
    write_toy_bundle(path)
    return path


def _likes(item_id: str) -> float:
    """How likely an item of a list is taken: more so if its number is even."""
    return _CLICKED * (1.8 if int(item_id[1:]) % 2 == 0 else 0.2)


def _served(
    bundle: Bundle, directory: Path, *, num_lists: int, epsilon: float = _EPSILON, repeated: int | None = None
) -> None:
    """An offline store as a service over the bundle writes it, its users' choices included; one list may come twice."""
    random = np.random.default_rng(0)
    histories = {user: list(items) for user, items in bundle.histories()}
    entries = []
    for number in range(num_lists):
        user = f"u{number % NUM_USERS}"
        history = histories[user]
        known = bundle.catalog.index_of(history)
        found = bundle.recommender.recommend(
            Sequences.from_lists([known]), _CANDIDATES, constraints=Constraints(deny=[known])
        )
        slate = draw_slate(found.scores[0].astype(np.float64), _K, epsilon=epsilon, seed=number)
        ids = [bundle.catalog.item_ids[found.items[0][place]] for place in slate.order]
        shown = ServedSlate(
            request_id=f"r{number}",
            user_id=user,
            timestamp=float(1_000 + 10 * number),
            history_hash=history_hash(history),
            profile_version=None,
            policy="generator",
            model_version="m",
            candidates_version="m",
            slots=tuple(
                Slot(item_id=item, marginal=float(marginal), conditional=float(conditional))
                for item, marginal, conditional in zip(ids, slate.marginal, slate.conditional, strict=True)
            ),
            joint_log_propensity=slate.joint_log,
            epsilon=epsilon,
            seed=number,
            exposures=(Exposure(experiment="e", variant="v", bucket=1, forced=number == 0),),
        )
        arrival = (1_000_000 + 10_000 * number, 0)
        entries.append(LogEntry(shard=shard_of(user), position=arrival, slate=shown))
        taken = [item for item in ids if random.random() < _likes(item)]
        for item in taken[: 1 if number < 2 * NUM_USERS else 0]:
            # Histories grow a little at first: then the same few lists are asked for again and again.
            event = Event(
                event_id=f"e{number}",
                user_id=user,
                item_id=item,
                event_type="view",
                timestamp=float(1_001 + 10 * number),
                recommendation_id=f"r{number}",
            )
            entries.append(LogEntry(shard=shard_of(user), position=(arrival[0] + 1_000, 0), event=event))
            histories[user] = [*history, item]
    if repeated is not None:
        again = next(each for each in entries if each.slate is not None and each.slate.request_id == f"r{repeated}")
        entries.append(replace(again, position=(2_000_000, 0)))
    with OfflineWriter(directory) as writer:
        writer.write(entries)


def test_the_lists_of_a_store_say_what_a_bundle_would_have_earned(bundle: Path, tmp_path: Path) -> None:
    _served(Bundle.load(bundle), tmp_path / "offline", num_lists=240)
    same = ReplayOptions(target=bundle, epsilon=_EPSILON, candidates=_CANDIDATES)
    document = replay(tmp_path / "offline", same, _CONFIG)
    assert document["left_out"] == {"forced by a tester": 1}
    assert (document["num_lists"], document["num_rounds"], document["num_users"]) == (240, 239, NUM_USERS)
    assert set(document["outcomes"]) == {*("sips", "snsips", "iips", "sniips", "rips", "snrips", "cascade_dr", "mips")}
    for kind in ("standard", "cascade"):
        assert document["weights"][kind]["mean_weight"] == pytest.approx(1, abs=1e-6), "the policy that served itself"
    assert document["weights"]["independent"]["mean_weight"] == pytest.approx(1, abs=0.05), "averages over draws"
    served = document["served"]["value"]
    assert served > 0
    assert document["weights"]["prefixes"]["mean_weight"] == pytest.approx(1, abs=1e-6), "both policies are known"
    assert document["num_known"] == 239
    calibration = document["calibration"]
    assert calibration["slope"] == pytest.approx(1, abs=3 * calibration["slope_error"])
    assert calibration["slope_error"] < 0.1
    assert calibration["p_value"] is None, "no history comes so often"
    for name in ("sips", "snsips", "rips", "snrips", "cascade_dr", "mips"):
        assert document["outcomes"][name]["value"] == pytest.approx(served, abs=0.02)
    always_best = replay(tmp_path / "offline", ReplayOptions(target=bundle, candidates=_CANDIDATES, places=2), _CONFIG)
    assert all("value" in outcome for outcome in always_best["outcomes"].values())
    assert always_best["weights"]["standard"]["mean_weight"] == pytest.approx(1, abs=0.2)
    print_replay(document)


def test_lists_of_a_policy_that_is_not_to_be_found_have_no_estimate_by_prefixes(bundle: Path, tmp_path: Path) -> None:
    _served(Bundle.load(bundle), tmp_path / "offline", num_lists=60)
    options = ReplayOptions(target=bundle, epsilon=_EPSILON, candidates=_CANDIDATES - 1)
    document = replay(tmp_path / "offline", options, _CONFIG)
    assert document["num_known"] == 0
    assert document["calibration"] is None
    assert "mips" not in document["outcomes"]
    print_replay(document)


def test_another_bundle_is_refused_where_the_log_hardly_shows_its_lists(bundle: Path, tmp_path: Path) -> None:
    _served(Bundle.load(bundle), tmp_path / "offline", num_lists=60)
    write_toy_bundle(tmp_path / "other", seed=5)
    options = ReplayOptions(target=tmp_path / "other", served=bundle, candidates=_CANDIDATES)
    document = replay(tmp_path / "offline", options, _CONFIG)
    assert "refused" in document["outcomes"]["sips"]
    print_replay(document)


def test_stores_without_chance_or_with_unknown_histories_are_no_evidence(bundle: Path, tmp_path: Path) -> None:
    _served(Bundle.load(bundle), tmp_path / "certain", num_lists=5, epsilon=0.0)
    options = ReplayOptions(target=bundle)
    with pytest.raises(DataError, match=r"none of 5 lists was drawn at random.*epsilon: 0.05"):
        replay(tmp_path / "certain", options, _CONFIG)
    _served(Bundle.load(bundle), tmp_path / "drawn", num_lists=24)
    write_toy_bundle(tmp_path / "other", seed=5)
    with pytest.raises(DataError, match=r"histories of 23 of 23 lists are not to be found.*--served"):
        replay(tmp_path / "drawn", ReplayOptions(target=tmp_path / "other"), _CONFIG)
    with pytest.raises(ConfigError, match="--target"):
        replay(tmp_path / "drawn", ReplayOptions(), _CONFIG)
    refusal = _refusal(tmp_path / "drawn", "--target", bundle, "--source", "popularity")
    assert "no list of source 'popularity'; there are lists of generator" in refusal
    with pytest.raises(DataError, match="holds no events"):
        replay(tmp_path, options, _CONFIG)
    with pytest.raises(ConfigError, match="no bundle at 'nowhere'"):
        replay(tmp_path / "drawn", ReplayOptions(target=Path("nowhere")), _CONFIG)


def test_a_list_that_a_store_holds_twice_is_refused(bundle: Path, tmp_path: Path) -> None:
    _served(Bundle.load(bundle), tmp_path / "offline", num_lists=12, repeated=3)
    refusal = _refusal(tmp_path / "offline", "--target", bundle)
    assert "'request_id' stands twice in 2 of 13 rows, e.g. row 4: 'r3', row 13: 'r3'" in refusal


def test_options_that_do_not_fit_the_log_are_refused(bundle: Path, tmp_path: Path) -> None:
    frame, _, _ = _rounds(10)
    frame.write_parquet(tmp_path / "log.parquet")
    for options, message in (
        (ReplayOptions(target=bundle), "is no table"),
        (ReplayOptions(events=["view"]), "of stores"),
        (ReplayOptions(places=2), "has no lists"),
    ):
        with pytest.raises(ConfigError, match=message):
            replay(tmp_path / "log.parquet", options, _CONFIG)
    one = tmp_path / "one.parquet"
    frame.head(1).write_parquet(one)
    document = replay(one, ReplayOptions(), _CONFIG)
    assert all("one user" in outcome["refused"] for outcome in document["outcomes"].values())
    print_replay(document)


def test_numbers_are_whole_however_narrow_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frame, _, _ = _rounds(400)
    frame.write_parquet(tmp_path / "log.parquet")
    document = replay(tmp_path / "log.parquet", ReplayOptions(), _CONFIG)
    monkeypatch.setenv("COLUMNS", "40")
    print_replay(document)
    printed = capsys.readouterr().out
    found = document["outcomes"]["ips"]
    assert f"[{found['bootstrap']['low']:.4g}, {found['bootstrap']['high']:.4g}]" in printed
    assert "over what was served" in printed
    assert "…" not in printed


def test_the_command_prints_one_document(tmp_path: Path) -> None:
    frame, _, _ = _rounds(400)
    frame.write_parquet(tmp_path / "log.parquet")
    command = [sys.executable, "-m", "recsys", "replay", "log.parquet", "--resamples", "100", "--json"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    document = json.loads(shown.stdout)
    assert document["outcomes"]["snips"]["value"] > document["served"]["value"]
