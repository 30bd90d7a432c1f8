"""The program `recsys`: its commands, its plug-ins, and what a user sees when something is wrong."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
import typer
from typer.testing import CliRunner

import recsys
from recsys.cli import main
from recsys.errors import DataError

runner = CliRunner()
plugin = typer.Typer()


@plugin.command()
def fail() -> None:
    """Fail as a stage would."""
    raise DataError("interactions: 3 of 10 rows have no item; drop them [row 4]")


@plugin.command()
def greet() -> None:
    """Say hello."""
    typer.echo("hello")


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    entries = [
        EntryPoint(name="mine", value=f"{__name__}:plugin", group=main.PLUGIN_GROUP),
        EntryPoint(name="broken", value="no_such_package:app", group=main.PLUGIN_GROUP),
    ]
    monkeypatch.setattr(main, "entry_points", lambda group: entries if group == main.PLUGIN_GROUP else [])
    return main.build_app()


def test_version_is_printed() -> None:
    result = runner.invoke(main.build_app(), ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"recsys {recsys.__version__}\n")


def test_commands_of_plugins_are_at_the_top_level(program: typer.Typer) -> None:
    assert runner.invoke(program, ["greet"]).stdout == "hello\n"


def test_a_broken_plugin_costs_a_warning_only(program: typer.Typer, capfd: pytest.CaptureFixture[str]) -> None:
    main.build_app()
    assert "no commands of plug-in 'broken'" in capfd.readouterr().err
    assert runner.invoke(program, ["greet"]).exit_code == 0


def test_an_error_of_the_input_is_one_line_and_exit_code_1(program: typer.Typer) -> None:
    result = runner.invoke(program, ["fail"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "error: interactions: 3 of 10 rows have no item; drop them [row 4]\n"


def test_debug_shows_where_an_error_came_from(program: typer.Typer) -> None:
    result = runner.invoke(program, ["--debug", "fail"])
    assert isinstance(result.exception, DataError)
