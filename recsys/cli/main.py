"""The program `recsys`: the library's own commands, and those that other packages bring as plug-ins.

It knows no application: a package adds commands to the top level through the entry-point group `recsys.commands`,
whose values name a `typer.Typer`. An error that the input caused is one line on stderr and exit code 1.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import recsys
from recsys.cli import assets, data
from recsys.errors import RecsysError
from recsys.progress import console

PLUGIN_GROUP = "recsys.commands"


class _Program(TyperGroup):
    """Turns errors of the input into one line, for every command below it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RecsysError as error:
            if ctx.params["debug"]:
                raise
            console.print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
            raise typer.Exit(1) from error


def _escape(message: str) -> str:
    """Keep square brackets of a message from being read as markup."""
    return message.replace("[", r"\[")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"recsys {recsys.__version__}")
        raise typer.Exit


def build_app() -> typer.Typer:
    """The whole program. A plug-in that cannot be imported costs a warning, not the program."""
    app = typer.Typer(
        name="recsys",
        cls=_Program,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="From an interaction log and an item catalogue to a served generative recommender.",
        epilog="Start with: recsys demo",
    )

    @app.callback()
    def options(
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
        version: Annotated[
            bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
        ] = False,
    ) -> None:
        pass

    for entry in sorted(entry_points(group=PLUGIN_GROUP), key=lambda entry: entry.name):
        try:
            plugin = entry.load()
        except Exception as error:  # a plug-in is someone else's code: anything can happen while it is imported
            message = f"warning: no commands of plug-in {entry.name!r}: {error!r}"
            console.print(_escape(message), highlight=False, soft_wrap=True)
        else:
            app.add_typer(plugin)
    app.add_typer(data.app, name="data", help="List, describe and import data sets.")
    app.add_typer(assets.app, name="assets", help="List and fetch data sets and weights.")
    return app


def main() -> None:
    """Entry point of the console script."""
    build_app()()
