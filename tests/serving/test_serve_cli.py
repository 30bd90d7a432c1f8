from __future__ import annotations

import asyncio
import gc
import socket
from pathlib import Path
from typing import Any

import pytest
import typer
from fastapi import FastAPI
from toy_bundle import write_toy_bundle
from typer.testing import CliRunner

from feature_store import EmbeddedServer
from recsys.errors import ArtifactError, ConfigError, RecsysError
from recsys.generator import GenerativeRecommender
from serving.cli import app
from serving.context import ServingContext
from serving.guard.keys import create_key
from serving.guard.settings import GuardSettings
from serving.lifecycle import Lifecycle
from serving.server import HttpServer, listen
from serving.settings import load_settings


@pytest.fixture
def program() -> typer.Typer:
    """A program that takes the command in as a plug-in, beside another one."""
    program = typer.Typer()
    program.command("other")(lambda: None)
    program.add_typer(app)
    return program


def _error(program: typer.Typer, *arguments: str) -> RecsysError:
    result = CliRunner().invoke(program, ["serve", *arguments])
    assert isinstance(result.exception, RecsysError), result.output
    assert "\n" not in str(result.exception)
    return result.exception


def test_help_says_what_is_served_where(program: typer.Typer) -> None:
    result = CliRunner().invoke(program, ["serve", "--help"])
    assert result.exit_code == 0
    assert "/docs" in result.output


def test_a_directory_without_a_bundle_is_one_error(program: typer.Typer, tmp_path: Path) -> None:
    error = _error(program, str(tmp_path))
    assert isinstance(error, ArtifactError)
    assert "manifest.json is missing" in str(error)


def test_a_taken_port_is_found_before_anything_is_loaded(program: typer.Typer, tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "bundle")
    (tmp_path / "bundle" / "catalog.parquet").write_bytes(b"damaged")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        error = _error(program, str(tmp_path), "--port", str(taken.getsockname()[1]))
    assert isinstance(error, ConfigError)
    assert "choose another --port" in str(error)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_damaged_bundle_is_one_error_and_no_store_is_started(
    program: typer.Typer, tmp_path: Path, workers: str
) -> None:
    write_toy_bundle(tmp_path / "bundle")
    (tmp_path / "bundle" / "catalog.parquet").write_bytes(b"damaged")
    error = _error(program, str(tmp_path), "--port", "0", "--workers", workers)
    assert isinstance(error, ArtifactError)
    assert "catalog.parquet was changed" in str(error)
    assert not (tmp_path / "store" / "appendonlydir").exists()


@pytest.mark.parametrize("failure", [RuntimeError("no start"), KeyboardInterrupt()])
def test_the_store_ends_with_the_service_however_that_ends(
    program: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def run(*_: object, **__: object) -> None:
        assert EmbeddedServer(tmp_path / "store")._answers()
        raise failure

    write_toy_bundle(tmp_path / "bundle")
    monkeypatch.setattr("uvicorn.Server.run", run)
    assert CliRunner().invoke(program, ["serve", str(tmp_path), "--port", "0"]).exit_code != 0
    assert not EmbeddedServer(tmp_path / "store")._answers()


def test_the_store_ends_when_the_service_does_not_start(
    program: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(_: ServingContext) -> None:
        raise RuntimeError("no start")

    write_toy_bundle(tmp_path / "bundle")
    monkeypatch.setattr(ServingContext, "start", start)
    assert CliRunner().invoke(program, ["serve", str(tmp_path), "--port", "0"]).exit_code != 0
    assert not EmbeddedServer(tmp_path / "store")._answers()


def test_a_model_that_cannot_answer_is_one_error_and_no_store_is_started(
    program: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    write_toy_bundle(tmp_path / "bundle")
    monkeypatch.setattr(GenerativeRecommender, "recommend", fail)
    assert "cannot answer" in str(_error(program, str(tmp_path), "--port", "0"))
    assert not (tmp_path / "store").exists()


def test_a_run_is_found_by_its_name(program: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy_bundle(tmp_path / "runs" / "toy" / "bundle")
    (tmp_path / "runs" / "toy" / "bundle" / "catalog.parquet").write_bytes(b"damaged")
    monkeypatch.chdir(tmp_path)
    assert "catalog.parquet was changed" in str(_error(program, "toy", "--port", "0"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--store", "redis://localhost", "--data-dir", "x"], "exclude each other"),
        (["--store", "http://localhost"], "write redis://"),
        (["--host", "no.such.host.invalid"], "cannot listen"),
        (["--host", "0.0.0.0"], "others can reach 0.0.0.0, so keys are needed"),
        (["--host", "::"], "others can reach ::, so keys are needed"),
        (["--keys", "nothing.json"], "nothing.json cannot be read"),
        (["--keys", "nothing.json", "--no-auth"], "exclude each other"),
        (["--settings", "nothing.yaml"], "nothing.yaml: cannot be read"),
    ],
)
def test_unusable_options_are_one_error(program: typer.Typer, tmp_path: Path, options: list[str], message: str) -> None:
    write_toy_bundle(tmp_path / "bundle")
    assert message in str(_error(program, str(tmp_path), "--port", "0", *options))


@pytest.mark.parametrize(("options", "is_loopback_only"), [([], True), (["--host", "0.0.0.0", "--no-auth"], False)])
def test_where_there_are_no_keys_a_local_service_knows_its_own_names_alone(
    program: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], is_loopback_only: bool
) -> None:
    asked: dict[str, object] = {}

    def create(*_: object, **options: object) -> None:
        asked.update(options)
        raise RuntimeError("seen enough")

    write_toy_bundle(tmp_path / "bundle")
    monkeypatch.setattr("serving.server.create_app", create)
    CliRunner().invoke(program, ["serve", str(tmp_path), "--port", "0", *options])
    assert (asked["keys"], asked["loopback_only"]) == (None, is_loopback_only)


def test_settings_are_read_from_a_file_and_unknown_ones_are_named(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("store_threads: 3\nguard: {burst: 7, drain_s: 5}\n")
    settings = load_settings(file)
    assert (settings.store_threads, settings.guard.burst, settings.guard.drain_s) == (3, 7, 5)
    file.write_text("guard: {burts: 7}\nstore_threads: 0\n")
    with pytest.raises(ConfigError, match=r"guard\.burts: Extra inputs.*store_threads: Input should be"):
        load_settings(file)


def test_full_collections_pass_by_what_was_loaded_before_the_start() -> None:
    async def start_and_end() -> None:
        api = FastAPI()
        api.state.lifecycle = Lifecycle()
        server = HttpServer(api, lambda: None, GuardSettings())
        server.config.port = 0
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup()
        await server.shutdown()

    try:
        asyncio.run(start_and_end())
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(
    ("options", "settings", "num_workers", "helpers", "is_limited"),
    [
        (["--workers", "3"], "", 3, {"offline"}, False),
        ([], "workers: 2", 2, {"offline"}, False),
        (["--workers", "2"], "workers: 5", 2, {"offline"}, False),
        (["--workers", "2", "--keys", "keys.json"], "", 2, {"offline"}, True),
        (["--workers", "2", "--keys", "keys.json"], "guard: {requests_per_second: null}", 2, {"offline"}, False),
        (["--workers", "2", "--store", "redis://localhost"], "", 2, set(), False),
        (["--workers", "2"], "offline: {enabled: false}", 2, set(), False),
    ],
)
def test_workers_are_as_many_and_do_what_options_and_settings_say(
    program: typer.Typer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    settings: str,
    num_workers: int,
    helpers: set[str],
    is_limited: bool,
) -> None:
    seen: dict[str, Any] = {}

    def supervise(worker: object, number: int, **further: Any) -> None:
        seen.update(worker=worker, number=number, **further)
        raise RuntimeError("seen enough")

    write_toy_bundle(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    create_key(Path("keys.json"), "shop", "read")
    Path("serve.yaml").write_text(settings or "{}")
    monkeypatch.setattr("serving.workers.service.Supervisor", supervise)
    CliRunner().invoke(program, ["serve", str(tmp_path), "--port", "0", "--settings", "serve.yaml", *options])
    assert (seen["number"], set(seen["helpers"])) == (num_workers, helpers)
    assert (seen["worker"]._buckets is not None) == is_limited
    assert (seen["server"] is None) == ("--store" in options)


def test_no_number_of_workers_is_one_a_core(
    program: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    write_toy_bundle(tmp_path / "bundle")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr("serving.workers.service.Supervisor", lambda worker, number, **_: seen.extend([worker, number]))
    CliRunner().invoke(program, ["serve", str(tmp_path), "--port", "0", "--workers", "0"])
    worker, number = seen
    assert number == 6
    assert worker._service.settings.model_threads == 1


def test_answers_do_not_wait_until_their_head_is_acknowledged() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
