"""The commands `recsys serve`, `events`, `import`, `intents`, `keys` and `plan`. The service is in `serving.server`.

Imports that load PyTorch happen inside the command, so that `recsys --help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from serving import events_cli, import_cli, intents_cli
from serving.guard import cli as keys_cli
from serving.sizing.cli import plan_command

app = typer.Typer(help="Serve a trained model.")
app.add_typer(events_cli.app, name="events")
app.add_typer(import_cli.app, name="import")
app.add_typer(intents_cli.app, name="intents")
app.add_typer(keys_cli.app, name="keys")
app.command("plan")(plan_command)


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help="A bundle, a run's directory, or a run's name under runs/.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on. One that others can reach needs --keys.")
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
    keys: Annotated[
        Path | None,
        typer.Option(
            help="The file of keys that `recsys keys create` made: then no call without one.", envvar="RECSYS_KEYS"
        ),
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="No keys, though others can reach the address: something else asks.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that answer, over one port; 0: one a core. Default: that of --settings, 1.", min=0
        ),
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None,
        typer.Option(help="What the generator searches on; cuda: the first GPU. Default: that of --settings, cpu."),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(help="A YAML file of sizes, times and limits: serving.settings.ServingSettings."),
    ] = None,
) -> None:
    """Serve BUNDLE: the API under /v1, its documentation at /docs, the dashboard at /.

    Ends on Ctrl-C after the requests in progress. Events that were acknowledged are on disk.
    """
    from serving.logs import configure_logging
    from serving.server import run_server
    from serving.settings import load_settings

    configure_logging()
    run_server(
        bundle,
        host=host,
        port=port,
        store_url=store,
        data_dir=data_dir,
        onnx=onnx,
        settings=None if settings is None else load_settings(settings),
        workers=workers,
        device=device,
        keys=keys,
        is_open=no_auth,
        forget_after_days=forget_after_days,
    )
