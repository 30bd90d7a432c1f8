from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import typer
from toy_bundle import write_toy_bundle
from typer.testing import CliRunner, Result

from feature_store import EmbeddedServer, Event, OnlineStore
from recsys.bundle import read_manifest
from recsys.data import load_dataset
from recsys.data.config import DataConfig
from recsys.errors import ConfigError
from serving.cli import app


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    write_toy_bundle(tmp_path / "bundle")
    yield tmp_path
    EmbeddedServer(tmp_path / "store").stop()


@pytest.fixture
def store(run_dir: Path) -> Iterator[OnlineStore]:
    name = read_manifest(run_dir / "bundle").name
    store = OnlineStore.embedded(run_dir / "store", namespace=f"recsys:{name}")
    yield store
    store.close()


def _run(*arguments: object) -> Result:
    program = typer.Typer()
    program.command("other")(lambda: None)
    program.add_typer(app)
    return CliRunner().invoke(program, ["events", *map(str, arguments)])


def _events(number: int) -> list[Event]:
    return [
        Event(event_id=str(n), user_id=f"u{n % 2}", item_id=f"i{n}", event_type="view", timestamp=100.0 + n)
        for n in range(number)
    ]


def test_events_become_an_interaction_log_for_the_next_training(run_dir: Path, store: OnlineStore) -> None:
    store.append_events(_events(6))
    result = _run("consume", run_dir, "--once")
    assert f"{run_dir}/offline: 6 new events, 6 in all" in result.output, result.output
    assert "0 new events, 6 in all" in _run("consume", run_dir, "--once").output
    assert "6 events" in _run("export", run_dir, run_dir / "own" / "interactions.parquet").output
    pl.DataFrame({"item_id": [f"i{n}" for n in range(6)]}).write_parquet(run_dir / "own" / "items.parquet")
    dataset = load_dataset(DataConfig(source="files", path=run_dir / "own"))
    assert (dataset.interactions.num_users, len(dataset.interactions)) == (2, 6)


def test_status_tells_what_is_promised_and_how_far_behind_it_is(run_dir: Path, store: OnlineStore) -> None:
    store.append_events(_events(3))
    facts = json.loads(_run("status", run_dir, "--json").output)
    assert facts["store"]["durable"] is True
    assert facts["store"]["server"].startswith("valkey 9")
    assert (facts["offline_events"], facts["lag"]["entries"]) == (0, 3)
    _run("consume", run_dir, "--once")
    assert "offline: 3 events; up to date" in _run("status", run_dir).output


def test_an_erased_user_is_in_no_export(run_dir: Path, store: OnlineStore) -> None:
    store.append_events(_events(4))
    _run("consume", run_dir, "--once")
    assert "user 'u1' is erased" in _run("erase", run_dir, "u1").output
    assert "user 'nobody' was unknown" in _run("erase", run_dir, "nobody").output
    _run("consume", run_dir, "--once")
    _run("export", run_dir, run_dir / "out.parquet")
    assert pl.read_parquet(run_dir / "out.parquet")["user_id"].unique().to_list() == ["u0"]
    assert "0 keys moved" in _run("migrate", run_dir).output


def test_a_group_that_is_given_up_is_waited_for_no_more(run_dir: Path, store: OnlineStore) -> None:
    assert _run("leave", run_dir).exit_code == 0  # there is none yet
    _run("consume", run_dir, "--once")
    store.append_events(_events(4))
    elsewhere = ("consume", run_dir, "--once", "--dir", run_dir / "second")
    assert "fills another offline store" in str(_run(*elsewhere).exception)
    assert "group 'offline' is gone" in _run("leave", run_dir).output
    assert "4 new events" in _run(*elsewhere).output


def test_old_events_are_deleted(run_dir: Path, store: OnlineStore) -> None:
    store.append_events(_events(4))
    _run("consume", run_dir, "--once")
    assert "0 events deleted, 4 left" in _run("expire", run_dir, "--before", "2026-01-01").output
    assert "4 events deleted, 0 left" in _run("expire", run_dir, "--before", "2100-01-01").output


def test_a_store_that_nobody_runs_is_started_for_the_command_and_ended_after_it(run_dir: Path) -> None:
    assert _run("consume", run_dir, "--once").exit_code == 0
    assert not EmbeddedServer(run_dir / "store").is_running()


def test_the_store_of_a_service_is_left_running(run_dir: Path, store: OnlineStore) -> None:
    assert _run("consume", run_dir, "--once").exit_code == 0
    store.ping()
    assert EmbeddedServer(run_dir / "store").is_running()


def test_errors_are_one_line(run_dir: Path) -> None:
    result = _run("export", run_dir, run_dir / "out.parquet")
    assert isinstance(result.exception, ConfigError)
    assert "run `recsys events consume` first" in str(result.exception)
    _run("consume", run_dir, "--once")
    result = _run("export", run_dir, run_dir / "offline" / "manifest.json" / "out.parquet")
    assert isinstance(result.exception, ConfigError)
    assert "name another file" in str(result.exception)
    result = _run("status", run_dir, "--store", f"unix://{run_dir}/none.sock")
    assert isinstance(result.exception, ConfigError)
    assert "\n" not in str(result.exception)


def test_a_signal_ends_the_consumer_when_all_is_written(run_dir: Path, store: OnlineStore) -> None:
    command = [sys.executable, "-c", "from serving.cli import app; app()", "events", "consume", str(run_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("writing events to")
        store.append_events(_events(3))
        process.send_signal(signal.SIGTERM)
        assert "3 in all" in process.stdout.read()
    assert process.returncode == 0
