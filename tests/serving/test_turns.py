"""Which of several workers accepts a connection."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterator

import pytest

from serving.workers import turns
from serving.workers.turns import Acceptor, OpenConnections


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


class Worker:
    """A worker in this process, over a copy of the listener, that has `before` connections already."""

    def __init__(
        self,
        listener: socket.socket,
        connections: OpenConnections,
        place: int,
        *,
        before: int = 0,
        protocol: Callable[[], asyncio.Protocol] = asyncio.Protocol,
    ) -> None:
        self.accepted = 0
        self._protocol = protocol
        self._listener = listener.dup()
        self._acceptor = Acceptor(
            self._listener, connections, place, lambda: before + self.accepted, self._count_protocol
        )

    def _count_protocol(self) -> asyncio.Protocol:
        self.accepted += 1
        return self._protocol()

    def close(self) -> None:
        self._acceptor.close()
        self._listener.close()


def _connect(listener: socket.socket, count: int) -> list[socket.socket]:
    return [socket.create_connection(listener.getsockname()) for _ in range(count)]


async def _accept_all(workers: list[Worker], count: int) -> None:
    async with asyncio.timeout(20):
        while sum(worker.accepted for worker in workers) < count:
            await asyncio.sleep(0)


def _run(listener: socket.socket, make: Callable[[], list[Worker]], count: int) -> list[int]:
    """What each worker has accepted of so many connections that come at once."""

    async def run() -> list[int]:
        workers = make()
        clients = _connect(listener, count)
        await _accept_all(workers, count)
        for worker in workers:
            worker.close()
        for client in clients:
            client.close()
        return [worker.accepted for worker in workers]

    return asyncio.run(run())


def test_connections_of_a_burst_are_shared_evenly(listener: socket.socket) -> None:
    shared = OpenConnections(2)
    assert _run(listener, lambda: [Worker(listener, shared, place) for place in range(2)], 20) == [10, 10]


def test_a_worker_with_fewer_connections_comes_first_until_it_has_as_many(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_COURTESY_S", 60.0)
    shared = OpenConnections(2)
    assert _run(listener, lambda: [Worker(listener, shared, 0, before=20), Worker(listener, shared, 1)], 6) == [0, 6]


def test_nobody_waits_long_for_a_worker_that_does_not_accept(listener: socket.socket) -> None:
    shared = OpenConnections(2)
    shared.publish(1, 0)  # and then it hangs
    assert _run(listener, lambda: [Worker(listener, shared, 0, before=3)], 4) == [4]


def test_nobody_waits_at_all_for_a_worker_that_left(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_COURTESY_S", 60.0)
    shared = OpenConnections(2)
    shared.publish(1, 0)
    shared.leave(1)
    assert _run(listener, lambda: [Worker(listener, shared, 0, before=3)], 4) == [4]


def test_a_worker_that_ends_accepts_no_more(listener: socket.socket) -> None:
    async def run() -> int:
        shared = OpenConnections(1)
        worker = Worker(listener, shared, 0)
        worker.close()
        (client,) = _connect(listener, 1)
        for _ in range(10):
            await asyncio.sleep(0)
        client.close()
        return worker.accepted

    assert asyncio.run(run()) == 0


def test_a_system_without_file_descriptors_is_tried_again(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_EXHAUSTED_S", 0.01)

    class Exhausted(socket.socket):
        refusals = 3

        def accept(self) -> tuple[socket.socket, object]:
            if self.refusals:
                self.refusals -= 1
                raise OSError(errno.EMFILE, "too many open files")
            return super().accept()

    port = Exhausted(fileno=listener.dup().detach())
    monkeypatch.setattr(port, "dup", lambda: port, raising=False)
    assert _run(port, lambda: [Worker(port, OpenConnections(1), 0)], 1) == [1]
    assert port.refusals == 0
