"""Real stores of every kind on this machine: one server, Debian's, a cluster, behind a sentinel, with TLS."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from store_servers import VALKEY, Server, Store


@pytest.fixture(scope="session")
def debian_redis() -> str:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on PATH; install Debian's with: apt-get install redis-server")
    return binary


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts servers that end with the tests."""
    servers: list[Server] = []

    def start(binary: str, *options: str, **attributes: object) -> Server:
        directory = tmp_path_factory.mktemp("server")
        servers.append(Server(binary, directory, options, **attributes))  # type: ignore[arg-type]
        return servers[-1].start()

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def start_cluster(start: Callable[..., Server]) -> Callable[[], Store]:
    def start_cluster() -> Store:
        nodes = [
            start(VALKEY, "--cluster-enabled", "yes", "--appendonly", "yes", "--cluster-node-timeout", "2000")
            for _ in range(3)
        ]
        bounds = (0, 5461, 10923, 16384)
        for number, node in enumerate(nodes):
            with node.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        deadline = time.monotonic() + 30
        for node in nodes:
            with node.client() as client:
                while client.cluster("INFO")["cluster_state"] != "ok":
                    assert time.monotonic() < deadline, "the cluster does not come up"
                    time.sleep(0.05)
        places = ",".join(f"127.0.0.1:{node.port}" for node in nodes[:2])
        return Store("cluster", f"redis+cluster://{places}", tuple(nodes))

    return start_cluster


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem and a server.pem and server.key that it signed."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on PATH to make certificates with")
    folder = tmp_path_factory.mktemp("tls")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-authority -keyout ca.key -out ca.pem",
        "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session", params=["valkey", "debian", "sentinel", "cluster", "tls"])
def deployment(
    request: pytest.FixtureRequest,
    start: Callable[..., Server],
    start_cluster: Callable[[], Store],
    tmp_path_factory: pytest.TempPathFactory,
) -> Store:
    settings = tmp_path_factory.mktemp("settings")
    match request.param:
        case "valkey":  # with a login that may use the commands and keys that it needs, and no others
            rights = "~contract-* +@read +@write +@scripting +@connection +@transaction +info +waitaof +time"
            users = settings / "users.acl"
            users.write_text(f"user default on nopass ~* &* +@all\nuser app on >p@ss {rights}\n")
            server = start(VALKEY, "--appendonly", "yes", "--aclfile", str(users))
            return Store("valkey", f"redis://app:p%40ss@127.0.0.1:{server.port}/3", (server,))
        case "debian":
            binary = request.getfixturevalue("debian_redis")
            server = start(binary, "--appendonly", "yes", "--appendfsync", "always")
            return Store("debian", f"redis://127.0.0.1:{server.port}", (server,))
        case "sentinel":
            server = start(VALKEY, "--appendonly", "yes")
            (settings / "sentinel.conf").write_text("")
            sentinel = start(VALKEY, str(settings / "sentinel.conf"), "--sentinel")
            with sentinel.client() as client:
                client.execute_command("SENTINEL", "MONITOR", "main", "127.0.0.1", server.port, 1)
            return Store("sentinel", f"redis+sentinel://127.0.0.1:{sentinel.port}/main", (server,))
        case "cluster":
            return start_cluster()
        case _:
            folder = request.getfixturevalue("authority")
            server = start(
                request.getfixturevalue("debian_redis"),
                *("--appendonly", "yes", "--appendfsync", "always", "--tls-auth-clients", "no"),
                *("--tls-cert-file", str(folder / "server.pem"), "--tls-key-file", str(folder / "server.key")),
                *("--requirepass", "secret", "--tls-ca-cert-file", str(folder / "ca.pem")),
                tls=True,
                client_options={"ssl": True, "ssl_ca_certs": str(folder / "ca.pem"), "password": "secret"},
            )
            url = f"rediss://:secret@127.0.0.1:{server.port}/0?ssl_ca_certs={folder / 'ca.pem'}"
            return Store("tls", url, (server,))
