"""What the processes of a service with several workers do: load, answer, and write the offline store."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import structlog
import typer
from fastapi import FastAPI

from feature_store import EmbeddedServer, OnlineStore, StoreError
from recsys.errors import ConfigError
from serving.context import ServingContext
from serving.guard.settings import GuardSettings
from serving.metrics import Metrics
from serving.offline import OfflineExport
from serving.server import HttpServer, Service
from serving.slate_writer import SlateWriter
from serving.workers.buckets import SharedBuckets
from serving.workers.channel import receive_now, send_now
from serving.workers.child import Main
from serving.workers.desired import DesiredModels
from serving.workers.member import FleetMember, parts_of
from serving.workers.supervisor import Supervisor
from serving.workers.turns import Acceptor, OpenConnections

_log = structlog.get_logger(__name__)


def run_workers(
    service: Service, num_workers: int, listener: socket.socket, url: str, store_url: str | None, data_dir: Path
) -> None:
    """Serve with `num_workers` processes beside this one, until a signal ends it.

    Args:
        service: what is served.
        num_workers: processes that answer.
        listener: the port.
        url: of the port, for people.
        store_url: a store that runs elsewhere.
        data_dir: where a store of its own keeps its data; this process alone starts and ends it.

    Raises:
        RecsysError: a worker cannot start; all that had started has ended.
    """
    service = service.sharing_cores(num_workers)
    server: EmbeddedServer | None = None
    owns_server = False
    try:
        if store_url is None:
            server = EmbeddedServer(data_dir)
            socket_path = server.socket_path
        else:
            service.connect(store_url).close()  # a malformed URL is found before anything is loaded
    except StoreError as error:
        raise ConfigError(str(error)) from error

    def open_store() -> OnlineStore:
        if store_url is not None:
            return service.connect(store_url)
        return OnlineStore.attended(socket_path, namespace=service.namespace, idle_lifetime_s=service.idle_lifetime_s)

    def start_store() -> None:
        nonlocal owns_server
        if server is None:
            return
        owns_server = True
        try:
            server.ensure_running()
            store = open_store()
            store.migrate()
            store.close()
        except StoreError as error:
            raise ConfigError(str(error)) from error

    guard = service.settings.guard
    limited = service.keys is not None and guard.requests_per_second is not None
    buckets = SharedBuckets(guard.burst) if limited else None
    worker = _Worker(service, listener, OpenConnections(num_workers), open_store, buckets)
    helpers: dict[str, Main] = {}
    if service.writes_offline(owns_store=store_url is None):
        helpers["offline"] = _OfflineWriter(open_store, service.offline_directory)
    try:
        Supervisor(
            worker,
            num_workers,
            listener=listener,
            drain_s=guard.drain_s,
            server=server,
            before_serving=start_store,
            on_ready=lambda shown: typer.echo(f"serving {shown} at {url}, {num_workers} workers"),
            helpers=helpers,
        ).run()
    finally:
        if server is not None and owns_server:  # else it may be that of a service which runs
            server.stop()


class _Worker:
    """Answers requests.

    Args:
        service: what is served.
        listener: the port, which the workers share.
        connections: how many each of them has.
        open_store: connects to the store.
        buckets: of the clients' rates.
    """

    def __init__(
        self,
        service: Service,
        listener: socket.socket,
        connections: OpenConnections,
        open_store: Callable[[], OnlineStore],
        buckets: SharedBuckets | None,
    ) -> None:
        self._service = service
        self._listener = listener
        self._connections = connections
        self._open_store = open_store
        self._buckets = buckets

    def __call__(self, connection: socket.socket, name: str, models: DesiredModels | None) -> None:
        """See `serving.workers.child.Main`."""
        try:
            bundle, runtime = self._service.load()
            send_now(
                connection,
                {
                    "kind": "loaded",
                    "shown": self._service.shown(runtime),
                    "model_version": runtime.info.model_version,
                },
            )
            if receive_now(connection) is None:
                return
            store = self._open_store()
            api = self._service.app(
                bundle,
                runtime,
                store,
                slates=SlateWriter(store) if self._service.settings.offline.slates else None,
                buckets=self._buckets,
            )
            guard = self._service.settings.guard
            _WorkerServer(api, connection, name, models, self._connections, guard).run(sockets=[self._listener])
        except Exception as error:
            _log.exception("the worker ends")
            send_now(connection, {"kind": "failed", "error": parts_of(error)})
            sys.exit(1)


class _WorkerServer(HttpServer):
    """The server of a worker, which is a member of the fleet.

    Args:
        api: what is served.
        connection: to the supervisor.
        name: of the worker.
        models: that it has to hold before it answers.
        connections: how many each worker has.
        guard: see `HttpServer`.
    """

    def __init__(
        self,
        api: FastAPI,
        connection: socket.socket,
        name: str,
        models: DesiredModels | None,
        connections: OpenConnections,
        guard: GuardSettings,
    ) -> None:
        super().__init__(api, lambda: None, guard)
        self._connections = connections
        self._place = int(name)
        self._acceptors: list[Acceptor] = []
        self._context: ServingContext = api.state.context
        self._desired = models
        self._member = FleetMember(connection, name, self._context.metrics, self._context.models, self._leave)
        self._context.fleet = self._member

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Be as the other workers are, open the port, and say so."""
        if self._desired is not None:
            await self._desired.bring_about(self._context.models)
        await super().startup([])
        if not self.started:
            return
        self._acceptors = [
            Acceptor(
                listener, self._connections, self._place, lambda: len(self.server_state.connections), self._protocol
            )
            for listener in sockets or ()
        ]
        await self._member.start()

    async def on_tick(self, counter: int) -> bool:
        """Say how many connections there are, of which some have ended."""
        for acceptor in self._acceptors:
            acceptor.publish()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, then end."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors = []
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    def _leave(self) -> None:
        """The supervisor is gone: another one will want the port."""
        self._lifecycle.phase = "draining"
        self.should_exit = True


class _OfflineWriter:
    """Writes the offline store.

    Args:
        open_store: connects to the store.
        directory: of the offline store.
    """

    def __init__(self, open_store: Callable[[], OnlineStore], directory: Path) -> None:
        self._open_store = open_store
        self._directory = directory

    def __call__(self, connection: socket.socket, name: str, models: DesiredModels | None) -> None:
        """See `serving.workers.child.Main`."""
        asyncio.run(self._run(connection, name))

    async def _run(self, connection: socket.socket, name: str) -> None:
        ends = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ends.set)
        store, metrics = self._open_store(), Metrics(None)
        offline = OfflineExport(store, self._directory)
        await asyncio.to_thread(offline.start, metrics)
        member = FleetMember(connection, name, metrics, None, ends.set)
        await member.start()
        await ends.wait()
        await asyncio.to_thread(offline.stop)
        store.close()
