"""`recsys assets`: what can be fetched, and fetching it."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from recsys.assets import ASSETS, cached, fetch

app = typer.Typer(help="Data sets and weights that are downloaded once and cached.", no_args_is_help=True)


@app.command("list")
def list_assets(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Show every asset, where it comes from, and whether it is here already."""
    rows = [
        {
            "name": asset.name,
            "kind": asset.kind,
            "description": asset.description,
            "sources": asset.sources,
            "path": None if (path := cached(asset.name)) is None else str(path),
        }
        for asset in ASSETS.values()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(
        Column("name", no_wrap=True), "kind", "what", "sources, in order", Column("cached at", overflow="fold")
    )
    for asset in ASSETS.values():
        path = cached(asset.name)
        sources = ", ".join(asset.sources)
        table.add_row(asset.name, asset.kind, asset.description, sources, "-" if path is None else str(path))
    Console().print(table)


@app.command("fetch")
def fetch_asset(name: Annotated[str, typer.Argument(help="A name from `recsys assets list`.")]) -> None:
    """Fetch an asset (once) and print its directory."""
    typer.echo(str(fetch(name)))
