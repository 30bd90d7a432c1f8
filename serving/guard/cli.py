"""The commands `recsys keys ...`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from serving.guard.keys import create_key, read_keys, revoke_key
from serving.guard.roles import Role

app = typer.Typer(help="Make, list and revoke the keys of the API.", no_args_is_help=True)

KeysFile = Annotated[Path, typer.Option("--file", help="Where their hashes are kept.", envvar="RECSYS_KEYS")]
_DEFAULT = Path("keys.json")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="The client that gets the key, such as `shop`.")],
    role: Annotated[Role, typer.Option(help="What it may do; each role includes the ones before it.")],
    file: KeysFile = _DEFAULT,
) -> None:
    """Make a key and print it, once: only its hash is kept.

    To change a key: make a second one under the same name, give it to the client, revoke the first. A running service
    follows the file.
    """
    typer.echo(create_key(file, name, role))


@app.command("list")
def list_keys(
    file: KeysFile = _DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show whose keys there are."""
    rows = [
        {"id": key.id, "name": key.name, "role": key.role, "created_at": key.created_at.isoformat(timespec="seconds")}
        for key in read_keys(file)
    ]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(f"{row['id']}  {row['role']:<5}  {row['created_at']}  {row['name']}")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="Its id, as `recsys keys list` shows it.")], file: KeysFile = _DEFAULT
) -> None:
    """Take a key away. A running service refuses it a few seconds later."""
    key = revoke_key(file, key_id)
    typer.echo(f"revoked {key.id} of {key.name}")
