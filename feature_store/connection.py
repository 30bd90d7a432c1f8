"""Commands on their way to one server or to the nodes of a cluster, and what the servers promise. Knows no keys."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from operator import methodcaller
from typing import Any, TypeVar

import redis
from redis.cluster import RedisCluster
from redis.exceptions import AskError, ClusterDownError, NoScriptError, RedisClusterException, TryAgainError

from feature_store.address import Address, Deployment
from feature_store.embedded import AttendedServer, EmbeddedServer
from feature_store.errors import StoreUnavailableError

_FSYNC_TIMEOUT_MS = 5000
_PAUSES_S = (0.0, 0.1, 0.4, 1.0)
"""Before each attempt while a cluster moves slots or promotes a node."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Command:
    """One command to be queued in a pipeline."""

    key: str
    """Decides which node of a cluster gets it; the command may use all keys of the same hash tag."""
    queue: Callable[[Any], object]
    """Calls the command's method on the pipeline it is given, for instance `methodcaller("get", key)`."""
    in_full: Callable[[Any], object] | None = None
    """The same for a server that does not know the script which `queue` names; None for what is no script."""


class Script:
    """A Lua script of this package, sent once to each server and then named by its digest.

    Args:
        name: of the file under lua/, without its ending.
    """

    def __init__(self, name: str) -> None:
        self._text = files("feature_store").joinpath(f"lua/{name}.lua").read_text()
        self._digest = hashlib.sha1(self._text.encode()).hexdigest()

    def __call__(self, keys: Sequence[str], *arguments: str | int) -> Command:
        """The command that runs it; all keys must have one hash tag."""
        return Command(
            keys[0],
            methodcaller("evalsha", self._digest, len(keys), *keys, *arguments),
            methodcaller("eval", self._text, len(keys), *keys, *arguments),
        )


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a store is and promises; of a cluster, what its weakest node does."""

    deployment: Deployment
    server: str
    """Name and version, such as `valkey 9.1.2`."""
    nodes: int
    """Servers that take writes."""
    append_only_file: bool
    fsync_policy: str | None
    """`always`, `everysec` or `no`; None when the server does not tell."""
    has_waitaof: bool
    """Whether it can confirm that a write is on disk (Redis 7.2, Valkey)."""
    confirms_too_early: bool
    """Whether it does so before a write is on disk, under `everysec`: Redis 7.4 and Valkey (redis/redis#13793)."""
    eviction_policy: str
    """What it does when its memory is full; anything but `noeviction` loses data."""
    tls: bool

    @property
    def durable(self) -> bool:
        """Whether an acknowledged event survives the loss of power."""
        confirmed = self.has_waitaof and not self.confirms_too_early and self.fsync_policy != "no"
        return self.append_only_file and (confirmed or self.fsync_policy == "always")

    @property
    def warning(self) -> str | None:
        """What it fails to promise and what to set, in one line."""
        if not self.append_only_file:
            return (
                "the store keeps no append-only file: an acknowledged event survives a crash of this program, "
                "but not of the store; set its appendonly to 'yes'"
            )
        if not self.durable and self.has_waitaof and self.confirms_too_early:
            return (
                f"the store ({self.server}) confirms writes before they are on disk unless each is synced: the last "
                "second of acknowledged events may be lost with the machine; set its appendfsync to 'always'"
            )
        if not self.durable:
            return (
                "the store cannot confirm writes to disk (it has no WAITAOF): the last second of acknowledged "
                "events may be lost with the machine; set its appendfsync to 'always'"
            )
        if self.eviction_policy != "noeviction":
            return (
                f"the store drops keys when its memory is full (maxmemory-policy is {self.eviction_policy!r}), "
                "acknowledged events among them; set it to 'noeviction'"
            )
        return None


class Connection:
    """Thread-safe access to a store; connects on first use.

    Args:
        address: where it is.
        server: the server behind it that this program manages, in this process or another; None for others.
    """

    def __init__(self, address: Address, server: EmbeddedServer | AttendedServer | None = None) -> None:
        self.address = address
        self.server = server
        self._client: Any = None
        self._client_mutex = threading.Lock()
        self._capabilities: Capabilities | None = None

    @property
    def client(self) -> Any:
        """The client of redis-py; what it raises is not translated."""
        with self._client_mutex:
            if self._client is None:
                self._client = self.address.client()
            return self._client

    def close(self) -> None:
        """Close the connections, and end the server when this program manages it."""
        if self._client is not None:
            self._client.close()
        if self.server is not None:
            self.server.stop()

    def ping(self) -> None:
        """Return if every node answers.

        Raises:
            StoreUnavailableError: one does not.
        """
        self._translated(lambda: [node.ping() for node in self._nodes()])

    def one(self, key: str, queue: Callable[[Any], object], *, durable: bool = False) -> Any:
        """The reply to one command; see `run`."""
        return self.run([Command(key, queue)], durable=durable)[0]

    def run(self, commands: Sequence[Command], *, durable: bool = False) -> list[Any]:
        """The replies to the commands, each node's in one round trip.

        Args:
            commands: run in order on each node; other clients' commands may come between.
            durable: wait until their effects are on disk, where the server can tell.

        Raises:
            StoreUnavailableError: nothing was acknowledged; some commands may have run. A managed server is
            started again first.
        """

        def work() -> list[Any]:
            waits = durable and self._waits_for_disk()
            if isinstance(self.client, RedisCluster):
                return self._run_on_cluster(commands, waits)
            replies = _run(self.client, commands, waits)
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
            return replies

        return self._translated(work)

    def capabilities(self) -> Capabilities:
        """What the store is and promises, asked anew.

        Raises:
            StoreUnavailableError: it does not answer.
        """
        return self._translated(self._probe)

    def _nodes(self) -> Iterable[Any]:
        client = self.client
        if isinstance(client, RedisCluster):
            return [client.get_redis_connection(node) for node in client.get_primaries()]  # type: ignore[no-untyped-call]
        return [client]

    def _run_on_cluster(self, commands: Sequence[Command], waits: bool) -> list[Any]:
        replies: list[Any] = [None] * len(commands)
        missing = list(range(len(commands)))
        problem: Exception | None = None
        for pause in _PAUSES_S:
            if problem is not None:
                time.sleep(pause)
                self.client.nodes_manager.initialize()
            by_node: defaultdict[Any, list[int]] = defaultdict(list)
            for index in missing:
                by_node[self.client.get_node_from_key(commands[index].key)].append(index)
            missing = []
            for node, indices in by_node.items():
                try:
                    answered = _run(self.client.get_redis_connection(node), [commands[i] for i in indices], waits)
                except redis.ConnectionError as error:
                    answered = [error] * len(indices)
                except redis.TimeoutError:
                    # It may be gone: the next call shall ask the node that took over.
                    with contextlib.suppress(redis.RedisError, RedisClusterException):
                        self.client.nodes_manager.initialize()
                    raise
                for index, reply in zip(indices, answered, strict=True):
                    # These have not run: the slot is elsewhere, or on its way. A lost connection may hide a success,
                    # and every command of ours may run twice.
                    if isinstance(reply, (AskError, TryAgainError, ClusterDownError, redis.ConnectionError)):
                        problem = reply
                        missing.append(index)
                    elif isinstance(reply, Exception):
                        raise reply
                    else:
                        replies[index] = reply
            if not missing:
                return replies
        assert problem is not None
        raise problem

    def _translated(self, operation: Callable[[], _T]) -> _T:
        """Run `operation`; when the managed server is down, start it and run once more."""
        try:
            try:
                return operation()
            except redis.ConnectionError:
                if self.server is None:
                    raise
                self.server.ensure_running()
                # The pool itself replaces connections that died while idle. Closing them here would race with other
                # threads that have recovered already and read from theirs.
                return operation()
        except (redis.RedisError, RedisClusterException) as error:
            raise unavailable(error) from error

    def _waits_for_disk(self) -> bool:
        if self._capabilities is None:
            self._capabilities = self._probe()
            if self._capabilities.warning is not None:
                _log.warning(self._capabilities.warning)
        return self._capabilities.append_only_file and self._capabilities.has_waitaof

    def _probe(self) -> Capabilities:
        nodes = list(self._nodes())
        facts = [node.info() for node in nodes]
        policies = [_fsync_policy(node) for node in nodes]
        weakest = next((policy for policy in ("no", None, "everysec") if policy in policies), "always")
        evictions = [str(each.get("maxmemory_policy", "noeviction")) for each in facts]
        return Capabilities(
            deployment=self.address.deployment,
            server=_server_name(facts[0]),
            nodes=len(nodes),
            append_only_file=all(each.get("aof_enabled") for each in facts),
            fsync_policy=weakest,
            has_waitaof=all(_version(each) >= (7, 2) for each in facts),
            # Valkey says that it is Redis 7.2.4, whose own WAITAOF was right.
            confirms_too_early=any(
                each.get("server_name") == "valkey" or (7, 4) <= _version(each) < (8, 0) for each in facts
            ),
            eviction_policy=next((policy for policy in evictions if policy != "noeviction"), "noeviction"),
            tls=self.address.tls,
        )


def unavailable(error: Exception) -> StoreUnavailableError:
    """The error of redis-py in one line, with what to do where that is known."""
    # The text may hold the address, but never the password.
    reason = " ".join(str(error).split()) or "no reason given"
    advice = ""
    if isinstance(error, redis.AuthenticationError):
        advice = "; check user and password of the store's URL"
    elif isinstance(error, redis.exceptions.NoPermissionError):
        advice = "; allow the user that command and the keys of the namespace (README: store)"
    elif "CERTIFICATE_VERIFY_FAILED" in reason:
        advice = "; name the authority's file with ?ssl_ca_certs="
    elif isinstance(error, redis.exceptions.OutOfMemoryError):
        advice = "; give the store more memory, or start the consumer of the event log"
    return StoreUnavailableError(f"store: {type(error).__name__}: {reason}{advice}")


def _run(client: Any, commands: Sequence[Command], waits: bool) -> list[Any]:
    """The replies, errors among them: those that a pipeline raises hold the whole command, a script and user ids."""
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        command.queue(pipeline)
    if waits:
        # On the same connection: it waits for what that connection has written.
        pipeline.execute_command("WAITAOF", 1, 0, _FSYNC_TIMEOUT_MS)
    replies: list[Any] = pipeline.execute(raise_on_error=False)
    # Nothing of a script that a server does not know has run; sent in full, it is known from then on.
    unknown = [i for i, command in enumerate(commands) if command.in_full and isinstance(replies[i], NoScriptError)]
    if unknown:
        in_full = [Command(commands[i].key, commands[i].in_full) for i in unknown]  # type: ignore[arg-type]
        for index, reply in zip(unknown, _run(client, in_full, waits), strict=True):
            replies[index] = reply
    if waits:
        confirmed = replies.pop()
        if isinstance(confirmed, Exception):
            raise confirmed
        if confirmed[0] < 1:
            raise StoreUnavailableError(
                "store: the server did not write to disk in time; set its appendfsync to 'always' or 'everysec'"
            )
    return replies


def _fsync_policy(client: Any) -> str | None:
    try:
        policy: str | None = client.config_get("appendfsync").get("appendfsync")
    except redis.ResponseError:  # managed servers forbid CONFIG
        return None
    return policy


def _version(facts: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(part) for part in str(facts.get("redis_version", "0")).split(".")[:2])


def _server_name(facts: Mapping[str, Any]) -> str:
    name = str(facts.get("server_name", "redis"))
    return f"{name} {facts.get(f'{name}_version', facts.get('redis_version', '?'))}"
