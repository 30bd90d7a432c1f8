"""Where a store is: a URL, understood and turned into clients. Knows no keys.

    redis://[user:password@]host:port/database          one server
    unix:///path/of/socket                              one server on this machine
    redis+sentinel://[user:password@]host:port,host:port/master/database    the server that sentinels call the master
    redis+cluster://[user:password@]host:port,host:port                     a cluster; any of its nodes will do

`rediss` instead of `redis` speaks TLS, with these options after a `?`: `ssl_ca_certs` (file of the authority that
signed the server's certificate), `ssl_certfile` and `ssl_keyfile` (our own), `ssl_cert_reqs=none` (believe anybody).
Sentinels that have a login of their own get it from `sentinel_username` and `sentinel_password`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from feature_store.errors import StoreConfigError

Deployment = Literal["single", "sentinel", "cluster"]

REPLY_TIMEOUT_S = 10.0
_MAX_CONNECTIONS = 32
_SCHEMES: dict[str, tuple[Deployment, bool]] = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "unix": ("single", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_HELP = (
    "write redis://[user:password@]host:port/database, redis+sentinel://host:port/master or redis+cluster://host:port"
)


@dataclass(frozen=True, kw_only=True)
class Address:
    """A store's URL in parts. Printing it shows no password."""

    deployment: Deployment
    hosts: tuple[tuple[str, int], ...] = ()
    """Host and port: of the server, the sentinels, or some nodes of the cluster."""
    socket_path: str | None = None
    master: str | None = None
    database: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    options: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str) -> Address:
        """Understand a URL.

        Raises:
            StoreConfigError: it is none, or its options do not fit.
        """
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES:
            raise StoreConfigError(f"store: not a usable URL (unknown scheme {parts.scheme!r}); {_HELP}")
        deployment, tls = _SCHEMES[parts.scheme]
        options = _options(parts.query, deployment, tls, parts.scheme)
        login, _, places = parts.netloc.rpartition("@")
        username, _, password = login.partition(":")
        path = [unquote(part) for part in parts.path.split("/") if part]
        master = None
        if parts.scheme == "unix":
            database = options.pop("db", "0")
        elif deployment == "sentinel":
            if not path:
                raise StoreConfigError(f"store: not a usable URL (no name of a master); {_HELP}")
            master, database = path[0], "".join(path[1:]) or "0"
        else:
            database = "".join(path) or "0"
        if not (database.isascii() and database.isdigit()):
            raise StoreConfigError(f"store: not a usable URL (database {database!r} is no number); {_HELP}")
        if deployment == "cluster" and database != "0":
            raise StoreConfigError("store: not a usable URL (a cluster has database 0 only); leave the database out")
        port = 26379 if deployment == "sentinel" else 6379
        return cls(
            deployment=deployment,
            hosts=() if parts.scheme == "unix" else tuple(_host(place, port) for place in places.split(",")),
            socket_path=unquote(parts.path) if parts.scheme == "unix" else None,
            master=master,
            database=int(database),
            username=unquote(username) or None,
            password=unquote(password) or None,
            tls=tls,
            options=options,
        )

    def client(self) -> Any:
        """A thread-safe client that connects when it is used and answers text: `Redis`, or `RedisCluster`.

        A cluster is asked for its nodes at once.

        Raises:
            redis.RedisError, redis.RedisClusterException: the cluster does not answer.
        """
        return self._client_of(redis, Retry(NoBackoff(), 0))

    def async_client(self) -> Any:
        """The same for asyncio, which asks a cluster later; it belongs to the event loop that first uses it."""
        return self._client_of(redis.asyncio, AsyncRetry(NoBackoff(), 0))

    def _client_of(self, library: Any, retry: Any) -> Any:
        """Made from `redis` or `redis.asyncio`, which have the same names; `retry`: `Connection` tries again itself."""
        tls = {name: value for name, value in self.options.items() if name in _TLS_OPTIONS}
        secure = {"ssl": True, **tls} if self.tls else {}
        common = {
            "decode_responses": True,
            "username": self.username,
            "password": self.password,
            "socket_timeout": REPLY_TIMEOUT_S,
            "retry": retry,
        }
        if self.deployment == "cluster":
            nodes = [library.cluster.ClusterNode(host, port) for host, port in self.hosts]
            return library.cluster.RedisCluster(startup_nodes=nodes, **common, **secure)
        if self.deployment == "sentinel":
            login = {name.removeprefix("sentinel_"): self.options.get(name) for name in _SENTINEL_OPTIONS}
            sentinel = library.sentinel.Sentinel(
                list(self.hosts),
                sentinel_kwargs={"socket_timeout": REPLY_TIMEOUT_S, **login, **secure},
                db=self.database,
                **common,
                **secure,
            )
            return sentinel.master_for(self.master)
        place: dict[str, Any]
        if self.socket_path is not None:
            kind, place = library.UnixDomainSocketConnection, {"path": self.socket_path}
        else:
            (host, port), *_ = self.hosts
            kind, place = library.SSLConnection if self.tls else library.Connection, {"host": host, "port": port}
        pool = library.BlockingConnectionPool(
            connection_class=kind,
            max_connections=_MAX_CONNECTIONS,
            timeout=REPLY_TIMEOUT_S,
            db=self.database,
            **place,
            **tls,
            **common,
        )
        return library.Redis.from_pool(pool)


def _host(place: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{place}")
    try:
        return parts.hostname or "localhost", parts.port or default_port
    except ValueError as error:
        raise StoreConfigError(f"store: not a usable URL ({error}); {_HELP}") from error


def _options(query: str, deployment: Deployment, tls: bool, scheme: str) -> dict[str, str]:
    known = (
        *(_TLS_OPTIONS if tls else ()),
        *(_SENTINEL_OPTIONS if deployment == "sentinel" else ()),
        *(("db",) if scheme == "unix" else ()),
    )
    options = dict(parse_qsl(query))
    for name, value in options.items():
        if name not in known:
            raise StoreConfigError(
                f"store: not a usable URL ({scheme}:// has no option {name!r}); it has {', '.join(known) or 'none'}"
            )
        if name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile") and not Path(value).is_file():
            raise StoreConfigError(f"store: {name}: there is no file {value}; name a PEM file")
    if options.get("ssl_cert_reqs", "required") not in ("none", "optional", "required"):
        raise StoreConfigError("store: ssl_cert_reqs must be none, optional or required")
    return options
