"""`recsys data`: list, describe and import data sets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from recsys.data import describe as describe_dataset
from recsys.data import load_dataset, resolve, write_import_folder
from recsys.data.config import MOVIELENS_NAMES
from recsys.data.sources.amazon import RELEASES

app = typer.Typer(help="List, describe and import data sets.", no_args_is_help=True)

NameOrPath = Annotated[
    str,
    typer.Argument(
        help="A known data set (see `recsys data list`), a folder with items.parquet and "
        "interactions.parquet, or a .yaml file with a data section."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@app.command("list")
def list_() -> None:
    """Print the names of the data sets that can be downloaded."""
    for name in MOVIELENS_NAMES:
        typer.echo(name)
    for year, release in RELEASES.items():
        for category in release.categories:
            typer.echo(f"amazon-{year}/{category}")


@app.command()
def describe(name_or_path: NameOrPath, as_json: AsJson = False) -> None:
    """Print users, items, interactions, history lengths, repeats, ties and text coverage of a data set."""
    facts = describe_dataset(load_dataset(resolve(name_or_path)))
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        Console().print(_table(facts))


@app.command("import")
def import_(
    config_or_path: NameOrPath,
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not hold anything else.")],
) -> None:
    """Check and prepare a data set, and write it as items.parquet and interactions.parquet."""
    dataset = load_dataset(resolve(config_or_path))
    write_import_folder(dataset, out)
    typer.echo(
        f"{out}: {dataset.interactions.num_users:,} users, {dataset.catalog.num_items:,} items, "
        f"{len(dataset.interactions):,} interactions"
    )


@app.command()
def folds(
    config_or_path: NameOrPath,
    out: Annotated[Path, typer.Argument(help="The folder to write two import folders into.")],
) -> None:
    """Divide the users for a simulation: OUT/recommender to train on, OUT/simulation for the simulated users.

    By a hash of their ids, 60 to 40 percent. Give `data.path=OUT/recommender` to `recsys run`, and
    `--log OUT/simulation` to `recsys simulate`.
    """
    from recsys.simulator.behaviour.folds import UserFolds

    dataset = load_dataset(resolve(config_or_path))
    found = UserFolds.of(dataset.interactions.user_ids)
    tested = np.sort(np.concatenate([found.simulator, found.evaluation]))
    for name, users in (("recommender", found.recommender), ("simulation", tested)):
        part = replace(dataset, interactions=dataset.interactions.of_users(users))
        write_import_folder(part, out / name)
        typer.echo(f"{out / name}: {len(users):,} users, {len(part.interactions):,} interactions")


def _table(facts: dict[str, Any]) -> Table:
    table = Table(title=facts["name"], show_header=False)
    table.add_column("fact")
    table.add_column("value", justify="right")
    for name, value in facts.items():
        label = name.replace("_", " ")
        if name == "name":
            continue
        if isinstance(value, dict):
            for key, part in value.items():
                table.add_row(f"{label}: {key}", _text(part, share=name == "text_coverage"))
        else:
            table.add_row(label, _text(value, share=name.endswith("_share") or name == "density"))
    return table


def _text(value: Any, *, share: bool) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, float):
        return f"{value:.2%}" if share else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
