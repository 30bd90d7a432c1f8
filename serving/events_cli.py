"""`recsys events`: the event log of a served model, and the offline store that is made from it.

Imports that are slow happen inside the commands, so that `recsys --help` answers at once.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from serving.bundles import find_bundle, namespace_of

if TYPE_CHECKING:
    from feature_store import OnlineStore

app = typer.Typer(help="The events of a served model: store them for training, look after them.", no_args_is_help=True)

Bundle = Annotated[Path, typer.Argument(help="As for `recsys serve`: a bundle, a run's directory, or a run's name.")]
Store = Annotated[
    str | None,
    typer.Option(
        help="URL of the store, as for `recsys serve`. Default: its own beside BUNDLE.", envvar="RECSYS_STORE"
    ),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Where its own store keeps its data. Default: `store` beside BUNDLE.")
]
Directory = Annotated[Path | None, typer.Option("--dir", help="The offline store. Default: `offline` beside BUNDLE.")]
Group = Annotated[str, typer.Option(help="Consumer group of the log; every offline store needs its own.")]


@app.command()
def consume(
    bundle: Bundle,
    store: Store = None,
    data_dir: DataDir = None,
    directory: Directory = None,
    group: Group = "offline",
    once: Annotated[bool, typer.Option("--once", help="End when all that is in the log is written.")] = False,
) -> None:
    """Write the event log to Parquet files, each event once, until Ctrl-C.

    For a store that runs elsewhere: `recsys serve` with a store of its own does this itself, unless its settings say
    `offline: {enabled: false}`.
    """
    from feature_store.consumer import OfflineConsumer
    from feature_store.log import EventLog
    from feature_store.offline_writer import OfflineWriter
    from serving.logs import configure_logging

    configure_logging()
    stop = threading.Event()
    with _opened(bundle, store, data_dir) as opened, OfflineWriter(_directory(bundle, directory)) as writer:
        consumer = OfflineConsumer(EventLog(opened, group=group), writer)
        if not once:
            for signal_number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signal_number, lambda *_: stop.set())
            typer.echo(f"writing events to {writer.directory}")
            consumer.run(stop)
        typer.echo(f"{writer.directory}: {consumer.catch_up()} new events, {_rows(writer.directory)} in all")


@app.command()
def status(
    bundle: Bundle,
    store: Store = None,
    data_dir: DataDir = None,
    directory: Directory = None,
    group: Group = "offline",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """What the store promises, how many events are stored offline, and how far behind that is."""
    from feature_store.log import EventLog

    with _opened(bundle, store, data_dir) as opened:
        capabilities = opened.capabilities()
        lag = EventLog(opened, group=group).lag()
    rows = _rows(_directory(bundle, directory))
    if as_json:
        facts = {
            "store": {**asdict(capabilities), "durable": capabilities.durable, "warning": capabilities.warning},
            "offline_events": rows,
            "lag": asdict(lag),
        }
        typer.echo(json.dumps(facts, indent=2))
        return
    survive = "survive the loss of power" if capabilities.durable else "may be lost"
    typer.echo(f"store: {capabilities.server} ({capabilities.deployment}); acknowledged events {survive}")
    if capabilities.warning is not None:
        typer.echo(f"warning: {capabilities.warning}")
    behind = f"{lag.entries} entries behind, the oldest {lag.seconds:.0f} s old" if lag.entries else "up to date"
    typer.echo(f"offline: {rows} events; {behind}")


@app.command()
def leave(bundle: Bundle, store: Store = None, data_dir: DataDir = None, group: Group = "offline") -> None:
    """Give up a consumer group whose offline store is no longer wanted, so that the log stops waiting for it."""
    from feature_store.log import EventLog

    with _opened(bundle, store, data_dir) as opened:
        EventLog(opened, group=group).leave()
    typer.echo(f"group {group!r} is gone; the log keeps the newest events without it")


@app.command()
def export(
    bundle: Bundle,
    out: Annotated[Path, typer.Argument(help="The Parquet file to write.", dir_okay=False)],
    directory: Directory = None,
) -> None:
    """Write all events of the offline store to one file, an interaction log for `data.source: files`."""
    from feature_store.offline import OfflineStore

    with _one_line_errors():
        typer.echo(f"{out}: {OfflineStore(_directory(bundle, directory)).export(out)} events")


@app.command()
def erase(
    bundle: Bundle,
    user_id: Annotated[str, typer.Argument(help="The user to forget.")],
    store: Store = None,
    data_dir: DataDir = None,
) -> None:
    """Erase all that is known of a user: at once online, and offline when `consume` runs."""
    with _opened(bundle, store, data_dir) as opened:
        known = opened.erase_user(user_id)
    typer.echo(f"user {user_id!r} is erased" if known else f"user {user_id!r} was unknown")


@app.command()
def expire(
    bundle: Bundle,
    before: Annotated[datetime, typer.Option(help="Delete what arrived before this date (UTC).", formats=["%Y-%m-%d"])],
    directory: Directory = None,
) -> None:
    """Delete old events from the offline store. Stop `consume` first; it is refused while that runs."""
    from feature_store.offline_writer import OfflineWriter

    with _one_line_errors(), OfflineWriter(_directory(bundle, directory)) as writer:
        typer.echo(f"{writer.directory}: {writer.expire(before.date())} events deleted, {_rows(writer.directory)} left")


@app.command()
def migrate(bundle: Bundle, store: Store = None, data_dir: DataDir = None) -> None:
    """Bring a store that an older version has written to the present key layout. Stop what uses it first."""
    with _opened(bundle, store, data_dir) as opened:
        typer.echo(f"{opened.migrate()} keys moved")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    from feature_store import StoreError
    from recsys.errors import ConfigError

    try:
        yield
    except StoreError as error:
        raise ConfigError(str(error)) from error


@contextmanager
def _opened(bundle: Path, url: str | None, data_dir: Path | None) -> Iterator[OnlineStore]:
    """The store of a bundle; its own server is left running if it runs, else started for as long as this takes."""
    from feature_store import EmbeddedServer, OnlineStore

    path = find_bundle(bundle)
    namespace = namespace_of(path)
    with _one_line_errors():
        if url is None:
            directory = data_dir or path.parent / "store"
            server = EmbeddedServer(directory)
            if server.is_running():
                url = f"unix://{quote(str(server.socket_path))}"
        store = (
            OnlineStore.embedded(directory, namespace=namespace)
            if url is None
            else OnlineStore.connect(url, namespace=namespace)
        )
        try:
            yield store
        finally:
            store.close()


def _directory(bundle: Path, directory: Path | None) -> Path:
    return directory or find_bundle(bundle).parent / "offline"


def _rows(directory: Path) -> int:
    """Events in an offline store; 0 when there is none yet."""
    from feature_store.manifest import Manifest

    manifest = Manifest.read(directory)
    return 0 if manifest is None else sum(file.rows for file in manifest.files_of("events"))
