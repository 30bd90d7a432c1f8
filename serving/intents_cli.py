"""`recsys intents`: makes the tags and explanations that a bundle is served with.

Imports that are slow happen inside the command, so that `recsys --help` answers at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.bundles import find_bundle

app = typer.Typer(help="Tags of users' interests and explanations, written in advance.", no_args_is_help=True)


@app.callback()
def _program() -> None:
    pass


@app.command()
def build(
    bundle: Annotated[
        Path, typer.Argument(help="As for `recsys serve`: a bundle, a run's directory, or a run's name.")
    ],
    settings: Annotated[
        Path | None,
        typer.Option(
            help="A YAML file of sizes, and of the chat model that writes: "
            "recsys.profile.intents.config.IntentBuildConfig."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Mine the histories of BUNDLE for interests, find tags for them, and write why each tag's best items fit.

    What breaks the rubric is counted and left out. The bundle gets a new version: a running service loads it with
    `POST /v1/admin/models:load`. A bundle that is built again needs this again.
    """
    from recsys.bundle import make_intents
    from recsys.profile.intents.config import IntentBuildConfig, IntentConfig
    from recsys.profile.writers import ChatWriter

    config = IntentBuildConfig() if settings is None else IntentBuildConfig.load(settings)
    path = find_bundle(bundle)
    writer = None if config.chat is None else ChatWriter(config.chat, "chat", label="intents")
    sizes = IntentConfig.model_validate(config.model_dump(exclude={"chat"}))
    table = make_intents(path, sizes, writer, "rules" if config.chat is None else config.chat.model)
    if as_json:
        typer.echo(json.dumps({"bundle": str(path), "explainer": table.explainer, **table.metrics}, indent=2))
        return
    _print(path, table.explainer, table.metrics)


def _print(path: Path, explainer: str, metrics: Mapping[str, Any]) -> None:
    typer.echo(
        f"{path}: {metrics['tags']} tags, {_percent(metrics['tag_validity'])} of them valid; "
        f"{metrics['tags_per_user']:.1f} a user; {_percent(metrics['items_with_a_tag'])} of the items fit one"
    )
    kept = ", ".join(f"{name} {_percent(share)}" for name, share in metrics["kept"].items())
    passed = _percent(metrics["explanations_passed"])
    typer.echo(f"{metrics['explanations']} explanations by {explainer}, {passed} pass the rubric: {kept}")


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"
