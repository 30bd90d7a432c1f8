from __future__ import annotations

import socket
from pathlib import Path

import pytest
import typer
from toy_bundle import write_toy_bundle
from typer.testing import CliRunner

from recsys.errors import ArtifactError, ConfigError, RecsysError
from serving.cli import app


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


def test_a_damaged_bundle_is_one_error_and_no_store_is_started(program: typer.Typer, tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "bundle")
    (tmp_path / "bundle" / "catalog.parquet").write_bytes(b"damaged")
    assert "catalog.parquet was changed" in str(_error(program, str(tmp_path), "--port", "0"))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--store", "redis://localhost", "--data-dir", "x"], "exclude each other"),
        (["--store", "http://localhost"], "write redis://"),
        (["--host", "no.such.host.invalid"], "cannot listen"),
    ],
)
def test_unusable_options_are_one_error(program: typer.Typer, tmp_path: Path, options: list[str], message: str) -> None:
    write_toy_bundle(tmp_path / "bundle")
    assert message in str(_error(program, str(tmp_path), "--port", "0", *options))
