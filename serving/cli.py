"""The command `recsys serve`. The service itself is in `serving.server`, `recsys events` in `serving.events_cli`.

Imports that load PyTorch happen inside the command, so that `recsys --help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serving import events_cli

app = typer.Typer(help="Serve a trained model.")
app.add_typer(events_cli.app, name="events")


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help="A bundle, a run's directory, or a run's name under runs/.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on. There is no login: mind who can reach it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    store: Annotated[
        str | None,
        typer.Option(
            help="redis:// URL of a store that runs elsewhere. Default: a Valkey server of its own.",
            envvar="RECSYS_STORE",
        ),
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option(help="Decode with ONNX Runtime: the directory that `recsys export` made, RUN/export/onnx."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where its own store keeps its data. Default: `store` beside the bundle.")
    ] = None,
    forget_after_days: Annotated[
        int | None,
        typer.Option(help="Forget users who did nothing for so many days: history, events, profile.", min=1),
    ] = None,
) -> None:
    """Serve BUNDLE: the API under /v1, its documentation at /docs, the dashboard at /.

    Ends on Ctrl-C after the requests in progress. Events that were acknowledged are on disk.
    """
    from serving.logs import configure_logging
    from serving.server import run_server

    configure_logging()
    run_server(
        bundle, host=host, port=port, store_url=store, data_dir=data_dir, onnx=onnx, forget_after_days=forget_after_days
    )
