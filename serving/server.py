"""Runs a bundle and a store as an HTTP service in this process, until a signal ends it."""

from __future__ import annotations

import socket
from pathlib import Path

import typer
import uvicorn

from feature_store import OnlineStore, StoreError
from recsys.bundle import Bundle, read_manifest
from recsys.errors import ConfigError
from recsys.progress import console
from serving.app import create_app
from serving.bundles import find_bundle, namespace_of
from serving.runtime import RecommenderRuntime

_GRACE_S = 10


def run_server(
    path: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    store_url: str | None = None,
    data_dir: Path | None = None,
    onnx: Path | None = None,
    forget_after_days: int | None = None,
) -> None:
    """Serve until a signal ends it; prints the URL on stdout once it answers.

    With `onnx`, what `recsys export` made of the bundle's model, ONNX Runtime decodes. With `forget_after_days`, the
    store drops users who did nothing for so long.

    Raises:
        ArtifactError: the bundle or the export is missing or damaged, they do not belong together, or the model cannot
            answer.
        ConfigError: the address is taken, or the store cannot be used.
    """
    if store_url is not None and data_dir is not None:
        raise ConfigError("serve: --store and --data-dir exclude each other; a remote store keeps its own data")
    path = find_bundle(path)
    name = read_manifest(path).name
    with _listen(host, port) as listener:
        console.print(f"loading {path}", highlight=False)
        bundle = Bundle.load(path)
        runtime = RecommenderRuntime.from_bundle(bundle, onnx)
        runtime.warm_up()
        namespace = namespace_of(path)
        idle_lifetime_s = None if forget_after_days is None else forget_after_days * 86_400
        try:
            if store_url is not None:
                store = OnlineStore.connect(store_url, namespace=namespace, idle_lifetime_s=idle_lifetime_s)
            else:
                store = OnlineStore.embedded(
                    data_dir or path.parent / "store", namespace=namespace, idle_lifetime_s=idle_lifetime_s
                )
        except StoreError as error:
            raise ConfigError(str(error)) from error
        try:
            api = create_app(
                runtime,
                store,
                seed=lambda: store.seed_histories(bundle.histories_version, bundle.histories()),
                bundles=_directory_of_bundles(path),
            )
            shown_host = f"[{host}]" if ":" in host else host
            url = f"http://{shown_host}:{listener.getsockname()[1]}"
            ready = f"serving {name} (model {runtime.info.model_version}, {runtime.catalog.num_items} items) at {url}"
            config = uvicorn.Config(
                api, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=_GRACE_S
            )
            _Server(config, ready).run(sockets=[listener])
        finally:
            # The app closes it too, but not when its start fails or a second Ctrl-C cuts its end short.
            store.close()


class _Server(uvicorn.Server):
    """Says where it is once it answers."""

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port, then print the URL."""
        await super().startup(sockets)
        if self.started:
            typer.echo(self._ready)


def _directory_of_bundles(path: Path) -> Path:
    """Where further models are loaded from: beside the run of the bundle at `path`, or beside the bundle."""
    path = path.resolve()
    return path.parent.parent if path.name == "bundle" else path.parent


def _listen(host: str, port: int) -> socket.socket:
    """Take the address before anything slow is done."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(f"serve: cannot listen on {host}:{port}: {error}; choose another --port or --host") from error
    return listener
