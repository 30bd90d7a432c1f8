"""`recsys simulate` on a made-up bundle: what it writes, what it repeats, what it refuses."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from simulated_world import NUM_ITEMS, make_log
from toy_bundle import NUM_ITEMS as BUNDLE_ITEMS
from toy_bundle import write_toy_bundle
from typer.testing import CliRunner

from recsys.data import Sequences
from recsys.errors import ConfigError, DataError, RecsysError
from recsys.simulator.behaviour.fitting import FitConfig
from recsys.simulator.sessions.play import PlayConfig
from training.cli import app
from training.service_arm import ServiceRanker
from training.simulate import SimulateConfig, simulate_run

CONFIG = SimulateConfig(play=PlayConfig(size=4, max_steps=2, sessions_per_user=2), fit=FitConfig(alternatives=8))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    write_toy_bundle(directory / "bundle")
    (directory / "config.yaml").write_text("")
    return directory


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 users whom the bundle does not know, with items of its catalogue and a few others."""
    folder = tmp_path_factory.mktemp("log")
    made = make_log(80)
    events = made.frame.with_columns(
        user_id=pl.concat_str(pl.lit("new"), pl.col("user")), item_id=pl.concat_str(pl.lit("i"), pl.col("item"))
    ).select("user_id", "item_id", "timestamp", "position")
    events.write_parquet(folder / "interactions.parquet")
    items = [f"i{item}" for item in range(NUM_ITEMS)]
    pl.DataFrame({"item_id": items, "title": items}).write_parquet(folder / "items.parquet")
    return folder


def test_a_simulation_is_written_and_the_same_seed_repeats_it(run_dir: Path, log: Path) -> None:
    report = simulate_run(run_dir, CONFIG, log=str(log))
    written = (run_dir / "simulate" / "report.json").read_bytes()
    assert json.loads(written) == report
    assert report["disjoint"] is True
    assert set(report["arms"]) == {"popularity", "bundle"}
    assert report["arms"]["bundle"]["minus_first"]["reward"]["low"] <= 1
    impressions = pl.read_parquet(run_dir / "simulate" / "sessions" / "impressions.parquet")
    users = set(impressions["user_id"])
    assert report["users"]["simulated"] == len(users)
    assert impressions["item_id"].is_in([f"i{item}" for item in range(BUNDLE_ITEMS)]).all()
    # The second time the choice model is loaded.
    before = (run_dir / "simulate" / "choice_model" / "choice_model.json").stat().st_mtime_ns
    simulate_run(run_dir, CONFIG, log=str(log))
    assert (run_dir / "simulate" / "report.json").read_bytes() == written
    assert (run_dir / "simulate" / "choice_model" / "choice_model.json").stat().st_mtime_ns == before


def test_another_log_of_the_same_choices_fits_the_users_anew(run_dir: Path, log: Path, tmp_path: Path) -> None:
    simulate_run(run_dir, CONFIG, log=str(log))
    folder = tmp_path / "log"
    folder.mkdir()
    pl.read_parquet(log / "items.parquet").write_parquet(folder / "items.parquet")
    events = pl.read_parquet(log / "interactions.parquet").with_columns(timestamp=pl.col("timestamp") * 3_600)
    events.write_parquet(folder / "interactions.parquet")
    report = simulate_run(run_dir, CONFIG, log=str(folder))
    alone = simulate_run(_copy(run_dir, tmp_path / "run"), CONFIG, log=str(folder))
    assert report["parameters"] == alone["parameters"]


def _copy(run_dir: Path, to: Path) -> Path:
    shutil.copytree(run_dir, to, ignore=shutil.ignore_patterns("simulate"))
    return to


def test_users_whom_the_run_was_trained_on_are_reported(run_dir: Path, log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    pl.read_parquet(log / "items.parquet").write_parquet(folder / "items.parquet")
    events = pl.read_parquet(log / "interactions.parquet")
    # All twelve users of the bundle, who fall into any fold, beside new ones.
    number = events["user_id"].str.slice(3).cast(pl.Int64)
    renamed = pl.when(number < 12).then(pl.concat_str(pl.lit("u"), number)).otherwise(pl.col("user_id"))
    events.with_columns(user_id=renamed).write_parquet(folder / "interactions.parquet")
    report = simulate_run(run_dir, CONFIG, log=str(folder))
    assert report["disjoint"] is False
    assert 0 < report["users"]["seen_in_training"] < 12


def test_a_log_of_other_items_is_refused(run_dir: Path, log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    for name in ("items", "interactions"):
        table = pl.read_parquet(log / f"{name}.parquet")
        table.with_columns(item_id=pl.concat_str(pl.lit("other "), "item_id")).write_parquet(folder / f"{name}.parquet")
    with pytest.raises(DataError, match=r"none of its .* interactions is with an item of the run"):
        simulate_run(run_dir, CONFIG, log=str(folder))


def test_the_command_prints_json_and_names_unknown_kinds(run_dir: Path, log: Path) -> None:
    arguments = ["simulate", str(run_dir), "--log", str(log), "--size", "3", "--steps", "2", "--kind"]
    result = CliRunner().invoke(app, [*arguments, "robot"])
    assert "choose one of ordinary, drifting" in str(result.exception)


class _Service(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["k"] > 100:
            self.send_response(422)
            self.end_headers()
            self.wfile.write(b"k is at most 100")
            return
        items = [{"item_id": f"i{item}"} for item in range(10) if f"i{item}" not in body["history"]][: body["k"]]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"items": items, "key": self.headers.get("Authorization")}).encode())

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_service_is_an_arm_and_its_refusals_are_one_line() -> None:
    server = HTTPServer(("127.0.0.1", 0), _Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    rank = ServiceRanker(url, [f"i{item}" for item in range(12)], "secret")
    try:
        lists = rank(Sequences.from_lists([[0, 2], list(range(8))]), 4)
        np.testing.assert_array_equal(lists, [[1, 3, 4, 5], [8, 9, -1, -1]])
        with pytest.raises(RecsysError, match="answered 422: k is at most 100"):
            rank(Sequences.from_lists([[0]]), 101)
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(RecsysError, match="is it running"):
        rank(Sequences.from_lists([[0]]), 4)
    for impossible, key in (("http://localhost:abc", None), (url, "schlüssel")):
        with pytest.raises(ConfigError, match="is no URL"):
            ServiceRanker(impossible, ["i0"], key)
