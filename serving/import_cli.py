"""`recsys import`: items and events of a file into a running service.

Imports that are slow happen inside the commands, so that `recsys --help` answers at once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from serving.client import Client
    from serving.importing import RowT

app = typer.Typer(help="Bring items and events of a file into a running service.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="A .parquet, .csv or .ndjson file; the last two also with .gz.")]
Url = Annotated[str, typer.Option(help="Where the service is.", envvar="RECSYS_URL")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        help="A file with an API key of role write, where the service asks for one.", envvar="RECSYS_KEY_FILE"
    ),
]
Rejects = Annotated[
    Path | None,
    typer.Option(help="Where rows go that were refused, with reasons. Default: FILE.rejects.ndjson.", dir_okay=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]

_OUTCOMES = {"items": ("created", "changed", "unchanged"), "events": ("accepted", "duplicates")}
_ATTEMPTS, _LONGEST_S = 8, 30.0
"""An import can wait: a service that restarts is back within these."""


@app.command()
def items(
    file: File,
    url: Url = "http://127.0.0.1:8000",
    key_file: KeyFile = None,
    separator: Annotated[str, typer.Option(help="Divides categories that are written as one text.")] = "|",
    rejects: Rejects = None,
    as_json: AsJson = False,
) -> None:
    """Add or replace the items of FILE: `item_id`, `title`, `categories`, and further columns of the catalogue.

    Sending a file again changes nothing. Ends with 1 if a row was refused.
    """
    from serving.importing import item_of, post_items

    _run(
        file, "items", url, key_file, rejects, as_json, lambda values: item_of(values, separator=separator), post_items
    )


@app.command()
def events(
    file: File,
    url: Url = "http://127.0.0.1:8000",
    key_file: KeyFile = None,
    rejects: Rejects = None,
    as_json: AsJson = False,
) -> None:
    """Send the events of FILE: `user_id`, `item_id`, and `event_type`, `timestamp`, `event_id` where it has them.

    Sending a file again counts nothing twice: where a row has no `event_id` it is made of the others, so that rows
    that are alike are one event. Ends with 1 if a row was refused.
    """
    from serving.importing import event_of, post_events

    _run(file, "events", url, key_file, rejects, as_json, event_of, post_events)


def _run(
    file: Path,
    what: str,
    url: str,
    key_file: Path | None,
    rejects: Path | None,
    as_json: bool,
    parse: Callable[[dict[str, Any]], RowT],
    post: Callable[[Client], Callable[[Sequence[RowT]], tuple[Counter[str], dict[int, str]]]],
) -> None:
    from recsys.errors import ConfigError
    from recsys.progress import progress_bar
    from serving.client import Client, ClientError, Retry
    from serving.importing import Rejected, count_rows, read_rows, send

    key = None if key_file is None else _key(key_file)
    rejects = rejects or file.with_name(f"{file.name}.rejects.ndjson")
    total = count_rows(file)
    rejects.unlink(missing_ok=True)

    def reject(refused: Rejected) -> None:
        with rejects.open("a") as lines:
            lines.write(f"{refused.to_json()}\n")

    try:
        with (
            Client(url, key, timeout_s=60, retry=Retry(attempts=_ATTEMPTS, longest_s=_LONGEST_S)) as client,
            progress_bar(what, total) as advance,
        ):
            counts = send(read_rows(file), parse, post(client), reject=reject, advance=advance)
    except ClientError as error:
        raise ConfigError(f"import: {error}; what was sent is in, start again to go on") from error
    found = {outcome: counts[outcome] for outcome in (*_OUTCOMES[what], "rejected")}
    is_whole = found["rejected"] == 0
    if as_json:
        typer.echo(json.dumps({**found, "rejects": None if is_whole else str(rejects)}))
    else:
        listed = ", ".join(f"{count} {outcome}" for outcome, count in found.items())
        typer.echo(f"{what}: {listed}" + ("" if is_whole else f"; see {rejects}"))
    if not is_whole:
        raise typer.Exit(1)


def _key(file: Path) -> str:
    from recsys.errors import ConfigError

    try:
        key = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--key-file: {file} cannot be read: {error}") from error
    if not key or len(key.split()) != 1:
        raise ConfigError(f"--key-file: {file} must hold one API key and nothing else; `recsys keys create` prints one")
    return key
