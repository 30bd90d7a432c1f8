"""Runs a bundle and a store as an HTTP service in this process, until a signal ends it."""

from __future__ import annotations

import gc
import ipaddress
import signal
import socket
import time
from pathlib import Path
from types import FrameType

import typer
import uvicorn

from feature_store import OnlineStore, StoreError
from feature_store.offline import OfflineStore
from recsys.bundle import Bundle, read_manifest
from recsys.errors import ConfigError
from recsys.progress import console
from serving.app import create_app
from serving.bundles import find_bundle, namespace_of
from serving.guard.keys import KeyRing
from serving.lifecycle import Lifecycle
from serving.offline import OfflineExport
from serving.runtime import RecommenderRuntime
from serving.settings import ServingSettings
from serving.slate_log import SlateLog
from serving.tracing import otlp_provider

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
    settings: ServingSettings | None = None,
    keys: Path | None = None,
    is_open: bool = False,
) -> None:
    """Serve until a signal ends it; prints the URL on stdout once it answers.

    With `onnx`, what `recsys export` made of the bundle's model, ONNX Runtime decodes. With `forget_after_days`, the
    store drops users who did nothing for so long.

    Args:
        path: the bundle, or where one is.
        host: the address to listen on.
        port: 0 takes a free one.
        store_url: a store that runs elsewhere.
        data_dir: where a store of its own keeps its data.
        onnx: see above.
        settings: sizes and times.
        keys: the file of API keys; needed on an address that others can reach.
        is_open: go without keys even there.

    Raises:
        ArtifactError: the bundle or the export is missing or damaged, they do not belong together, or the model cannot
            answer.
        ConfigError: the address is taken, or the store cannot be used.
    """
    if store_url is not None and data_dir is not None:
        raise ConfigError("serve: --store and --data-dir exclude each other; a remote store keeps its own data")
    path = find_bundle(path)
    settings = settings or ServingSettings()
    provider = otlp_provider(settings.traces) if settings.traces.enabled else None
    name = read_manifest(path).name
    with _listen(host, port) as listener:
        address = listener.getsockname()[0]
        ring = _keys(address, keys, is_open)
        console.print(f"loading {path}", highlight=False)
        bundle = Bundle.load(path)
        runtime = RecommenderRuntime.from_bundle(bundle, onnx, search_by=settings.search.by)
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
        offline = _offline(store, path, settings, is_own=store_url is None)
        slates = SlateLog(store) if settings.offline.slates else None
        try:
            api = create_app(
                runtime,
                store,
                settings,
                seed=lambda: store.seed_histories(bundle.histories_version, bundle.histories()),
                keys=ring,
                tracer_provider=provider,
                loopback_only=ring is None and not is_open,
                bundles=_directory_of_bundles(path),
                offline=offline,
                slates=slates,
                outcomes=OfflineStore(_offline_directory(path, settings)),
            )
            shown_host = f"[{host}]" if ":" in host else host
            url = f"http://{shown_host}:{listener.getsockname()[1]}"
            ready = f"serving {name} (model {runtime.info.model_version}, {runtime.catalog.num_items} items) at {url}"
            config = uvicorn.Config(
                api, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=_GRACE_S
            )
            _Server(config, ready, api.state.lifecycle, settings.guard.drain_s).run(sockets=[listener])
        finally:
            # The app does so too, but not when its start fails or a second Ctrl-C cuts its end short.
            for writer in (slates, offline):
                if writer is not None:
                    writer.stop()
            store.close()


class _Server(uvicorn.Server):
    """Says where it is once it answers, and after SIGTERM goes on answering while it is taken out of use.

    Args:
        config: of uvicorn.
        ready: what to say.
        lifecycle: of the app; it is `draining` from the signal on.
        drain_s: how long to go on after SIGTERM. A second signal, or Ctrl-C, ends it at once.
    """

    def __init__(self, config: uvicorn.Config, ready: str, lifecycle: Lifecycle, drain_s: float) -> None:
        super().__init__(config)
        self._ready = ready
        self._lifecycle = lifecycle
        self._drain_s = drain_s
        self._ends_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end."""
        self._lifecycle.phase = "draining"
        if sig == signal.SIGTERM and self._ends_at is None and self._drain_s > 0:
            self._ends_at = time.monotonic() + self._drain_s
            return
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """End when the time to drain is over; called ten times a second."""
        if self._ends_at is not None and time.monotonic() >= self._ends_at:
            super().handle_exit(signal.SIGTERM, None)
            self._ends_at = None
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port, then print the URL."""
        # Models and libraries stay for good. Going through them again in each full collection would hold up all
        # requests for as long as hundreds of milliseconds.
        gc.collect()
        gc.freeze()
        await super().startup(sockets)
        if self.started:
            typer.echo(self._ready)


def _directory_of_bundles(path: Path) -> Path:
    """Where further models are loaded from: beside the run of the bundle at `path`, or beside the bundle."""
    path = path.resolve()
    return path.parent.parent if path.name == "bundle" else path.parent


def _offline(store: OnlineStore, path: Path, settings: ServingSettings, *, is_own: bool) -> OfflineExport | None:
    """What writes the offline store of the bundle at `path`; None: not this process."""
    wanted = settings.offline.enabled
    if not (is_own if wanted is None else wanted):
        return None
    return OfflineExport(store, _offline_directory(path, settings))


def _offline_directory(path: Path, settings: ServingSettings) -> Path:
    """Where the offline store of the bundle at `path` is."""
    return settings.offline.directory or path.parent / "offline"


def _keys(address: str, keys: Path | None, is_open: bool) -> KeyRing | None:
    """The keys to serve with; None: without.

    Raises:
        ConfigError: keys are missing or unwanted there, or the file is damaged.
    """
    if keys is not None and is_open:
        raise ConfigError("serve: --keys and --no-auth exclude each other")
    if keys is not None:
        return KeyRing(keys)
    if not is_open and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        raise ConfigError(
            f"serve: others can reach {address}, so keys are needed: recsys keys create NAME --role read, then "
            "--keys keys.json; or --no-auth, if something in front of the service asks who is calling"
        )
    return None


def _listen(host: str, port: int) -> socket.socket:
    """Take the address before anything slow is done."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(f"serve: cannot listen on {host}:{port}: {error}; choose another --port or --host") from error
    return listener
