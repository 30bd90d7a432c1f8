"""Runs a bundle and a store as an HTTP service until a signal ends it, in this process or, by `serving.workers`, in
several."""

from __future__ import annotations

import gc
import ipaddress
import math
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import typer
import uvicorn
from fastapi import FastAPI

from feature_store import OnlineStore, StoreError
from feature_store.offline import OfflineStore
from recsys.bundle import Bundle, read_manifest
from recsys.errors import ConfigError
from recsys.extras import require_extra
from recsys.generator.gpu import Device
from recsys.progress import console
from serving.app import create_app
from serving.bundles import find_bundle, namespace_of
from serving.guard.keys import KeyRing
from serving.guard.limiter import Buckets
from serving.guard.settings import GuardSettings
from serving.lifecycle import Lifecycle
from serving.offline import OfflineExport
from serving.private_copies import PrivateCopies, read
from serving.runtime import RecommenderRuntime
from serving.seeding import Seeding
from serving.settings import ServingSettings
from serving.slate_writer import SlateWriter
from serving.tracing import otlp_provider
from serving.warming import warm_up

_GRACE_S = 10
_TURNS_A_SECOND = 10
"""Of uvicorn's main loop, at most."""
_CLOSE = (b"connection", b"close")


@dataclass(frozen=True, kw_only=True)
class Service:
    """What is served, and how: all that a process of the service needs to know."""

    path: Path
    """Of the bundle."""
    copies: PrivateCopies
    """Bundles are read from these."""
    pinned: Path
    """The copy of the bundle at `path` that every process of the service begins with, whatever is there later."""
    name: str
    """Of the run."""
    namespace: str
    """Of the store's keys."""
    settings: ServingSettings
    keys: KeyRing | None
    is_open: bool
    onnx: Path | None
    idle_lifetime_s: int | None

    def load(self) -> tuple[Bundle, RecommenderRuntime]:
        """The bundle and its model, warmed up.

        Raises:
            ArtifactError: the bundle or the export is missing or damaged, they do not belong together, or the model
                cannot answer.
            ConfigError: there is no such device.
        """
        bundle = read(self.pinned, self.path)
        runtime = RecommenderRuntime.from_bundle(
            bundle, self.onnx, search_by=self.settings.search.by, device=self.settings.device
        )
        warm_up(runtime)
        return bundle, runtime

    def app(
        self,
        bundle: Bundle,
        runtime: RecommenderRuntime,
        store: OnlineStore,
        *,
        offline: OfflineExport | None = None,
        slates: SlateWriter | None = None,
        buckets: Buckets | None = None,
    ) -> FastAPI:
        """The API over a loaded model and a store.

        Args:
            bundle: the model's.
            runtime: the model.
            store: users and events.
            offline: writes the offline store; None: another process does, or nobody.
            slates: takes the lists that were shown.
            buckets: of the clients' rates, where they are shared with other processes.
        """
        provider = otlp_provider(self.settings.traces) if self.settings.traces.enabled else None
        return create_app(
            runtime,
            store,
            self.settings,
            seeding=Seeding(store, bundle.histories_version, bundle.users),
            keys=self.keys,
            tracer_provider=provider,
            loopback_only=self.keys is None and not self.is_open,
            bundles=_directory_of_bundles(self.path),
            read_bundle=self.copies.load,
            offline=offline,
            slates=slates,
            outcomes=OfflineStore(self.offline_directory),
            buckets=buckets,
        )

    def sharing_cores(self, num_workers: int) -> Service:
        """The service as one of so many workers runs it: with its share of the cores, unless the settings name one."""
        if "model_threads" in self.settings.model_fields_set:
            return self
        threads = max(1, len(os.sched_getaffinity(0)) // num_workers)
        return replace(self, settings=self.settings.model_copy(update={"model_threads": threads}))

    def shown(self, runtime: RecommenderRuntime) -> str:
        """What is served, for people."""
        return f"{self.name} (model {runtime.info.model_version}, {runtime.catalog.num_items} items)"

    def connect(self, store_url: str) -> OnlineStore:
        """The store that runs elsewhere.

        Raises:
            StoreConfigError: the URL is malformed.
        """
        return OnlineStore.connect(store_url, namespace=self.namespace, idle_lifetime_s=self.idle_lifetime_s)

    @property
    def offline_directory(self) -> Path:
        """Where the offline store is."""
        return self.settings.offline.directory or self.path.parent / "offline"

    def writes_offline(self, *, owns_store: bool) -> bool:
        """Whether this service writes the offline store, and no other program does."""
        wanted = self.settings.offline.enabled
        return owns_store if wanted is None else wanted


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
    workers: int | None = None,
    device: Device | None = None,
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
        workers: processes that answer, instead of the settings' number; 0: one a core.
        device: what the generator searches on, instead of the settings'.
        keys: the file of API keys; needed on an address that others can reach.
        is_open: go without keys even there.

    Raises:
        ArtifactError: the bundle or the export is missing or damaged, they do not belong together, or the model cannot
            answer.
        ConfigError: the address is taken, the store cannot be used, there is no such device, or an extra is not
            installed.
    """
    if store_url is not None and data_dir is not None:
        raise ConfigError("serve: --store and --data-dir exclude each other; a remote store keeps its own data")
    settings = settings or ServingSettings()
    if device is not None:
        settings = settings.model_copy(update={"device": device})
    if settings.traces.enabled:
        require_extra("otel", needed_by="traces.enabled")
    path = find_bundle(path)
    num_workers = settings.workers if workers is None else workers
    num_workers = num_workers or len(os.sched_getaffinity(0))
    name = read_manifest(path).name
    with listen(host, port) as listener, PrivateCopies() as copies:
        service = Service(
            path=path,
            copies=copies,
            pinned=copies.take(path),
            name=name,
            namespace=namespace_of(path),
            settings=settings,
            keys=_keys(listener.getsockname()[0], keys, is_open),
            is_open=is_open,
            onnx=onnx,
            idle_lifetime_s=None if forget_after_days is None else forget_after_days * 86_400,
        )
        shown_host = f"[{host}]" if ":" in host else host
        url = f"http://{shown_host}:{listener.getsockname()[1]}"
        console.print(f"loading {path}", highlight=False)
        data_dir = data_dir or path.parent / "store"
        if num_workers == 1:
            _run_alone(service, listener, url, store_url, data_dir)
        else:
            # Imported here: one process needs none of it.
            from serving.workers.service import run_workers

            run_workers(service, num_workers, listener, url, store_url, data_dir)


def _run_alone(service: Service, listener: socket.socket, url: str, store_url: str | None, data_dir: Path) -> None:
    """Serve in this process."""
    bundle, runtime = service.load()
    try:
        if store_url is not None:
            store = service.connect(store_url)
        else:
            store = OnlineStore.embedded(data_dir, namespace=service.namespace, idle_lifetime_s=service.idle_lifetime_s)
    except StoreError as error:
        raise ConfigError(str(error)) from error
    writes_offline = service.writes_offline(owns_store=store_url is None)
    offline = OfflineExport(store, service.offline_directory) if writes_offline else None
    slates = SlateWriter(store) if service.settings.offline.slates else None
    try:
        api = service.app(bundle, runtime, store, offline=offline, slates=slates)
        ready = f"serving {service.shown(runtime)} at {url}"
        HttpServer(api, lambda: typer.echo(ready), service.settings.guard).run(sockets=[listener])
    finally:
        # The app does so too, but not when its start fails or a second Ctrl-C cuts its end short.
        for writer in (slates, offline):
            if writer is not None:
                writer.stop()
        store.close()


class HttpServer(uvicorn.Server):
    """Says so once it answers, and after SIGTERM goes on answering while it is taken out of use.

    Args:
        api: what is served; its lifecycle is `draining` from the signal on.
        on_ready: called once it answers.
        guard: says how long to go on after SIGTERM. A second signal, or Ctrl-C, ends it at once.
    """

    def __init__(self, api: FastAPI, on_ready: Callable[[], object], guard: GuardSettings) -> None:
        super().__init__(
            uvicorn.Config(
                api,
                # Not uvloop, where it is installed: an answer took 7.8 ms of a processor with it, 7.0 without (closed
                # loop of `recsys bench serve`, in turns).
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_GRACE_S,
                timeout_keep_alive=guard.keep_alive_s,
            )
        )
        self._on_ready = on_ready
        self._lifecycle: Lifecycle = api.state.lifecycle
        # Not by the clock: one that is held up tells nobody meanwhile that it drains.
        self._turns_to_drain = math.ceil(guard.drain_s * _TURNS_A_SECOND)
        self._turns_left: int | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end."""
        self._lifecycle.phase = "draining"
        if sig == signal.SIGTERM and self._turns_left is None and self._turns_to_drain > 0:
            self._turns_left = self._turns_to_drain
            return
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """End when the time to drain is over; `_TURNS_A_SECOND` calls it."""
        if self._turns_left is not None:
            self._turns_left -= 1
            if self._turns_left == 0:
                super().handle_exit(signal.SIGTERM, None)
        ends = await super().on_tick(counter)
        # Load balancers look elsewhere for new connections only; clients stay on those that they have.
        if self._lifecycle.phase == "draining" and _CLOSE not in self.server_state.default_headers:
            self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
        return ends

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port, then say so."""
        # Models and libraries stay for good. Going through them again in each full collection would hold up all
        # requests for as long as hundreds of milliseconds.
        gc.collect()
        gc.freeze()
        await super().startup(sockets)
        if self.started:
            self._on_ready()


def _directory_of_bundles(path: Path) -> Path:
    """Where further models are loaded from: beside the run of the bundle at `path`, or beside the bundle."""
    path = path.resolve()
    return path.parent.parent if path.name == "bundle" else path.parent


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


def listen(host: str, port: int) -> socket.socket:
    """Take the address before anything slow is done.

    Raises:
        ConfigError: it is taken, or is none of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
        # Connections inherit it. asyncio sets it only on sockets that it makes: without, the body of an answer waits
        # for the acknowledgement of its head, which clients put off by 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        raise ConfigError(f"serve: cannot listen on {host}:{port}: {error}; choose another --port or --host") from error
    return listener
